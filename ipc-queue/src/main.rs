//! `ipc-queue`: keeps messages until somebody has acknowledged them.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use clap::Parser;
use ipc::{CallError, Node, NodeError, StopSignals};
use ipc_queue::{
    config::Config,
    failpoint::{At, reach},
    log::files::Writer,
    opening::{self, Opened, Unopened},
    service::Desk,
    steward::Steward,
};

/// Keeps messages of named queues until they are acknowledged.
#[derive(Debug, Parser)]
#[command(name = "ipc-queue", version)]
struct Arguments {
    /// Declares the queues (docs/queues.md)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the runtime's socket
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
}

/// Why it did not start, or stopped.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Config(String),
    #[error("cannot {what}: {errno}")]
    System { what: &'static str, errno: nix::Error },
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Unopened(#[from] Unopened),
}

fn main() -> ExitCode {
    match serve(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("ipc-queue: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until SIGTERM or SIGINT.
fn serve(arguments: &Arguments) -> Result<(), Failure> {
    // First of all, so that every thread that comes later inherits the mask.
    let signals = StopSignals::block()?;
    let config = match &arguments.config {
        Some(path) => Config::read(path).map_err(Failure::Config)?,
        None => Config::default(),
    };
    let ipc_config =
        ipc::Config { runtime_dir: arguments.runtime_dir.clone(), ..ipc::Config::default() };
    let node = Node::connect(&ipc_config)?;
    signals.forward(node.interrupter())?;

    let (service, may_use_ring) = (config.service.clone(), config.io_uring);
    let Opened { house, journals, remarks } = opening::open(config, &node)?;
    for remark in remarks {
        eprintln!("ipc-queue: {remark}");
    }
    reach(At::Recovered);
    let desk = Arc::new(Desk::new(house));
    let writer = Writer::new(may_use_ring);
    if !journals.is_empty() {
        eprintln!("ipc-queue: journals are written by {}", writer.means());
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut steward = Steward::new(Arc::clone(&desk), writer, journals, Arc::clone(&stop));
    let steward = thread::Builder::new()
        .name("steward".to_owned())
        .spawn(move || steward.run())
        .map_err(|error| Failure::System {
            what: "start the steward",
            errno: nix::Error::try_from(error).unwrap_or(nix::Error::UnknownErrno),
        })?;

    let server = node.server()?;
    let listener = Arc::clone(&desk);
    server.on_gone(move |channel| listener.gone(channel));
    server.register(&service, 0)?;
    eprintln!("ipc-queue: ready: serving {service:?} (pid {})", std::process::id());
    let outcome = server.run(|request| desk.handle(request));
    stop.store(true, Ordering::Release);
    desk.wake_steward();
    // Whoever was not answered sends again.
    let _ = steward.join();
    match outcome {
        Ok(()) | Err(CallError::Canceled) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
