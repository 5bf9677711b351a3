//! `ipctl`: asks a runtime how it is, who serves what, and how fast.
//!
//! One file per subcommand; each makes an answer that is a table for people and JSON for programs.

mod audit;
mod bench;
mod call;
mod completions;
mod doctor;
mod events;
mod failover;
mod failure;
mod logs;
mod ls;
mod output;
mod payload;
mod ping;
mod policy;
mod profile;
mod queues;
mod regions;
mod service;
mod sessions;
mod sight;
mod status;
mod steer;
mod supervised;
mod table;
mod top;
mod trace;
mod tree;
mod units;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use output::Output;
use steer::Verb;

/// Looks into a running libipc runtime: who serves what, does it answer, how fast is it.
#[derive(Parser)]
#[command(name = "ipctl", version, arg_required_else_help = true, after_long_help = HELP)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const HELP: &str = "\
Examples:
  ipctl doctor                    does this machine have what libipc needs?
  ipctl ping                      is the runtime up?
  ipctl ls                        who serves which name?
  ipctl ping echo                 does the loop of this service answer?
  ipctl call echo hello           send five bytes, print the answer
  ipctl bench echo                calls per second, and how long each takes
  ipctl status                    how are the services that ipcd supervises?
  ipctl restart api               stop one of them, and start it again
  ipctl logs api -f               what it writes, as it writes it
  ipctl top                       what processes and channels do, live
  ipctl sessions                  which channels are encrypted, since when?
  ipctl profile echo              where the calls to a service spend their time
  ipctl trace api                 which calls its requests lead to
  ipctl policy check service:api name:store call    may it, and which rule says so?
  ipctl regions                   which memory is shared, and who has it?
  ipctl failover history          which names changed hands, and why?
  ipctl queues                    what do the reliable queues hold?
  ipctl audit verify              is the record of who did what whole?
  ipctl --json ls | jq -r '.[].name'

Exit status:
  0  done
  1  failed; one line on stderr says why
  2  the command line is wrong
  3  no runtime answers: start `ipcd`, or name its directory with --runtime-dir
  4  nobody serves that name, or no service, group or unit has it
  5  no answer in time
  6  `ipctl status`: a unit is failed; `policy check`: denied; `audit verify`: it does not hold

