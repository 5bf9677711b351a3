//! `ipctl doctor`: what does this machine give libipc, and what does libipc do about the rest?

mod features;
mod leftovers;
mod machine;
mod runtime;

use std::fmt;

use clap::Args;
use ipc::Config;
use serde::Serialize;

use crate::{
    failure::Failure,
    output::Output,
    table::{Align, Table},
};

/// Check what libipc needs: the kernel's features, limits, the runtime.
///
/// Run it as the program that does not work runs: as that user, in that container. What the kernel
/// lacks, or a sandbox denies, is tried here, not looked up.
#[derive(Args)]
#[command(verbatim_doc_comment, after_long_help = HELP)]
pub(crate) struct Arguments {}

const HELP: &str = "\
States:
  ok        as it should be
  fallback  missing, and something else is used instead; what that costs stands below
  unused    libipc does not need it
  absent    no runtime answers yet
  failed    libipc cannot work until this is changed

Exit status:
  0  libipc works here, be it with fallbacks
  1  something failed
  3  all is well but that no runtime answers

Examples:
  ipctl doctor
  ipctl doctor --json | jq -r '.checks[] | select(.state != \"ok\") | .name, .hint'
  docker exec node ipctl doctor       does the container's seccomp profile deny something?";

/// Prints the report; gives the exit status.
pub(crate) fn run(_: &Arguments, config: &Config, output: Output) -> Result<u8, Failure> {
    let release = machine::release();
    let mut checks = machine::checks(&release);
    checks.extend(features::checks(ipc::features(), &release));
    checks.push(features::landlock(&kernel_services::process::sandbox_gaps()));
    checks.push(features::seccomp(&machine::read("/proc/sys/kernel/seccomp/actions_avail")));
    checks.push(features::cgroup(&kernel_services::cgroup::gaps()));
    checks.extend(runtime::checks(config));
    let report = Report::new(checks);
    output.show(&report)?;
    Ok(report.verdict.exit_code())
}

/// How one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Unused,
    Fallback,
    Absent,
    Failed,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Unused => "unused",
            State::Fallback => "fallback",
            State::Absent => "absent",
            State::Failed => "failed",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    /// What is there.
    found: String,
    /// What is used instead.
    instead: Option<&'static str>,
    /// What that costs.
    cost: Option<&'static str>,
    /// What can be done.
    hint: Option<String>,
}

impl Check {
    fn new(name: &'static str, state: State, found: impl Into<String>) -> Check {
        Check { name, state, found: found.into(), instead: None, cost: None, hint: None }
    }

    fn fallback(
        name: &'static str,
        found: impl Into<String>,
        instead: &'static str,
        cost: &'static str,
    ) -> Check {
        let check = Check::new(name, State::Fallback, found);
        Check { instead: Some(instead), cost: Some(cost), ..check }
    }

    fn hint(self, hint: impl Into<String>) -> Check {
        Check { hint: Some(hint.into()), ..self }
    }
}

/// What all checks come to: the worst of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Works,
    Fallbacks,
    Absent,
    Failed,
}

impl Verdict {
    fn exit_code(self) -> u8 {
        match self {
            Verdict::Works | Verdict::Fallbacks => 0,
            Verdict::Failed => 1,
            Verdict::Absent => 3,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Verdict::Works => "libipc works here",
            Verdict::Fallbacks => "libipc works here, with fallbacks",
            Verdict::Absent => "libipc can work here, but no runtime answers",
            Verdict::Failed => "libipc cannot work here",
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    verdict: Verdict,
    checks: Vec<Check>,
}

impl Report {
    fn new(checks: Vec<Check>) -> Report {
        let worst = checks.iter().map(|check| check.state).max().unwrap_or(State::Ok);
        let verdict = match worst {
            State::Ok | State::Unused => Verdict::Works,
            State::Fallback => Verdict::Fallbacks,
            State::Absent => Verdict::Absent,
            State::Failed => Verdict::Failed,
        };
        Report { verdict, checks }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = [("CHECK", Align::Left), ("STATE", Align::Left), ("FOUND", Align::Left)];
        let mut table = Table::new(columns);
        for check in &self.checks {
            let (name, state) = (check.name.to_owned(), check.state.name().to_owned());
            table.row([name, state, check.found.clone()]);
        }
        table.fmt(f)?;
        for check in self.checks.iter().filter(|check| check.state > State::Unused) {
            writeln!(f, "\n{}", check.name)?;
            let remarks = [("instead", check.instead), ("cost", check.cost)];
            for (what, text) in remarks.into_iter().chain([("hint", check.hint.as_deref())]) {
                if let Some(text) = text {
                    writeln!(f, "  {what:<7}  {text}")?;
                }
            }
        }
        writeln!(f, "\n{}", self.verdict.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_check_decides() {
        let of = |states: &[State]| {
            let checks = states.iter().map(|&state| Check::new("a", state, ""));
            Report::new(checks.collect()).verdict
        };
        assert_eq!(of(&[State::Ok, State::Unused]), Verdict::Works);
        assert_eq!(of(&[State::Fallback, State::Ok]), Verdict::Fallbacks);
        assert_eq!(of(&[State::Fallback, State::Absent]), Verdict::Absent);
        assert_eq!(of(&[State::Failed, State::Absent, State::Ok]), Verdict::Failed);
    }

    #[test]
    fn the_exit_status_tells_whether_it_works() {
        let verdicts = [Verdict::Works, Verdict::Fallbacks, Verdict::Failed, Verdict::Absent];
        assert_eq!(verdicts.map(Verdict::exit_code), [0, 0, 1, 3]);
    }

    #[test]
    fn people_read_below_the_table_what_is_not_well() {
        let report = Report::new(vec![
            Check::new("kernel", State::Ok, "Linux 6.18"),
            Check::new("io_uring", State::Unused, "there").hint("never shown"),
            Check::fallback("pidfd", "not there", "sockets", "time").hint("upgrade"),
        ]);
        let lines = [
            "CHECK     STATE     FOUND",
            "kernel    ok        Linux 6.18",
            "io_uring  unused    there",
            "pidfd     fallback  not there",
            "",
            "pidfd",
            "  instead  sockets",
            "  cost     time",
            "  hint     upgrade",
            "",
            "libipc works here, with fallbacks",
            "",
        ];
        assert_eq!(report.to_string(), lines.join("\n"));
    }
}
