//! The performance monitor: what every service says and shows of itself, as metrics.
//!
//! ```text
//!   boards (shared memory) ─┐
//!   registry's list ────────┼─▶ Monitor::look ─▶ Sight ─▶ render ─▶ serve ─▶ a scraper
//!   supervisor, /proc ──────┘       I/O           pure     pure      HTTP
//! ```
//! It is a client of the runtime like any other: reading costs no service and no call anything.

mod exporter;
mod http;
mod look;
mod render;

pub use exporter::{ExportError, Exporter};
pub use look::Monitor;
pub use render::{Format, render};

use ipc::{ServiceId, Stats, trace::Exported};

/// One process that serves a name, and what it counted.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// The name; of several the one that it served first.
    pub name: String,
    /// Its instance there.
    pub instance: ServiceId,
    /// What it sent and received as a client.
    pub called: Stats,
    /// What it sent and received as a server.
    pub served: Stats,
    /// Its open channels.
    pub connections: u64,
    /// What the kernel says of its process; nothing when it is gone meanwhile.
    pub process: Option<Process>,
}

/// One replica of a supervised service, whether it runs or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// Such as `api`, or `api#2` where there are more.
    pub name: String,
    /// Its service.
    pub service: String,
    /// Whether it is up, and does what it is for.
    pub is_ready: bool,
    /// Processes started after a failure.
    pub restarts: u64,
}

/// All that a look found.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// By name.
    pub services: Vec<Service>,
    /// In the order of the node file; none where nobody supervises.
    pub units: Vec<Unit>,
    /// Of a runtime that sends spans to a collector, what became of them.
    pub exported: Option<Exported>,
}

/// What the kernel says of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// Memory that is resident.
    pub resident_bytes: u64,
    /// Processor time, its own and the kernel's for it.
    pub cpu_seconds: f64,
    /// Open descriptors; nothing where they are not ours to count.
    pub open_fds: Option<u64>,
}