With --json everything is on stdout, one object or array to a line; a failure is
{\"error\":{\"name\":\"IPC_ENOENT\",\"code\":-4,\"message\":\"…\"}}, with the numbers of ipc.h.

Durations are a number and a unit: 500us, 20ms, 1.5s, 2m, 1h.";

const DIRECTORY: &str = "\
Directory of the runtime's socket \
[default: $IPC_RUNTIME_DIR, else $XDG_RUNTIME_DIR/ipc, else /run/ipc]";

#[derive(Args)]
struct Global {
    #[arg(long, global = true, value_name = "DIR", help = DIRECTORY,
          help_heading = "Global options", value_hint = clap::ValueHint::DirPath)]
    runtime_dir: Option<PathBuf>,
    /// Answer in JSON, for programs
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    Doctor(doctor::Arguments),
    Ping(ping::Arguments),
    #[command(visible_alias = "list")]
    Ls(ls::Arguments),
    Call(call::Arguments),
    Bench(bench::Arguments),
    Status(status::Arguments),
    /// Start a supervised service, group or unit, and wait until it is ready
    #[command(after_long_help = steer::START)]
    Start(steer::Named),
    /// Stop a supervised service, group or unit for good, and wait until it is down
    #[command(after_long_help = steer::STOP)]
    Stop(steer::Named),
    /// Stop and start a supervised service, group or unit, and wait until it is ready
    #[command(after_long_help = steer::RESTART)]
    Restart(steer::Named),
    Reload(steer::Reload),
    Tree(tree::Arguments),
    Logs(logs::Arguments),
    Top(top::Arguments),
    Sessions(sessions::Arguments),
    Profile(profile::Arguments),
    Trace(trace::Arguments),
    Events(events::Arguments),
    Policy(policy::Arguments),
    Queues(queues::Arguments),
    Audit(audit::Arguments),
    Regions(regions::Arguments),
    Failover(failover::Arguments),
    Completions(completions::Arguments),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.global.json);
    let config = ipc::Config { runtime_dir: cli.global.runtime_dir, ..ipc::Config::default() };
    // What is asked of the runtime is part of the trace that this command is, as W3C has it of
    // processes.
    let trace = std::env::var("TRACEPARENT").ok().and_then(|it| it.parse().ok());
    let _scope = trace.map(ipc::trace::Context::enter);
    let outcome = match cli.command {
        Command::Doctor(arguments) => doctor::run(&arguments, &config, output),
        Command::Ping(arguments) => ping::run(&arguments, &config, output).map(done),
        Command::Ls(arguments) => ls::run(&arguments, &config, output).map(done),
        Command::Call(arguments) => call::run(&arguments, &config, output).map(done),
        Command::Bench(arguments) => bench::run(&arguments, &config, output).map(done),
        Command::Status(arguments) => status::run(&arguments, &config, output),
        Command::Start(named) => steer::run(Verb::Start, &named, &config, output).map(done),
        Command::Stop(named) => steer::run(Verb::Stop, &named, &config, output).map(done),
        Command::Restart(named) => steer::run(Verb::Restart, &named, &config, output).map(done),
        Command::Reload(arguments) => steer::reload(&arguments, &config, output).map(done),
        Command::Tree(arguments) => tree::run(&arguments, &config, output).map(done),
        Command::Logs(arguments) => logs::run(&arguments, &config, output).map(done),
        Command::Queues(arguments) => queues::run(&arguments, &config, output).map(done),
        Command::Top(arguments) => top::run(&arguments, &config, output).map(done),
        Command::Sessions(arguments) => sessions::run(&arguments, &config, output).map(done),
        Command::Profile(arguments) => profile::run(&arguments, &config, output).map(done),
        Command::Trace(arguments) => trace::run(&arguments, &config, output).map(done),
        Command::Events(arguments) => events::run(&arguments, &config, output).map(done),
        Command::Policy(arguments) => policy::run(&arguments, &config, output),
        Command::Audit(arguments) => audit::run(&arguments, &config, output),
        Command::Regions(arguments) => regions::run(&arguments, &config, output).map(done),
        Command::Failover(arguments) => failover::run(&arguments, &config, output).map(done),
        Command::Completions(arguments) => completions::run(&arguments).map(done),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        // `ipctl ls | head -1` got what it wanted.
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            output.fail(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// The exit status of what did as it was told.
fn done((): ()) -> u8 {
    0
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_teaches_by_example() {
        let mut command = Cli::command();
        command.build();
        for subcommand in command.get_subcommands_mut().filter(|it| it.get_name() != "help") {
            let help = subcommand.render_long_help().to_string();
            assert!(help.contains("Examples:"), "{} has no examples", subcommand.get_name());
        }
    }

    #[test]
    fn global_options_go_before_or_after_the_subcommand() {
        for line in ["ipctl --json --runtime-dir /r ls", "ipctl ls --json --runtime-dir /r"] {
            let cli = Cli::try_parse_from(line.split(' ')).expect("a correct command line");
            assert!(cli.global.json);
            assert_eq!(cli.global.runtime_dir, Some(PathBuf::from("/r")));
        }
    }

    #[test]
    fn wrong_command_lines_are_refused() {
        for line in [
            "ipctl",
            "ipctl nonsense",
            "ipctl call",
            "ipctl call echo hello --text again",
            "ipctl call echo --hex abc",
            "ipctl call echo --raw --json",
            "ipctl call echo --raw --one-way",
            "ipctl call echo --timeout 5",
            "ipctl ping --count 3",
            "ipctl ping --wait 3s",
            "ipctl ping echo --count 0",
            "ipctl bench echo --seconds 0",
            "ipctl bench echo --batch 8",
            "ipctl status api web",
            "ipctl status a/b",
            "ipctl start",
            "ipctl stop api web",
            "ipctl restart api --timeout 5",
            "ipctl reload api",
            "ipctl tree api",
            "ipctl logs",
            "ipctl logs api -n many",
            "ipctl logs api -n -1",
            "ipctl logs api --raw --json",
            "ipctl top echo",
            "ipctl top --interval 1",
            "ipctl sessions echo",
            "ipctl profile",
            "ipctl trace",
            "ipctl trace api --every 0ms",
            "ipctl profile echo --seconds 0",
            "ipctl policy",
            "ipctl policy check service:api name:store",
            "ipctl audit",
            "ipctl audit show --kind nope",
            "ipctl regions 7",
            "ipctl events watch",
            "ipctl events prices",
            "ipctl audit verify --head abc",
        ] {
            let refused = Cli::try_parse_from(line.split(' ')).err().map(|error| error.exit_code());
            assert_eq!(refused, Some(2), "{line}");
        }
    }
}
