//! Columns for people.

use std::fmt::{self, Write as _};

/// On which side of its column a cell stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Lays rows out under headings, each column as wide as its widest cell. Without rows there is
/// nothing: whoever shows it says why.
#[derive(Debug)]
pub(crate) struct Table<const COLUMNS: usize> {
    columns: [(&'static str, Align); COLUMNS],
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    pub(crate) fn new(columns: [(&'static str, Align); COLUMNS]) -> Table<COLUMNS> {
        Table { columns, rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: [String; COLUMNS]) {
        self.rows.push(cells);
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[column].as_str());
        cells.chain([self.columns[column].0]).map(|cell| cell.chars().count()).max().unwrap_or(0)
    }
}

impl<const COLUMNS: usize> fmt::Display for Table<COLUMNS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.is_empty() {
            return Ok(());
        }
        let widths: [usize; COLUMNS] = std::array::from_fn(|column| self.width(column));
        let heading = self.columns.map(|(name, _)| name.to_owned());
        for row in std::iter::once(&heading).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, (_, align)), width) in row.iter().zip(self.columns).zip(widths) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                match align {
                    Align::Left => write!(line, "{cell:<width$}")?,
                    Align::Right => write!(line, "{cell:>width$}")?,
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table =
            Table::new([("NAME", Align::Left), ("PID", Align::Right), ("FLAGS", Align::Left)]);
        table.row(["echo".into(), "7".into(), "-".into()]);
        table.row(["été/архив".into(), "123456".into(), "idempotent".into()]);
        let lines = [
            "NAME          PID  FLAGS",
            "echo            7  -",
            "été/архив  123456  idempotent",
            "",
        ];
        assert_eq!(table.to_string(), lines.join("\n"));
    }

    #[test]
    fn without_rows_there_is_nothing() {
        let table = Table::new([("NAME", Align::Left), ("PID", Align::Right)]);
        assert_eq!(table.to_string(), "");
    }
}
