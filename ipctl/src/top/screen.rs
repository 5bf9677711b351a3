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

use super::figures::{
    CHANNELS, CHANNELS_MATTER, Figures, OfChannel, OfProcess, PROCESSES, PROCESSES_MATTER,
};
use crate::{failure::Failure, sight::Observer, table::Align};

/// Between columns.
const SPACING: u16 = 2;

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
        let mut of = self.figures.processes.clone();
        if let Some(column) = self.sorted_by {
            of.sort_by(|a, b| b.key(column).total_cmp(&a.key(column)));
        }
        let of: Vec<_> = of.iter().map(OfProcess::cells).collect();
        let left_out =
            table(frame, processes, PROCESSES, &PROCESSES_MATTER, &of[self.above.min(of.len())..]);
        let of: Vec<_> = self.figures.channels.iter().map(OfChannel::cells).collect();
        let left_out = left_out
            + table(frame, channels, CHANNELS, &CHANNELS_MATTER, &of[self.above.min(of.len())..]);
        let wider = if left_out == 0 { "" } else { "; too narrow for all columns" };
        let title = format!("{state}by {sorted}; keys: q s space arrows{wider}");
        frame.render_widget(Line::raw(title), top);
    }
}

/// Lays rows out under headings, each column as wide as its widest cell. Columns for which there is
/// no room are left out, those that matter least first: a number without its first digits would be
/// another. Returns how many.
fn table<const COLUMNS: usize>(
    frame: &mut Frame<'_>,
    area: Rect,
    columns: [(&'static str, Align); COLUMNS],
    matter: &[usize; COLUMNS],
    rows: &[[String; COLUMNS]],
) -> usize {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].as_str());
        cells.chain([columns[column].0]).map(|cell| cell.chars().count()).max().unwrap_or(0) as u16
    };
    let widths: [u16; COLUMNS] = std::array::from_fn(width);
    let shown = fitting(&widths, matter, area.width);
    let cell = |(column, text): (usize, String)| {
        let line = Line::raw(text);
        Cell::from(match columns[column].1 {
            Align::Left => line.left_aligned(),
            Align::Right => line.right_aligned(),
        })
    };
    let heading = columns.map(|(name, _)| name.to_owned());
    let row = |cells: [String; COLUMNS]| {
        Row::new(cells.into_iter().enumerate().filter(|(column, _)| shown[*column]).map(cell))
    };
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let seen = widths.iter().zip(shown).filter(|(_, shown)| *shown);
    let constraints = seen.map(|(width, _)| Constraint::Length(*width));
    let widget = Table::new(rows.iter().cloned().map(row), constraints)
        .header(row(heading).style(bold))
        .column_spacing(SPACING);
    frame.render_widget(widget, area);
    shown.iter().filter(|shown| !**shown).count()
}

/// Which columns there is room for: `matter` has them in the order in which they are wanted. The
/// first is there in any case, and may be cut.
fn fitting<const COLUMNS: usize>(
    widths: &[u16; COLUMNS],
    matter: &[usize; COLUMNS],
    room: u16,
) -> [bool; COLUMNS] {
    let mut shown = [false; COLUMNS];
    let mut used = 0;
    for (place, &column) in matter.iter().enumerate() {
        let wanted = used + widths[column] + if place == 0 { 0 } else { SPACING };
        if place > 0 && wanted > room {
            break;
        }
        shown[column] = true;
        used = wanted;
    }
    shown
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
    fn a_narrow_terminal_shows_fewer_columns_and_each_in_full() {
        let figures = Figures::of(&sight());
        let picture = Picture { figures, sorted_by: None, stopped: false, above: 0 };
        for width in 30..110 {
            let mut terminal = Terminal::new(TestBackend::new(width, 12)).expect("a terminal");
            terminal.draw(|frame| picture.draw(frame)).expect("a picture");
            let text = terminal.backend().to_string();
            let whole = shown(&picture);
            let whole = whole.replace('"', " ");
            let known: Vec<&str> = whole.split_whitespace().collect();
            let lines = text.lines().skip(1);
            for word in lines.flat_map(|line| line.trim_matches('"').split_whitespace()) {
                assert!(known.contains(&word), "{word} at {width}:\n{text}");
            }
        }
        assert_eq!(fitting(&[9, 5, 5], &[0, 2, 1], 16), [true, false, true]);
        assert_eq!(fitting(&[9, 5, 5], &[0, 2, 1], 3), [true, false, false]);
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
