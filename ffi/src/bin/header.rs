//! Writes `include/ipc.h` from the sources of this crate. Run it by `scripts/header.sh`.

use std::{env, error::Error, path::Path, process::ExitCode};

use cbindgen::{Builder, Config};

/// In the order in which the header shows them.
const SOURCES: [&str; 25] = [
    "error.rs",
    "enums.rs",
    "types.rs",
    "runtime.rs",
    "service.rs",
    "call.rs",
    "response.rs",
    "send.rs",
    "loan.rs",
    "receive.rs",
    "message.rs",
    "region.rs",
    "event.rs",
    "rights.rs",
    "queue.rs",
    "failover.rs",
    "demoted.rs",
    "slice.rs",
    "envelope.rs",
    "poll.rs",
    "stats.rs",
    "trace.rs",
    "session.rs",
    "info.rs",
    "transport.rs",
];

fn main() -> ExitCode {
    match write_header() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ipc-header: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write_header() -> Result<(), Box<dyn Error>> {
    let target = env::args_os().nth(1).ok_or("usage: ipc-header FILE")?;
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = Config::from_file(crate_dir.join("../cbindgen.toml"))?;
    let mut builder = Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(crate_dir.join("src").join(source));
    }
    builder.generate()?.write_to_file(target);
    Ok(())
}
