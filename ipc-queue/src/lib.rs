//! Reliable queues: what the process `ipc-queue` decides and stores.
//!
//! ```text
//!   request ─▶ service ─▶ machine ─ Effect::Append ─▶ log ─▶ memory that ipcd keeps, or a journal
//!   answer  ◀─ service ◀─ machine ◀─ Event::Committed ┘
//! ```
//! [`machine`] decides, and knows neither bytes nor time; [`record`] and [`scan`] are the bytes of
//! what is stored; [`log`] stores them. A request is answered when what it did is stored.
#![deny(missing_docs)]

mod answers;
pub mod config;
pub mod failpoint;
pub mod house;
pub mod identity;
pub mod log;
pub mod machine;
mod made;
pub mod opening;
pub mod record;
pub mod scan;
pub mod service;
pub mod steward;
pub mod windows;
