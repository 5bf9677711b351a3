//! `ipctl top`: what processes and channels do, live.

mod figures;
mod screen;

use std::{io::IsTerminal, thread, time::Duration};

use clap::Args;
use ipc::Config;

use crate::{failure::Failure, output::Output, sight::Observer, units};
use figures::Figures;

/// Show live what processes and channels do: calls, latencies, queues, memory.
///
/// What is shown comes from memory in which each process counts its own traffic: looking costs
/// those that are looked at nothing. On a terminal the picture is renewed until you press q;
/// elsewhere, text or JSON is printed each time.
#[derive(Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Arguments {
    /// Between two looks; what is shown is the mean of that time
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = units::duration)]
    interval: Duration,
    /// Print one picture, and end
    #[arg(long)]
    once: bool,
}

const HELP: &str = "\
Columns, of the time since the last look:
  IN/S      messages that it took as a server
  OUT/S     messages that it sent as a client
  CALLS/S   requests and one-way messages on the channel
  P50, P99  of calls as their callers timed them: to the process if it serves, else its own
  DEPTH     requests that wait for their turn now
  SPIN      waits that went on beyond the first polls, of 100 messages taken
  PARK      sleeps, of 100 messages taken
  CPU       of one CPU
  MEMORY    resident
  RESTARTS  by the supervisor, after a failure

Of a channel, DEPTH is its server's; SPIN and PARK are its caller's. A dash: not known.

Keys: q ends, s sorts by the next column, space stops the picture, the arrows move it. A terminal
that is too narrow shows fewer columns; `--once` prints all of them.

Examples:
  ipctl top
  ipctl top --interval 200ms
  ipctl top --once
  ipctl top --once --json | jq '.processes[] | {name, p99_ns}'

Bytes of payloads, sums and errors are in `ipctl top --json`.";

pub(crate) fn run(arguments: &Arguments, config: &Config, output: Output) -> Result<(), Failure> {
    let mut observer = Observer::connect(config)?;
    // What came before is not of now.
    observer.look()?;
    let lives = !arguments.once && !output.is_json() && std::io::stdout().is_terminal();
    if lives {
        return screen::run(&mut observer, arguments.interval);
    }
    loop {
        thread::sleep(arguments.interval);
        output.show(&Figures::of(&observer.look()?))?;
        if arguments.once {
            return Ok(());
        }
        output.text("\n")?;
    }
}
