//! A whole runtime, spoken to through its socket.

mod daemon;
mod directory;
mod introductions;
mod names;
mod peer;
