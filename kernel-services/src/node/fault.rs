//! What is wrong in a node file, shown where it stands.

use std::{fmt, io, ops::Range, path::PathBuf};

use super::quantity::quoted;

/// Explains why a node file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It cannot be read.
    #[error(
        "cannot read the node file {}: {source}; check the path and its permissions",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is longer than any that a person wrote.
    #[error("the node file {} is longer than {limit} bytes; name another", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Most bytes that are read.
        limit: u64,
    },
    /// Its text is wrong: all that was found, in the order of the file.
    #[error("{}", Listed(faults))]
    Wrong {
        /// At least one.
        faults: Vec<Fault>,
    },
}

/// One thing in a node file that is wrong, or looks so.
///
/// It is shown as `file:line:column: what is wrong; what to do`, and below it the line with the
/// place underlined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file, as it was named.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub hint: String,
    /// The line, fit for a terminal, and perhaps not all of it.
    excerpt: String,
    /// Where in the excerpt the fault lies.
    underline: Range<usize>,
}

/// A fault before it is known where in which file it stands.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) span: Range<usize>,
    pub(super) what: String,
    pub(super) hint: String,
}

impl Finding {
    /// Finds its place in the text of `file`.
    pub(super) fn locate(self, file: &str, text: &str) -> Fault {
        let start = text.floor_char_boundary(self.span.start);
        let end = text.floor_char_boundary(self.span.end).max(start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line = text[line_start..].split('\n').next().unwrap_or_default();
        let line = line.strip_suffix('\r').unwrap_or(line);
        let first = text[line_start..start].chars().count();
        let last = first + text[start..end].chars().take_while(|it| *it != '\n').count();
        let (excerpt, underline) = excerpt(line, first..last);
        Fault {
            file: file.to_owned(),
            line: text[..start].matches('\n').count() + 1,
            column: first + 1,
            what: self.what,
            hint: self.hint,
            excerpt,
            underline,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { file, line, column, what, hint, excerpt, underline } = self;
        let margin = " ".repeat(line.to_string().len());
        let before = " ".repeat(underline.start);
        let marks = "^".repeat(underline.len());
        writeln!(out, "{file}:{line}:{column}: {what}; {hint}")?;
        writeln!(out, "{margin} |")?;
        writeln!(out, "{line} | {excerpt}")?;
        write!(out, "{margin} | {before}{marks}")
    }
}

/// Shows as many faults as somebody reads.
struct Listed<'a>(&'a [Fault]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 30;
        for (index, fault) in self.0.iter().take(SHOWN).enumerate() {
            if index > 0 {
                write!(out, "\n\n")?;
            }
            write!(out, "{fault}")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(out, "\n\n... and {more} more"),
        }
    }
}

/// Makes a line fit for a terminal. Both ranges count characters: in the line, in the excerpt.
fn excerpt(line: &str, marked: Range<usize>) -> (String, Range<usize>) {
    /// Wide enough for most lines, and for the place in all.
    const WIDTH: usize = 120;
    const BEFORE: usize = 60;
    let skipped = if marked.start > WIDTH - BEFORE / 2 { marked.start - BEFORE } else { 0 };
    let mut shown = String::from(if skipped > 0 { "..." } else { "" });
    let mut width = shown.len();
    let mut underline = None;
    let mut end = width;
    for (index, character) in line.chars().enumerate().skip(skipped).take(WIDTH) {
        if index == marked.start {
            underline = Some(width);
        }
        match character {
            '\t' => shown.push_str("    "),
            // It could be a terminal's command.
            _ if character.is_control() => shown.push('\u{fffd}'),
            _ => shown.push(character),
        }
        width += if character == '\t' { 4 } else { 1 };
        if index < marked.end {
            end = width;
        }
    }
    let start = underline.unwrap_or(width);
    (shown, start..end.max(start + 1))
}

