//! The live picture, on a terminal.

use std::{
    io,
    time::{Duration, Instant},
};

use ratatui::{
    Frame,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::Line,
    widgets::{Cell, Row, Table},
};

use super::figures::{CHANNELS, Figures, OfChannel, OfProcess, PROCESSES};
use crate::{failure::Failure, sight::Observer, table::Align};

/// What the picture is of, and how it is to be seen.
struct Picture {
    figures: Figures,
    /// The column of the processes by which they are sorted; none for how busy they are.
    sorted_by: Option<usize>,
    stopped: bool,
    /// Rows of either table that are above what is seen.
    above: usize,
}

/// Renews the picture until somebody has seen enough.
pub(super) fn run(observer: &mut Observer, interval: Duration) -> Result<(), Failure> {
    let first = Figures::of(&observer.look()?);
    let mut picture = Picture { figures: first, sorted_by: None, stopped: false, above: 0 };
    let mut terminal = ratatui::try_init().map_err(Failure::Write)?;
    let outcome = loop {
        let due = Instant::now() + interval;
        match watch(&mut terminal, &mut picture, due) {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(error) => break Err(Failure::Write(error)),
        }
        match observer.look() {
            Ok(_) if picture.stopped => {}
            Ok(sight) => picture.figures = Figures::of(&sight),
            Err(failure) => break Err(failure),
        }
    };
    ratatui::restore();
    outcome
}

/// Shows the picture and hears keys until it is time to look again. Returns false at the end.
fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    picture: &mut Picture,
    due: Instant,
) -> io::Result<bool> {
    loop {
        terminal.draw(|frame| picture.draw(frame))?;
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(true);
        }
        if event::poll(left)?
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
            && !picture.press(key)
        {
            return Ok(false);
        }
    }
}

impl Picture {
    /// Does what a key says. Returns false for the one that ends it.
    fn press(&mut self, key: KeyEvent) -> bool {
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Char(' ') => self.stopped = !self.stopped,
            KeyCode::Char('s') => {
                let next = self.sorted_by.map_or(1, |column| column + 1);
                self.sorted_by = (next < PROCESSES.len()).then_some(next);
            }
            KeyCode::Up => self.above = self.above.saturating_sub(1),
            KeyCode::Down => {
                let most = self.figures.processes.len().max(self.figures.channels.len());
                self.above = (self.above + 1).min(most.saturating_sub(1));
            }
            _ => {}
        }
        true
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let rows = self.figures.processes.len() as u16 + 2;
        let parts = [Constraint::Length(1), Constraint::Max(rows), Constraint::Min(3)];
        let [top, processes, channels] = Layout::vertical(parts).areas(frame.area());
        let sorted = self.sorted_by.map_or("how busy they are", |column| PROCESSES[column].0);
        let state = if self.stopped { "stopped, " } else { "" };
        let title = format!("ipctl top: {state}processes by {sorted}; keys: q s space arrows");
        frame.render_widget(Line::raw(title), top);
        let mut of = self.figures.processes.clone();
        if let Some(column) = self.sorted_by {
            of.sort_by(|a, b| b.key(column).total_cmp(&a.key(column)));
        }
        let of: Vec<_> = of.iter().map(OfProcess::cells).collect();
        table(frame, processes, PROCESSES, &of[self.above.min(of.len())..]);
        let of: Vec<_> = self.figures.channels.iter().map(OfChannel::cells).collect();
        table(frame, channels, CHANNELS, &of[self.above.min(of.len())..]);
    }
}

/// Lays rows out under headings, each column as wide as its widest cell.
fn table<const COLUMNS: usize>(
    frame: &mut Frame<'_>,
    area: Rect,
    columns: [(&'static str, Align); COLUMNS],
    rows: &[[String; COLUMNS]],
) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].as_str());
        cells.chain([columns[column].0]).map(|cell| cell.chars().count()).max().unwrap_or(0) as u16
    };
    let widths: [u16; COLUMNS] = std::array::from_fn(width);
    let cell = |(column, text): (usize, String)| {
        let line = Line::raw(text);
        Cell::from(match columns[column].1 {
            Align::Left => line.left_aligned(),
            Align::Right => line.right_aligned(),
        })
    };
    let heading = columns.map(|(name, _)| name.to_owned());
    let row = |cells: [String; COLUMNS]| Row::new(cells.into_iter().enumerate().map(cell));
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let widget = Table::new(rows.iter().cloned().map(row), widths.map(Constraint::Length))
        .header(row(heading).style(bold))
        .column_spacing(2);
    frame.render_widget(widget, area);
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::top::figures::tests::sight;

    fn shown(picture: &Picture) -> String {
        let mut terminal = Terminal::new(TestBackend::new(110, 12)).expect("a terminal");
        terminal.draw(|frame| picture.draw(frame)).expect("a picture");
        terminal.backend().to_string()
    }

    fn press(picture: &mut Picture, code: KeyCode) -> bool {
        picture.press(KeyEvent::from(code))
    }

    #[test]
    fn the_picture_has_both_tables_and_keys_change_it() {
        let figures = Figures::of(&sight());
        let mut picture = Picture { figures, sorted_by: None, stopped: false, above: 0 };
        let text = shown(&picture);
        for part in ["PROCESS", "(load)", "3072 KiB", "CALLER", "echo:20", "1.02 µs"] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(text.find("(load)") < text.find("echo "), "the caller is first by its name");
        // By PID, IN/S: of them the service has the most.
        assert!(press(&mut picture, KeyCode::Char('s')));
        let text = shown(&picture);
        assert!(text.contains("by PID") && text.find("echo ") < text.find("(load) "), "{text}");
        (1..PROCESSES.len()).for_each(|_| assert!(press(&mut picture, KeyCode::Char('s'))));
        assert_eq!(picture.sorted_by, None, "all columns were shown");
        assert!(press(&mut picture, KeyCode::Char(' ')) && shown(&picture).contains("stopped"));
        (0..9).for_each(|_| assert!(press(&mut picture, KeyCode::Down)));
        assert_eq!(picture.above, 1, "a row stays");
        assert!(!press(&mut picture, KeyCode::Char('q')));
    }

    #[test]
    fn a_terminal_that_is_too_small_is_no_reason_to_fail() {
        let figures = Figures::of(&sight());
        let picture = Picture { figures, sorted_by: None, stopped: false, above: 0 };
        for (width, height) in [(1, 1), (20, 3), (0, 0)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
            terminal.draw(|frame| picture.draw(frame)).expect("a picture");
        }
    }
}
