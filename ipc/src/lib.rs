//! Calls between processes of one Linux machine, over shared memory.
//!
//! A runtime, `ipcd`, introduces two processes to each other; from then on they talk alone. A
//! process joins it as a [`Node`]. A [`Server`] serves names in a loop, a [`Client`] calls one:
//!
//! ```no_run
//! # fn serve() -> Result<(), Box<dyn std::error::Error>> {
//! use ipc::{Config, Node};
//!
//! // The runtime is that of `$IPC_RUNTIME_DIR`, unless the configuration says otherwise.
//! let node = Node::connect(&Config::default())?;
//! let server = node.server()?;
//! server.register("echo", 0)?;
//! server.run(|request| {
//!     // A caller that is gone needs no answer.
//!     let _ = request.reply(request.payload());
//! })?;
//! # Ok(())
//! # }
//! ```
//! and, in another process,
//! ```no_run
//! # fn call() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! use ipc::{Config, Node};
//!
//! let node = Node::connect(&Config::default())?;
//! let service = node.wait_service("echo", Some(Duration::from_secs(5)))?;
//! let echo = node.client(service)?;
//! assert_eq!(echo.call(b"hello", Duration::from_secs(1))?, b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! # What else there is
//!
//! | for | look at |
//! |---|---|
//! | many calls at a time, messages without an answer | [`Client::start`], [`Client::burst`] |
//! | large messages, written where they are read | [`Client::loan`], [`View`] |
//! | typed calls, from a `.proto` file | `rpc` (feature `rpc`), and the crate `ipc-build` |
//! | news for whoever listens | [`Node::publisher`], [`Node::subscribe`], [`bus`] |
//! | work that must be done though processes die | [`queue`] |
//! | memory that others read | [`Node::create_region`], [`Node::map_region`], [`Region`] |
//! | retries, breakers, pools, rates | [`civil`] |
//! | an event loop of one's own, tasks of tokio | [`Server::fd`], `tokio` (feature `tokio`) |
//! | effects that happen once, though requests come twice | [`once`] |
//! | what happened, and how long it took | [`trace`], [`Node::stats`] |
//!
//! `docs/choosing.md` says which mechanism is for what, and each of them has a page in `docs/`.
//!
//! Every call ends exactly once: with an answer, or with an error that says what is known and
//! whether trying again is safe ([`CallError::retry`]). Each error is a sentence that says what to
//! do, and a [`Status`], the number by which C knows it.
//!
//! # Features
//!
//! None is there by default: `rpc` for typed calls, `tokio` for tasks, `compress` for messages that
//! are compressed on the way, `tracing` for spans of that crate, `otlp` for a collector of them. A
//! program depends on the crate by its path: `ipc = { path = "libipc/ipc", features = ["rpc"] }`.
#![deny(missing_docs)]
// On the hot path a frame's fields, passed through memory, are stored and loaded at different
// widths, and each such load waits for the store to retire: twice the time of a one-way message.
#![allow(clippy::inline_always, reason = "store forwarding; measured, see above")]
#![cfg_attr(loom, allow(dead_code, reason = "the models reach the protocols, not what uses them"))]

mod address;
#[cfg(all(feature = "bare", not(loom)))]
pub mod bare;
#[cfg(not(loom))]
mod board;
#[cfg(not(loom))]
mod bulk;
pub mod bus;
#[cfg(not(loom))]
mod channel;
#[cfg(not(loom))]
pub mod civil;
mod claim;
#[cfg(not(loom))]
mod client;
#[cfg(not(loom))]
mod clock;
#[cfg(not(loom))]
pub mod control;
#[cfg(not(loom))]
mod copy;
pub mod error;
#[cfg(not(loom))]
mod failover;
#[cfg(not(feature = "failpoints"))]
mod failpoint;
#[cfg(feature = "failpoints")]
pub mod failpoint;
#[cfg(not(loom))]
mod features;
#[cfg(not(loom))]
mod fork;
mod frame;
#[cfg(all(feature = "fuzzing", not(loom)))]
pub mod fuzzing;
#[cfg(not(loom))]
mod interrupt;
mod lane;
pub mod layout;
#[cfg(not(loom))]
mod life;
#[cfg(not(loom))]
mod link;
#[cfg(all(test, loom))]
mod loom_models;
mod mark;
#[cfg(not(loom))]
mod node;
#[cfg(not(loom))]
pub mod once;
#[cfg(not(loom))]
pub mod queue;
#[cfg(not(loom))]
mod region;
mod ring;
#[cfg(all(feature = "rpc", not(loom)))]
pub mod rpc;
#[cfg(not(loom))]
mod server;
#[cfg(not(loom))]
pub mod session;
#[cfg(all(feature = "simulation", not(loom)))]
pub mod simulation;
#[cfg(not(loom))]
mod slice;
#[cfg(not(loom))]
mod socket;
mod sync;
mod table;
#[cfg(all(feature = "tokio", not(loom)))]
pub mod tokio;
#[cfg(not(loom))]
pub mod trace;
mod wait;

pub use address::{Address, AddressError, MAX_PATH};
pub use error::{CallError, NodeError, PeerCorrupt, Retry, Status};
pub use lane::LaneFacts;
pub use layout::Geometry;
#[cfg(not(loom))]
pub use {
    board::{
        Board, BoardView, EndStats, Histogram, Payload, Role, SessionStats, Span, SpanKind, Stats,
    },
    bulk::{Loan, View},
    channel::Peer,
    client::{Burst, CallOptions, Client, Pending},
    control::{
        FailoverPlan, FailoverStrategy, Failure, FailureKind, HealthCheck, ProcessEnd, Standing,
    },
    features::{Features, features},
    fork::Birth,
    interrupt::{Interrupter, StopSignals},
    link::Queued,
    node::{AuthToken, Config, Heir, KernelState, Node, runtime_dir},
    region::{Pages, Region, RegionAccess, RegionError, RegionOptions, RegionRef},
    server::{Loop, Registration, Request, Retained, Server, WaitHandler, in_handler},
    slice::wake_promptly,
    socket::{Listening, Transport},
    wait::spin::Spin,
};

/// How urgent a message is. CRITICAL and HIGH travel on a ring of their own; a server handles
/// what is there by level, first in first out within each, and lets no level starve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Priority {
    /// Ahead of everything.
    Critical = 0,
    /// Ahead of everything ordinary.
    High = 1,
    /// The usual.
    #[default]
    Normal = 2,
    /// After the usual.
    Low = 3,
    /// When nothing else is there.
    Background = 4,
}

impl Priority {
    /// Gives the level: 0 to 4.
    pub const fn level(self) -> u32 {
        self as u32
    }

    /// Finds the priority of a level; none above 4.
    pub const fn from_level(level: u32) -> Option<Priority> {
        Some(match level {
            0 => Priority::Critical,
            1 => Priority::High,
            2 => Priority::Normal,
            3 => Priority::Low,
            4 => Priority::Background,
            _ => return None,
        })
    }
}

/// Names a service: an instance, or the name that leads to whoever serves it. 0 is none or any.
///
/// Ids are given by the runtime and never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(u32);

impl ServiceId {
    /// No service, or any.
    pub const NONE: ServiceId = ServiceId(0);

    /// Wraps a number as it came from C or from the wire, whatever it is.
    pub const fn new(id: u32) -> ServiceId {
        ServiceId(id)
    }

    /// Gives the number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl std::fmt::Display for ServiceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}
