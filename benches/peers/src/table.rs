//! The figures as tables: Markdown whose columns line up, so that it can be read as it is.

use std::fmt::{self, Write as _};

use benches::report::{rate, size};

use crate::figures::{Report, Row};
use crate::run::{CROWD_SIZE, CROWDS, SIZES};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}.\n", self.machine.to_string().replace('\n', ". "))?;
        writeln!(
            f,
            "Medians of up to {} interleaved rounds of {} s, CPUs {}; left out: {}.\n",
            self.rounds,
            self.seconds,
            self.distance,
            left_out(self.calls.iter().chain(&self.crowds)),
        )?;
        writeln!(f, "A call and its answer, one client, p50 / p95 / p99 in µs:\n")?;
        f.write_str(&latencies(&self.calls))?;
        if !self.crowds.is_empty() {
            writeln!(f, "\nCalls of {CROWD_SIZE} B per second from so many clients on one CPU:\n")?;
            f.write_str(&rates(&self.crowds))?;
        }
        if !self.skipped.is_empty() {
            writeln!(f, "\nNot measured:\n")?;
        }
        for skipped in &self.skipped {
            writeln!(f, "- {}: {}", skipped.contender, skipped.why)?;
        }
        Ok(())
    }
}

fn left_out<'a>(rows: impl Iterator<Item = &'a Row>) -> String {
    let (mut moved, mut elsewhere, mut all) = (0, 0, 0);
    for row in rows {
        moved += row.moved;
        elsewhere += row.elsewhere;
        all += row.samples.len();
    }
    format!(
        "{moved} of {all} samples during which the CPUs moved, {elsewhere} at the other distance"
    )
}

fn latencies(rows: &[Row]) -> String {
    let sizes: Vec<usize> =
        SIZES.into_iter().filter(|&size| rows.iter().any(|row| row.size == size)).collect();
    let mut head = vec![String::new()];
    head.extend(sizes.iter().map(|&bytes| size(bytes)));
    // The promise is about short calls: how many floors is one?
    head.push("shortest: p95 / floor".to_owned());
    let mut lines = vec![head];
    for title in titles(rows) {
        let of = |size| rows.iter().find(|row| row.size == size && row.title() == title);
        let mut line = vec![title.clone()];
        line.extend(sizes.iter().map(|&size| of(size).map_or(String::new(), cell)));
        let first = sizes.first().and_then(|&size| of(size)?.median.as_ref()?.ratio_to_floor);
        line.push(first.map_or(String::new(), |ratio| format!("{ratio:.2}")));
        lines.push(line);
    }
    drawn(&lines)
}

fn rates(rows: &[Row]) -> String {
    let mut head = vec![String::new()];
    head.extend(CROWDS.map(|clients| clients.to_string()));
    let mut lines = vec![head];
    for title in titles(rows) {
        let mut line = vec![title.clone()];
        line.extend(CROWDS.map(|clients| {
            let row = rows.iter().find(|row| row.clients == clients && row.title() == title);
            row.map_or(String::new(), |row| {
                row.median.as_ref().map_or_else(|| left(row), |it| rate(it.per_second))
            })
        }));
        lines.push(line);
    }
    drawn(&lines)
}

/// Lists the contenders, as they come.
pub(crate) fn titles(rows: &[Row]) -> Vec<String> {
    let mut titles: Vec<String> = Vec::new();
    for row in rows {
        let title = row.title();
        if !titles.contains(&title) {
            titles.push(title);
        }
    }
    titles
}

fn cell(row: &Row) -> String {
    let Some(median) = &row.median else { return left(row) };
    let figures = [median.p50, median.p95, median.p99].into_iter().flatten();
    figures.map(microseconds).collect::<Vec<_>>().join(" / ")
}

/// Says why a row has no figure.
fn left(row: &Row) -> String {
    if row.elsewhere > 0 { "elsewhere" } else { "moved" }.to_owned()
}

/// Writes nanoseconds as microseconds with three digits or so.
fn microseconds(ns: u64) -> String {
    let us = ns as f64 / 1e3;
    match ns {
        0..10_000 => format!("{us:.2}"),
        10_000..100_000 => format!("{us:.1}"),
        _ => format!("{us:.0}"),
    }
}

fn drawn(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0).max(3)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            // Writing to a String cannot fail.
            let _ = if column == 0 {
                write!(text, "| {cell:<width$} |")
            } else {
                write!(text, " {cell:>width$} |")
            };
        }
        text.push('\n');
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let (edge, colon) = if column == 0 { ("|", "-") } else { ("", ":") };
                let _ = write!(text, "{edge}{}{colon}|", "-".repeat(width + 1));
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_make_markdown() {
        let lines = [["", "8 B"], ["libipc", "0.21 / 0.25 / 0.31"]];
        let text = drawn(&lines.map(|line| line.map(str::to_owned).to_vec()));
        let widths: Vec<_> = text.lines().map(str::len).collect();
        assert!(widths.iter().all(|&width| width == widths[0]), "{text}");
        assert!(text.lines().nth(1).is_some_and(|rule| rule.ends_with(":|")), "{text}");
    }

    #[test]
    fn digits_become_fewer_as_times_grow() {
        assert_eq!(
            [215, 9_999, 12_345, 123_456].map(microseconds),
            ["0.21", "10.00", "12.3", "123"]
        );
    }
}
