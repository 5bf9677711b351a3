//! `echo`: an example of a whole service process.
//!
//! It serves two names on one loop: NAME answers each request with its own payload, NAME.sink
//! counts the one-way messages that came so far and answers each request with that count. A
//! service of your own replaces `machine.rs`; what is here stays.

mod arguments;
mod machine;
mod pin;

use std::process::ExitCode;

use clap::Parser;
use ipc::{CallError, Config, Node, NodeError, StopSignals, control::SERVICE_IDEMPOTENT};

use arguments::Arguments;
use machine::{Answer, Machine};

/// Why the service did not start, or stopped.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot {what}: {errno}")]
    System { what: &'static str, errno: nix::Error },
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Call(#[from] CallError),
}

fn main() -> ExitCode {
    match serve(&Arguments::parse()) {
        Ok(machine) => {
            eprintln!("echo: stopped after {machine}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("echo: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until SIGTERM or SIGINT.
fn serve(arguments: &Arguments) -> Result<Machine, Failure> {
    // First of all, so that every thread that comes later inherits the mask.
    let signals = StopSignals::block()?;
    let config = Config {
        runtime_dir: arguments.runtime_dir.clone(),
        spin: arguments.spin.into(),
        ..Config::default()
    };
    let node = Node::connect(&config)?;
    signals.forward(node.interrupter())?;

    let server = node.server()?;
    let name = &arguments.name;
    server.register(name, SERVICE_IDEMPOTENT)?;
    let sink = server.register(&format!("{name}.sink"), 0)?;
    if let Some(cpu) = arguments.cpu {
        pin::this_thread(cpu)?;
    }
    eprintln!("echo: ready: serving {name:?} (pid {})", std::process::id());

    let mut machine = Machine::default();
    let outcome = server.run(|request| {
        let to_sink = request.dest_name() == sink.name;
        let sent = match machine.take(to_sink, request.is_one_way(), request.payload()) {
            Answer::None => Ok(()),
            Answer::Payload(payload) => request.reply(payload),
            Answer::Count(bytes) => request.reply(&bytes),
        };
        if let Err(error) = sent {
            // The caller is gone or does not read; the next one is served all the same.
            eprintln!("echo: an answer to {} was not sent: {error}", request.source());
        }
    });
    match outcome {
        Ok(()) | Err(CallError::Canceled) => Ok(machine),
        Err(error) => Err(error.into()),
    }
}
