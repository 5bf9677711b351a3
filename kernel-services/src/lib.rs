//! The runtime's root services: who serves what, and who is introduced to whom.
//!
//! [`Kernel::embedded`] runs them on a thread of the calling process; the program `ipcd` does the
//! same and nothing else. Nodes (processes) connect to the socket in the runtime directory and
//! speak `ipc::control`; after an introduction two nodes talk alone, and the runtime only watches
//! whether their control connections live.
//!
//! ```text
//!   packets ─▶ reactor (the one I/O loop) ─ Event ─▶ broker ─▶ registry ─▶ ids      pure
//!   packets ◀─ reactor ◀───────────────── Effect ── broker
//! ```
//! All decisions are made by the broker, which opens, reads and waits for nothing; the reactor
//! carries them out and never blocks on a node.
#![deny(missing_docs)]

#[cfg(feature = "node")]
pub mod audit;
mod broker;
#[cfg(feature = "node")]
pub mod cgroup;
#[cfg(feature = "node")]
pub mod console;
mod desk;
mod directory;
mod epochs;
mod error;
pub mod events;
pub mod failpoint;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod holders;
mod ids;
#[cfg(feature = "node")]
pub mod journal;
mod kernel;
#[cfg(feature = "node")]
pub mod logs;
#[cfg(feature = "node")]
pub mod monitor;
#[cfg(feature = "node")]
pub mod node;
mod notes;
#[cfg(feature = "node")]
mod numa;
mod pidfd;
mod plans;
#[cfg(feature = "node")]
pub mod process;
pub mod quota;
mod reactor;
mod regions;
mod registry;
#[cfg(feature = "node")]
mod sandbox;
pub mod security;
mod served;
#[cfg(test)]
mod simulation;
mod spans;
mod succession;
#[cfg(feature = "node")]
pub mod supervisor;
#[cfg(feature = "node")]
pub mod system;
pub mod token;

pub use error::KernelError;
pub use kernel::Kernel;
pub use succession::Succession;
