//! The C ABI: `include/ipc.h`, which is generated from here, over the crate `ipc`.
//!
//! ```text
//!   C ─▶ service call send loan message receive poll info     one file per group of functions
//!          │  boundary: panics, NULL, slices, out-parameters
//!          ▼
//!        runtime: the one of this process ─▶ ipc::Node ─▶ ipc::{Client, Server}
//! ```
//! Every function has the same shape: arguments are checked by [`boundary`], the work is done with
//! plain Rust types, out-parameters are written last, and the result becomes a number.
//!
//! Three things make the path of a call short: a thread remembers the clients it used last
//! ([`call`]), it keeps response buffers that were freed ([`response`]), and whether the process
//! was forked is one load ([`fork`]).
#![deny(missing_docs)]
// The texts go into ipc.h, for readers of C. They are the contract of the unsafe functions, too;
// what all of these share is in `boundary`.
#![allow(clippy::missing_safety_doc, clippy::doc_markdown)]
#![allow(clippy::inline_always, reason = "as in the crate `ipc`, where the reason is")]

mod boundary;
pub mod call;
pub mod demoted;
pub mod enums;
pub mod envelope;
pub mod error;
pub mod event;
pub mod failover;
pub mod info;
pub mod loan;
pub mod message;
pub mod poll;
mod process;
pub mod queue;
pub mod receive;
pub mod region;
pub mod response;
pub mod rights;
pub mod runtime;
pub mod send;
pub mod service;
pub mod session;
mod settings;
pub mod slice;
pub mod stats;
mod stop;
pub mod trace;
pub mod transport;
pub mod types;
mod wake;
