//! Where answers go: text for people or JSON for programs on stdout, remarks on stderr.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

use serde::Serialize;

use crate::failure::Failure;

/// Knows who reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Output {
        Output { json }
    }

    /// Prints an answer: its JSON, or its text with an end of line.
    pub(crate) fn show(self, answer: &(impl Serialize + Display)) -> Result<(), Failure> {
        let mut text = if self.json { json(answer)? } else { answer.to_string() };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        write(text.as_bytes())
    }

    /// Prints what only people want to see.
    pub(crate) fn text(self, text: &str) -> Result<(), Failure> {
        if self.json { Ok(()) } else { write(text.as_bytes()) }
    }

    /// Whether a program reads.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Tells people, but no program, what an answer does not say.
    pub(crate) fn remark(self, text: &str) {
        if !self.json {
            to_stderr(&format!("{text}\n"));
        }
    }

    /// Says why the command failed.
    pub(crate) fn fail(self, failure: &Failure) {
        if !self.json {
            to_stderr(&format!("ipctl: {failure}\n"));
            return;
        }
        let status = failure.status();
        let message = failure.to_string();
        let error = Error { name: status.name(), code: status.code(), message };
        // The exit status still tells, should nobody read this.
        let _ = json(&Failed { error }).and_then(|text| write(format!("{text}\n").as_bytes()));
    }
}

/// A failure, for programs.
#[derive(Serialize)]
struct Failed {
    error: Error,
}

#[derive(Serialize)]
struct Error {
    name: &'static str,
    code: i32,
    message: String,
}

/// One line that changes while long work goes on; seen on a terminal only.
#[derive(Debug)]
pub(crate) struct Progress {
    shown: bool,
    terminal: bool,
}

impl Progress {
    pub(crate) fn new() -> Progress {
        Progress { shown: false, terminal: io::stderr().is_terminal() }
    }

    pub(crate) fn show(&mut self, text: impl Display) {
        if self.terminal {
            to_stderr(&format!("\r\x1b[K{text}"));
            self.shown = true;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            to_stderr("\r\x1b[K");
        }
    }
}

/// Writes bytes to stdout as they are.
pub(crate) fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(Failure::Write)
}

fn json(answer: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(answer).map_err(|error| Failure::Write(error.into()))
}

fn to_stderr(text: &str) {
    // Nobody is left to be told that stderr is closed.
    let _ = io::stderr().write_all(text.as_bytes());
}
