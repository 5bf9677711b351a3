//! `ipctl logs`: what services have written, and what they write.

mod file;
mod line;

use std::io;
use std::os::fd::AsFd;

use clap::{Args, ValueHint};
use ipc::Config;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
};

use crate::{
    failure::Failure,
    output::{self, Output},
    supervised::{self, Supervisor, Unit},
};
use file::LogFile;
pub(crate) use line::pretty;
use line::{Form, Lines};

/// Between two looks at the files, in milliseconds.
const LOOK_AGAIN_MS: u8 = 100;

/// Show what services have written to their logs.
///
/// The replicas of a service share its log. With several names each line begins with the name of
/// its service. The files are read from the disk: what was rotated counts, too, and -f goes on
/// over rotations, and over the end of ipcd.
#[derive(Args)]
#[command(verbatim_doc_comment, after_long_help = HELP)]
pub(crate) struct Arguments {
    /// Services, groups, or units such as api#2
    #[arg(required = true, value_name = "NAME", value_parser = supervised::name,
          value_hint = ValueHint::Other)]
    names: Vec<String>,
    /// Go on with what is written from now on, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// How many lines to show of what was written
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(0..=1_000_000),
          value_hint = ValueHint::Other)]
    lines: u32,
    /// Write lines byte for byte, as the services did
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

const HELP: &str = "\
Examples:
  ipctl logs api                   the last ten lines
  ipctl logs api -n 200
  ipctl logs api -f                and what comes, until Ctrl-C
  ipctl logs api store -f          of two services
  ipctl logs api -n 1000 --raw | grep -i error
  ipctl logs api --json | jq -r .line

A line that is a JSON object is shown as its time, level and message, then its other fields.
Characters that would steer the terminal are spelled out. With --raw neither is done. With --json
each line is an object of \"service\" and \"line\".";

pub(crate) fn run(arguments: &Arguments, config: &Config, output: Output) -> Result<(), Failure> {
    let units = Supervisor::connect(config)?.units()?;
    let form = match (output.is_json(), arguments.raw) {
        (true, _) => Form::Json,
        (false, true) => Form::Raw,
        (false, false) => Form::Pretty,
    };
    let mut logs = open(&units, &arguments.names, form)?;
    for log in &mut logs {
        log.show_last(arguments.lines as usize, arguments.follow, output)?;
    }
    while arguments.follow && is_read(LOOK_AGAIN_MS)? {
        for log in &mut logs {
            log.show_more()?;
        }
    }
    Ok(())
}

/// The log of a service, and how its lines are shown.
struct Log {
    service: String,
    file: LogFile,
    lines: Lines,
}

impl Log {
    fn show_last(&mut self, count: usize, follows: bool, output: Output) -> Result<(), Failure> {
        let last = self.file.last(count).map_err(|source| self.failure(source))?;
        if last.is_empty() && count > 0 {
            output.remark(&format!("{}: nothing was written yet", self.service));
        }
        let mut text = self.lines.take(&last);
        if !follows {
            text.extend(self.lines.rest());
        }
        show(&text)
    }

    fn show_more(&mut self) -> Result<(), Failure> {
        loop {
            let more = self.file.more().map_err(|source| self.failure(source))?;
            if more.is_empty() {
                return Ok(());
            }
            show(&self.lines.take(&more))?;
        }
    }

    fn failure(&self, source: io::Error) -> Failure {
        Failure::Read { path: self.file.path().display().to_string(), source }
    }
}

fn show(text: &[u8]) -> Result<(), Failure> {
    if text.is_empty() { Ok(()) } else { output::write(text) }
}

/// The logs of all that is named, each once.
fn open(units: &[Unit], names: &[String], form: Form) -> Result<Vec<Log>, Failure> {
    let mut services: Vec<(String, String)> = Vec::new();
    for name in names {
        for unit in supervised::named(units, name)? {
            if services.iter().all(|(service, _)| *service != unit.service) {
                services.push((unit.service, unit.log));
            }
        }
    }
    let several = services.len() > 1;
    let width = services.iter().map(|(service, _)| service.len()).max().unwrap_or(0);
    let log = |(service, path): (String, String)| Log {
        file: LogFile::new(path.into()),
        lines: Lines::new(&service, several.then_some(width), form),
        service,
    };
    Ok(services.into_iter().map(log).collect())
}

/// Waits a while; tells whether there still is who reads what we write.
fn is_read(ms: u8) -> Result<bool, Failure> {
    let stdout = io::stdout();
    let mut watched = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    match poll(&mut watched, ms) {
        Ok(0) | Err(Errno::EINTR) => Ok(true),
        // Nothing was asked for: what comes is that the other end is closed, or stdout itself.
        Ok(_) => Ok(false),
        Err(errno) => Err(Failure::Write(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervised::tests::unit;

    #[test]
    fn replicas_share_a_log_that_is_shown_once() {
        let mut units =
            [unit("api#1", "ready", &[]), unit("api#2", "ready", &[]), unit("store", "ready", &[])];
        for unit in &mut units {
            unit.log = format!("/logs/{}.log", unit.service);
        }
        let paths = |names: &[&str]| -> Vec<String> {
            let names: Vec<_> = names.iter().map(|&it| it.to_owned()).collect();
            let logs = open(&units, &names, Form::Raw).expect("they are there");
            logs.iter().map(|it| it.file.path().display().to_string()).collect()
        };
        assert_eq!(paths(&["api"]), ["/logs/api.log"]);
        assert_eq!(paths(&["store", "api#2", "api"]), ["/logs/store.log", "/logs/api.log"]);
        let wrong = open(&units, &["web".to_owned()], Form::Raw).map(drop).expect_err("no web");
        assert_eq!(wrong.exit_code(), 4);
    }
}
