//! The performance monitor: what every service says and shows of itself, as metrics.
//!
//! ```text
//!   boards (shared memory) ─┐
//!   registry's list ────────┼─▶ Monitor::look ─▶ [Service] ─▶ render ─▶ serve ─▶ a scraper
//!   /proc ──────────────────┘       I/O            pure       pure      HTTP
//! ```
//! It is a client of the runtime like any other: reading costs no service and no call anything.

mod http;
mod look;
mod render;

pub use http::{Door, serve};
pub use look::Monitor;
pub use render::{Format, render};

use ipc::{ServiceId, Stats};

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
    /// How often it was started again, where somebody supervises it.
    pub restarts: Option<u64>,
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
