//! Reliable queues: what the process `ipc-queue` decides and stores.
//!
//! ```text
//!   request ─▶ service ─▶ machine ─ Effect::Append ─▶ log ─▶ memory that ipcd keeps, or a journal
//!   answer  ◀─ service ◀─ machine ◀─ Event::Committed ┘
//! ```
//! [`machine`] decides, and knows neither bytes nor time; [`record`] and [`scan`] are the bytes of
//! what is stored; [`log`] stores them. A request is answered when what it did is stored.
#![deny(missing_docs)]

pub mod machine;
pub mod record;
pub mod scan;
pub mod windows;
