//! `ipctl audit verify`: does the audit log hold?

use std::{
    fmt,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand, ValueHint};
use ipc::Config;
use kernel_services::audit::{self, Bad, Found, Hash};
use serde::Serialize;

use crate::{failure::Failure, output::Output};

mod show;

/// The exit status where the log does not hold.
const BROKEN: u8 = 6;

/// Show the record of grants, denials, deaths and commands, or check that nobody changed it.
#[derive(Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Show(show::Show),
    Verify(Verify),
}

/// Check every line of the audit log against the one before, and name the first bad one.
#[derive(Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Verify {
    /// A directory with an audit log, or one file of it; by default the runtime directory
    #[arg(value_name = "PATH", value_hint = ValueHint::AnyPath)]
    path: Option<PathBuf>,
    /// A hash that must be in it: what `head` was at an earlier time, kept on another machine
    #[arg(long, value_name = "HASH", value_parser = hash, value_hint = ValueHint::Other)]
    head: Option<Hash>,
}

const HELP: &str = "\
Examples:
  ipctl audit show --kind denial --last 5
  ipctl audit verify
  ipctl audit verify /backup/ipc                   a copy of the runtime directory
  ipctl audit verify audit-00000000000000012840.log
  ipctl audit verify --json | jq -r .head          note it on another machine, now and then:
  ipctl audit verify --head HASH                   nothing before it can be changed unseen

It asks no runtime, so it also works on what is left of one. Whoever may write the files can write a
new chain; only a hash that was kept elsewhere shows that.

Exit status 0: it holds. 6: it does not; the first bad line is named.";

fn hash(text: &str) -> Result<Hash, String> {
    text.parse().map_err(|_| "64 hexadecimal digits, as `head` shows them".to_owned())
}

pub(crate) fn run(arguments: &Arguments, config: &Config, output: Output) -> Result<u8, Failure> {
    let path = match &arguments.verb {
        Verb::Show(show) => &show.path,
        Verb::Verify(verify) => &verify.path,
    };
    let path = match (path, &config.runtime_dir) {
        (Some(path), _) | (None, Some(path)) => path.clone(),
        (None, None) => ipc::runtime_dir(),
    };
    let verify = match &arguments.verb {
        Verb::Show(show) => return show.run(&path, output).map(|()| 0),
        Verb::Verify(verify) => verify,
    };
    let result = match verify.head {
        Some(head) => audit::verify_to(&path, head),
        None => audit::verify(&path),
    };
    let verdict = Verdict::of(&path, result)?;
    output.show(&verdict)?;
    Ok(if verdict.holds { 0 } else { BROKEN })
}

/// What was found.
#[derive(Serialize)]
struct Verdict {
    holds: bool,
    path: PathBuf,
    /// Records; the number of the first; the hash of the last.
    records: Option<u64>,
    first: Option<u64>,
    head: Option<String>,
    /// Records that say that the log itself has suffered.
    incidents: Option<u64>,
    /// Where the first bad line is, and what is wrong.
    file: Option<PathBuf>,
    line: Option<u64>,
    why: Option<String>,
}

impl Verdict {
    fn of(path: &Path, result: Result<Found, Bad>) -> Result<Verdict, Failure> {
        let mut verdict = Verdict {
            holds: result.is_ok(),
            path: path.to_owned(),
            records: None,
            first: None,
            head: None,
            incidents: None,
            file: None,
            line: None,
            why: None,
        };
        match result {
            Ok(Found { count, first, head, incidents }) => {
                (verdict.records, verdict.first) = (Some(count), Some(first));
                (verdict.head, verdict.incidents) = (Some(head.to_string()), Some(incidents));
            }
            Err(Bad::Unreadable { path, source }) => {
                return Err(Failure::Read { path: path.display().to_string(), source });
            }
            Err(Bad::Line { path, line, why }) => {
                (verdict.file, verdict.line) = (Some(path), Some(line));
                verdict.why = Some(why.to_string());
            }
            Err(bad @ (Bad::Truncated { .. } | Bad::Head { .. })) => {
                verdict.why = Some(bad.to_string());
            }
        }
        Ok(verdict)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(why) = &self.why {
            let file = self.file.as_ref().unwrap_or(&self.path).display();
            return match self.line {
                Some(line) => write!(f, "{file}, line {line}: {why}"),
                None => write!(f, "{file}: {why}"),
            };
        }
        let count = |number: Option<u64>| number.unwrap_or_default();
        write!(f, "{} records hold", count(self.records))?;
        if count(self.first) > 1 {
            write!(f, ", from number {} on: older ones are gone", count(self.first))?;
        }
        if count(self.incidents) > 0 {
            write!(f, "; {} say that the log was torn, cut or lost some", count(self.incidents))?;
        }
        write!(f, "\nhead {}", self.head.as_deref().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_be_read_is_a_failure() {
        let bad = || Bad::Head { path: "audit.head".into() };
        let verdict = Verdict::of(Path::new("/r"), Err(bad())).expect("a verdict");
        assert_eq!(verdict.to_string(), "/r: audit.head is damaged");
        assert!(!verdict.holds);
        let source = std::io::ErrorKind::NotFound.into();
        let unreadable = Bad::Unreadable { path: "/r".into(), source };
        assert!(Verdict::of(Path::new("/r"), Err(unreadable)).is_err());
    }
}
