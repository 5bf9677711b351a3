//! The runtime as a program: arguments, signals, one line when ready.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use ipc::trace::Collector;
use kernel_services::{
    Kernel, KernelError,
    console::say,
    journal::{self, Format},
    monitor::{ExportError, Exporter},
    node::Listener,
    system::{self, System, SystemError},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use tracing::level_filters::LevelFilter;

/// Introduces processes to each other so that they can talk through shared memory.
///
/// Runs in the foreground until SIGTERM or SIGINT, serves processes of its own user only, and
/// carries none of their messages: open channels outlive it.
#[derive(Debug, Parser)]
#[allow(clippy::doc_markdown)] // the comments are the help text
#[command(name = "ipcd", version, after_help = AFTER_HELP)]
struct Arguments {
    /// Where the socket, the ids, the key and the audit log stand; made (mode 0700) if missing
    ///
    /// Without it: $IPC_RUNTIME_DIR, else $XDG_RUNTIME_DIR/ipc, else /run/ipc.
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,

    /// A node file: start and supervise the services that it describes
    ///
    /// `docs/supervision.md` explains it, `examples/node.toml` shows every key. SIGHUP reads it
    /// again; SIGTERM stops all of its services, and ipcd with them.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Serve metrics (OpenMetrics) at unix:PATH, a socket of mode 0600, or 127.0.0.1:PORT
    ///
    /// In place of what the node file says. `docs/monitoring.md` lists them.
    #[arg(long, value_name = "WHERE")]
    metrics: Option<Listener>,

    /// Send spans of what is done to a collector, by OTLP over HTTP: http://HOST:PORT
    ///
    /// Connections, introductions, starts of services and reloads, as parts of the traces that they
    /// belong to. In place of what the node file says. `docs/monitoring.md` explains it.
    #[arg(long, value_name = "URL")]
    otlp: Option<Collector>,

    /// Tell on stderr what is done: off, error, warn, info, debug or trace
    ///
    /// At info: connections, introductions, starts of services and reloads, when they end, with the
    /// ids of the traces that they are part of. Without it: $IPCD_LOG, else off.
    #[arg(long, value_name = "LEVEL")]
    log: Option<LevelFilter>,

    /// Make all lines on stderr text, or one JSON object each
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: Format,
}

const AFTER_HELP: &str = "\
Examples:
  ipcd                               serve the default directory
  ipcd --runtime-dir /tmp/demo       serve another; clients need IPC_RUNTIME_DIR=/tmp/demo
  ipcd --config node.toml            start a system of services, and keep it up
  ipcd --metrics 127.0.0.1:9464      let Prometheus scrape what the services count
  ipcd --log info --log-format json  tell of connections, channels, starts and reloads
  ipcd --otlp http://127.0.0.1:4318  send spans of the same to a collector of OpenTelemetry

When it can be connected to, it writes one line to stderr:
  ipcd: ready: /run/user/1000/ipc/ipcd.sock (pid 4711)

Exit codes:
  0  stopped by SIGTERM or SIGINT; the socket is removed
  1  it could not start or go on; the reason, and what to do, is on stderr
  2  the arguments are wrong";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let of_environment = std::env::var("IPCD_LOG").ok().and_then(|it| it.parse().ok());
    let most = arguments.log.or(of_environment).unwrap_or(LevelFilter::OFF);
    if let Err(error) = journal::tell(most, arguments.log_format) {
        say(&format!("nothing will be told of what is done: {error}"));
    }
    let runtime_dir = arguments.runtime_dir.unwrap_or_else(ipc::runtime_dir);
    let ended = match arguments.config {
        Some(config) => supervise(&config, &runtime_dir, arguments.metrics, arguments.otlp),
        None => run(&runtime_dir, arguments.metrics, arguments.otlp.as_ref()),
    };
    journal::finish();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Explains why the program ends with exit code 1.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Start(#[from] KernelError),
    #[error(transparent)]
    System(#[from] SystemError),
    #[error(transparent)]
    Metrics(#[from] ExportError),
    #[error("cannot wait for signals: {0}")]
    Signals(Errno),
    #[error("the runtime's thread ended by itself; please report it, and start ipcd again")]
    Ended,
}

/// Runs a system of services until it was told to stop, and has.
fn supervise(
    config: &Path,
    runtime_dir: &Path,
    metrics: Option<Listener>,
    otlp: Option<Collector>,
) -> Result<(), Failure> {
    raise_descriptor_limit();
    let signals = system::signals()?;
    let mut system = System::open(config, runtime_dir, signals)?;
    system.serve_metrics(metrics)?;
    system.send_spans(otlp);
    system.warnings().for_each(|warning| say(&warning));
    say(&format!("ready: {} (pid {})", system.socket_path().display(), std::process::id()));
    Ok(system.run()?)
}

fn run(
    runtime_dir: &Path,
    metrics: Option<Listener>,
    otlp: Option<&Collector>,
) -> Result<(), Failure> {
    raise_descriptor_limit();
    // Before the runtime's thread starts, so that it cannot be chosen to die of them.
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        mask.add(signal);
    }
    mask.thread_block().map_err(Failure::Signals)?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC).map_err(Failure::Signals)?;
    if let Err(error) = journal::export(otlp) {
        say(&format!("spans go to no collector: {error}"));
    }
    let kernel = Kernel::recorded(runtime_dir)?;
    let _exporter = metrics.map(|it| Exporter::start(&it, runtime_dir)).transpose()?;
    say(&format!("ready: {} (pid {})", kernel.socket_path().display(), std::process::id()));
    wait_for_end(&kernel, &signals)?;
    kernel.stop();
    Ok(())
}

/// Returns on SIGTERM and SIGINT. SIGHUP asks to read the configuration again, and there is none.
fn wait_for_end(kernel: &Kernel, signals: &SignalFd) -> Result<(), Failure> {
    loop {
        let mut fds = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(kernel.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(Failure::Signals(errno)),
        }
        let [signalled, ended] = fds.map(|fd| fd.any().unwrap_or(true));
        if signalled {
            let signal = signals.read_signal().map_err(Failure::Signals)?;
            if signal.is_some_and(|it| it.ssi_signo != Signal::SIGHUP as u32) {
                return Ok(());
            }
        } else if ended {
            return Err(Failure::Ended);
        }
    }
}

/// A connected process costs one descriptor, and many systems allow 1024 unless asked for more.
/// Failing that, newcomers wait until others leave.
fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
