//! What the tests share: a runtime in a directory of its own, in-process nodes, real processes
//! that do as they are told, what `/proc` says of them, and a watchdog.
#![deny(missing_docs)]
#![allow(clippy::missing_panics_doc)] // panicking is how a test says that it failed

mod actor;
mod between;
pub mod duet;
mod house;
pub mod ipcd;
pub mod ledger;
mod liar;
pub mod post;
pub mod proc;
pub mod services;
mod watchdog;
mod world;

pub use actor::Actor;
pub use between::Between;
pub use house::House;
pub use ipcd::Ipcd;
pub use liar::Liar;
pub use watchdog::{Watchdog, wait_for, wait_until};
pub use world::{World, serving};

ipc::include_proto! {
    /// What `ipc-build` makes of `proto/probe.proto`, under the strictest lints there are.
    #[warn(clippy::pedantic, clippy::must_use_candidate, clippy::missing_errors_doc)]
    pub mod probe = "tests.probe";
}

/// Longer than anything here takes: a deadline that is not the subject of a test.
pub const LONG: std::time::Duration = std::time::Duration::from_secs(30);

/// Makes a payload in which every byte depends on its place. It never begins with `!`.
pub fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n * 31 + n / 251) as u8).collect()
}

/// Makes a runtime of tasks that call: what ends their calls is the loop of the server, which runs
/// in it.
pub fn caller_of_tasks(node: &ipc::Node) -> (tokio::runtime::Runtime, ipc::Server) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_io().build();
    let runtime = runtime.expect("a runtime");
    let server = node.server().expect("a server");
    let port = server.clone();
    runtime.spawn(async move { ipc::tokio::serve(&port, |_| ()).await });
    (runtime, server)
}
