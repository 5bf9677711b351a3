//! The same measurements from C: `c/client.c`, a program of its own, linked to libipc.so.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::calls::{CALL_SIZES, ONE_WAY_SIZES};
use crate::floor::Setting;
use crate::measure::{Latency, Throughput};
use crate::report::Ruler;

/// Names the environment variable with the path of the built `c/client.c`; without it there are no
/// rows from C.
pub const CLIENT: &str = "IPC_BENCH_C_CLIENT";

#[derive(Deserialize)]
struct Times {
    p50: u64,
    p95: u64,
    p99: u64,
    min: u64,
    mean: f64,
    n: u64,
}

#[derive(Deserialize)]
struct Rate {
    items: u64,
    seconds: f64,
}

/// Measures `ipc_call_into` and `ipc_call` to a service; nothing without the program.
///
/// # Errors
/// Those of the program.
pub fn calls(
    setting: &Setting,
    directory: &Path,
    service: &str,
    ruler: &mut Ruler<'_>,
) -> io::Result<()> {
    let Some(program) = env::var_os(CLIENT) else { return Ok(()) };
    for function in ["call_into", "call"] {
        for size in CALL_SIZES {
            ruler.latency(&format!("ipc_{function}, C"), Some(size), || {
                let told = [function, service, &size.to_string()];
                let line = run(&program, setting, directory, &told)?;
                let Times { p50, p95, p99, min, mean, n } = serde_json::from_str(&line)?;
                Ok(Latency { p50, p95, p99, min, mean, n })
            })?;
        }
    }
    Ok(())
}

/// Measures one-way messages to a service's sink; nothing without the program.
///
/// # Errors
/// Those of the program.
pub fn one_ways(
    setting: &Setting,
    directory: &Path,
    service: &str,
    ruler: &mut Ruler<'_>,
) -> io::Result<()> {
    let Some(program) = env::var_os(CLIENT) else { return Ok(()) };
    for size in ONE_WAY_SIZES {
        ruler.throughput("one-way, C", Some(size), || {
            let told = ["one_way", service, &size.to_string()];
            let Rate { items, seconds } =
                serde_json::from_str(&run(&program, setting, directory, &told)?)?;
            Ok(Throughput { items, seconds })
        })?;
    }
    Ok(())
}

fn run(
    program: &OsStr,
    setting: &Setting,
    directory: &Path,
    arguments: &[&str],
) -> io::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .arg(setting.plan.measure.as_secs_f64().to_string())
        .arg(setting.placement.here.to_string())
        .env("IPC_RUNTIME_DIR", directory)
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("the C client ended with {}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
