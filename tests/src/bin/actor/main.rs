//! A process for tests: a runtime, or a node that does what stdin says, a line at a time, and
//! answers with lines on stdout.
//!
//! ```text
//! actor kernel DIRECTORY
//! actor node DIRECTORY [spin=never|learned|always] [cells=N] [slab=N] [max=BYTES]
//!                      [bulk=BYTES] [outstanding=N] [rekey=RECORDS] [share=yes|no]
//!                      [encrypt=yes|no] [ballast=MIB]
//! actor idle
//! ```
//!
//! It ends when stdin does, or with the process that started it.

mod alone;
mod commands;
mod crowd;
mod events;
mod famine;
mod fork;
mod handler;
mod once;
mod raw;
mod regions;
mod tasks;

use std::{io::Read, path::PathBuf};

use ipc::{Config, Geometry, Spin};
use kernel_services::Kernel;
use nix::sys::{
    prctl,
    resource::{Resource, getrlimit, setrlimit},
    signal::Signal,
};

fn main() {
    prctl::set_pdeathsig(Signal::SIGKILL).expect("a valid signal");
    raise_descriptor_limit();
    let mut arguments = std::env::args().skip(1);
    let role = arguments.next().expect("a role");
    if role == "idle" {
        say("idle");
        return wait_for_end();
    }
    say(&format!("pid {}", std::process::id()));
    let directory = PathBuf::from(arguments.next().expect("a runtime directory"));
    match role.as_str() {
        "kernel" => {
            let kernel = Kernel::embedded(&directory).expect("a runtime");
            say("ready");
            wait_for_end();
            kernel.stop();
        }
        "node" => {
            let mut config = Config { runtime_dir: Some(directory), ..Config::default() };
            arguments.for_each(|argument| set(&mut config, &argument));
            commands::obey(&config);
        }
        other => panic!("no such role: {other}"),
    }
}

/// A crowd of clients costs its process, its server and its runtime several descriptors each.
fn raise_descriptor_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("a soft limit may rise to the hard one");
}

/// Reads and drops stdin until its end, or until it says `quit`.
fn wait_for_end() {
    let mut input = std::io::stdin().lock();
    let mut buffer = [0; 64];
    while let Ok(length) = input.read(&mut buffer)
        && length > 0
        && !buffer[..length].starts_with(b"quit")
    {}
}

fn set(config: &mut Config, argument: &str) {
    let (key, value) = argument.split_once('=').expect("key=value");
    let number = || value.parse::<u32>().expect("a number");
    let geometry = config.geometry;
    match key {
        "spin" => {
            config.spin = match value {
                "never" => Spin::Never,
                "learned" => Spin::Learned,
                "always" => Spin::Always,
                other => panic!("no such spin: {other}"),
            }
        }
        "cells" => {
            config.geometry = Geometry::new(number(), geometry.ordinary_slab()).expect("in range");
        }
        "slab" => {
            config.geometry = Geometry::new(geometry.ordinary_cells(), number()).expect("in range");
        }
        "max" => config.max_payload = u64::from(number()),
        "bulk" => config.max_bulk = u64::from(number()),
        "share" => config.share_memory = value == "yes",
        "encrypt" => config.encrypt = value == "yes",
        // Touched, so that the kernel has it to tear down.
        "ballast" => std::mem::forget(vec![1_u8; (number() as usize) << 20]),
        "rekey" => config.rekey_records = number(),
        "outstanding" => config.outstanding = number(),
        other => panic!("no such option: {other}"),
    }
}

/// Writes one line to stdout, in one piece and without a lock: any thread, and any child.
fn say(line: &str) {
    let line = format!("{line}\n");
    nix::unistd::write(std::io::stdout(), line.as_bytes()).expect("somebody listens");
}
