//! `ipctl audit show`: the last records, for people.

use std::{
    collections::VecDeque,
    fmt, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use clap::{Args, ValueHint};
use kernel_services::audit::Kind;
use serde::Serialize;
use serde_json::Value;

use crate::{failure::Failure, output::Output, supervised::harmless, units};

/// Show the last records: who did what with whom, whether it was allowed, and why.
#[derive(Args)]
pub(super) struct Show {
    /// A directory with an audit log, or one file of it; by default the runtime directory
    #[arg(value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub(super) path: Option<PathBuf>,
    /// How many, of those that are shown
    #[arg(long, value_name = "N", default_value = "40")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    last: u32,
    /// Of these kinds alone: grant, denial, admin, ... (docs/security.md)
    #[arg(long = "kind", value_name = "KIND", value_parser = kind, value_hint = ValueHint::Other)]
    kinds: Vec<String>,
}

/// Reads a kind; one that is none is told with all that there are.
fn kind(text: &str) -> Result<String, String> {
    let known = serde_json::from_value::<Kind>(Value::from(text));
    known.map(|_| text.to_owned()).map_err(|error| error.to_string())
}

impl Show {
    pub(super) fn run(&self, path: &Path, output: Output) -> Result<(), Failure> {
        let most = self.last as usize;
        // The newest file first, and no more of them than are needed.
        let mut records: VecDeque<Value> = VecDeque::new();
        for file in files(path)? {
            let mut of_file = self.last_of(&file, most - records.len())?;
            of_file.extend(records);
            records = of_file;
            if records.len() >= most {
                break;
            }
        }
        if records.is_empty() {
            output.remark("there is no such record");
        }
        output.show(&Records(records.into()))
    }

    fn last_of(&self, file: &Path, most: usize) -> Result<VecDeque<Value>, Failure> {
        let unread = |source| Failure::Read { path: file.display().to_string(), source };
        let mut last = VecDeque::new();
        for line in BufReader::new(fs::File::open(file).map_err(unread)?).split(b'\n') {
            // What is no record is `verify`'s to find.
            let Ok(record) = serde_json::from_slice::<Value>(&line.map_err(unread)?) else {
                continue;
            };
            let kind = record["kind"].as_str().unwrap_or_default();
            if self.kinds.is_empty() || self.kinds.iter().any(|it| it == kind) {
                last.push_back(record);
                if last.len() > most {
                    last.pop_front();
                }
            }
        }
        Ok(last)
    }
}

/// The files of a log, the newest first: the one that grows, and those that were rotated.
fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let unread = |source| Failure::Read { path: path.display().to_string(), source };
    if !fs::metadata(path).map_err(unread)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let is_rotated = |name: &str| {
        let number = name.strip_prefix("audit-").and_then(|it| it.strip_suffix(".log"));
        number.is_some_and(|it| it.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let names = fs::read_dir(path).map_err(unread)?.map_while(Result::ok).map(|it| it.file_name());
    let mut names: Vec<_> = names.filter_map(|it| it.into_string().ok()).collect();
    names.retain(|it| is_rotated(it));
    names.sort_unstable();
    let names = ["audit.log".to_owned()].into_iter().chain(names.into_iter().rev());
    Ok(names.map(|name| path.join(name)).collect())
}

#[derive(Serialize)]
#[serde(transparent)]
struct Records(Vec<Value>);

impl fmt::Display for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for record in &self.0 {
            let text = |key: &str| harmless(record[key].as_str().unwrap_or_default());
            let time = record["time_us"].as_u64().unwrap_or_default();
            write!(f, "{} {}", units::utc(time), text("kind"))?;
            match record["verdict"].as_bool() {
                Some(true) => f.write_str(" allowed")?,
                Some(false) => f.write_str(" denied")?,
                None => {}
            }
            for (before, key) in [(" ", "subject"), (": ", "operation"), (" of ", "object")] {
                let text = text(key);
                if !text.is_empty() {
                    write!(f, "{before}{text}")?;
                }
            }
            let because = text("because");
            writeln!(f, "{}{because}", if because.is_empty() { "" } else { "; " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(last: u32, kinds: &[&str]) -> Show {
        Show { path: None, last, kinds: kinds.iter().map(|it| (*it).to_owned()).collect() }
    }

    #[test]
    fn the_last_records_come_from_as_many_files_as_it_takes() {
        let directory = tempfile::tempdir().expect("a directory");
        let line = |seq: u32, kind: &str| format!("{{\"seq\":{seq},\"kind\":\"{kind}\"}}\n");
        let write = |name: &str, text: String| {
            fs::write(directory.path().join(name), text).expect("written");
        };
        write("audit-00000000000000000002.log", line(1, "grant") + &line(2, "denial"));
        write(
            "audit-00000000000000000004.log",
            line(3, "grant") + "no record\n" + &line(4, "admin"),
        );
        write("audit.log", line(5, "grant"));
        write("audit-torn-00000000000000000005-1", line(9, "grant"));
        let numbers = |show: &Show| -> Vec<u64> {
            let files = files(directory.path()).expect("files");
            let mut found = VecDeque::new();
            for file in &files {
                let mut more = show.last_of(file, show.last as usize - found.len()).expect("read");
                more.extend(found);
                found = more;
            }
            found.iter().filter_map(|it| it["seq"].as_u64()).collect()
        };
        assert_eq!(numbers(&show(2, &[])), [4, 5]);
        assert_eq!(numbers(&show(9, &[])), [1, 2, 3, 4, 5]);
        assert_eq!(numbers(&show(2, &["grant"])), [3, 5]);
        assert!(files(&directory.path().join("none")).is_err());
    }

    #[test]
    fn a_record_is_a_line_that_steers_no_terminal() {
        let record = serde_json::json!({
            "time_us": 0, "kind": "denial", "subject": "user 0", "object": "name a\u{1b}[1m",
            "operation": "call", "verdict": false, "because": "no rule",
        });
        let text = Records(vec![record]).to_string();
        assert!(
            text.starts_with("1970-01-01T00:00:00Z denial denied user 0: call of name a"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}') && text.ends_with("; no rule\n"), "{text}");
    }
}