/// Says what may have been meant, else what there is.
pub(super) fn instead(wrong: &str, known: &[&str], otherwise: &str) -> String {
    const LISTED: usize = 30;
    if let Some(nearest) = nearest(wrong, known) {
        return format!("did you mean {}?", quoted(nearest));
    }
    let mut list = known.iter().take(LISTED).copied().collect::<Vec<_>>().join(", ");
    if known.is_empty() {
        "nothing".clone_into(&mut list);
    } else if known.len() > LISTED {
        list.push_str(", ...");
    }
    format!("{otherwise} {list}")
}

/// Returns what is so alike that it was probably meant.
fn nearest<'a>(wrong: &str, known: &[&'a str]) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let wrong = plain(wrong);
    let length = wrong.chars().count();
    // Of a short word something must be left.
    let most = (length / 3).clamp(1, 3).min(length.saturating_sub(1));
    known
        .iter()
        .filter(|name| name.len().abs_diff(wrong.len()) <= 4 * most)
        .map(|name| (distance(&wrong, &plain(name)), *name))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Counts the letters to put in, leave out, replace or swap with the next, to get from one to the
/// other (optimal string alignment).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    let mut previous = None;
    for (row, letter) in from.chars().enumerate() {
        let mut line = vec![row + 1];
        for (column, other) in to.iter().enumerate() {
            let replaced = last[column] + usize::from(letter != *other);
            let mut best = replaced.min(last[column + 1] + 1).min(line[column] + 1);
            if column > 0 && previous == Some(*other) && to[column - 1] == letter {
                best = best.min(before[column - 1] + 1);
            }
            line.push(best);
        }
        before = std::mem::replace(&mut last, line);
        previous = Some(letter);
    }
    last[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_a_finger_are_one_apart() {
        for (from, to, apart) in [
            ("restart", "restart", 0),
            ("restrat", "restart", 1),
            ("restar", "restart", 1),
            ("restartt", "restart", 1),
            ("rastart", "restart", 1),
            ("", "ab", 2),
            ("ab", "", 2),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(from, to), apart, "{from} {to}");
        }
    }

    #[test]
    fn the_nearest_is_proposed_and_nothing_far() {
        assert_eq!(nearest("Depends-On", &["provides", "depends_on"]), Some("depends_on"));
        assert_eq!(nearest("B", &["a", "b"]), Some("b"));
        assert_eq!(nearest("c", &["a", "b"]), None);
        assert_eq!(nearest("xyz", &["restart", "replicas"]), None);
        assert_eq!(instead("xyz", &["a", "b"], "there are"), "there are a, b");
        assert_eq!(instead("xyz", &[], "there is"), "there is nothing");
    }

    #[test]
    fn a_line_is_shown_so_that_the_marks_fit_and_the_terminal_is_safe() {
        let shown = |text: &str, span: Range<usize>| {
            let finding = Finding { span, what: "bad".to_owned(), hint: "mend it".to_owned() };
            finding.locate("f", text).to_string()
        };
        assert_eq!(
            shown("a\n\té\u{1b} = 1\r\n", 3..5),
            "f:2:2: bad; mend it\n  |\n2 |     é\u{fffd} = 1\n  |     ^"
        );
        assert_eq!(shown("a\n", 2..2), "f:2:1: bad; mend it\n  |\n2 | \n  | ^");
        assert_eq!(shown("", 7..9), "f:1:1: bad; mend it\n  |\n1 | \n  | ^");
        // A place of several lines is underlined in the first.
        assert_eq!(shown("ab\ncd", 1..5), "f:1:2: bad; mend it\n  |\n1 | ab\n  |  ^");
        let long = format!("{}X{}", "a".repeat(500), "b".repeat(500));
        let expected = format!("...{}X{}", "a".repeat(60), "b".repeat(59));
        assert_eq!(
            shown(&long, 500..501),
            format!("f:1:501: bad; mend it\n  |\n1 | {expected}\n  | {}^", " ".repeat(63))
        );
    }
}
