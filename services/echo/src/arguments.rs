//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use ipc::Spin;

const DIRECTORY: &str = "\
Directory of the runtime's socket \
[default: $IPC_RUNTIME_DIR, else $XDG_RUNTIME_DIR/ipc, else /run/ipc]";

/// Serves NAME, answering each request with its own payload, and NAME.sink, counting one-way
/// messages.
///
/// A request to NAME.sink, whatever its payload, is answered with the number of one-way messages
/// that this process took so far, under either name, as 8 bytes, little-endian. Start it twice,
/// and the second process stands by for the first.
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// Name to serve
    #[arg(long, default_value = "echo", value_parser = name)]
    pub(crate) name: String,
    #[arg(long, value_name = "DIR", help = DIRECTORY)]
    pub(crate) runtime_dir: Option<PathBuf>,
    /// Whether to spin before sleeping: always (burns a core), as long as it pays, or never
    #[arg(long, value_enum, default_value_t = Spinning::Learned, value_name = "HOW")]
    pub(crate) spin: Spinning,
    /// Pin the serving loop to this CPU
    #[arg(long, value_name = "N")]
    pub(crate) cpu: Option<usize>,
}

/// [`Spin`], as far as a command line needs it.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Spinning {
    Always,
    Learned,
    Never,
}

impl From<Spinning> for Spin {
    fn from(spinning: Spinning) -> Spin {
        match spinning {
            Spinning::Always => Spin::Always,
            Spinning::Learned => Spin::Learned,
            Spinning::Never => Spin::Never,
        }
    }
}

/// Leaves room for `.sink`.
fn name(text: &str) -> Result<String, String> {
    ipc::control::check_name(&format!("{text}.sink"))
        .and(ipc::control::check_name(text))
        .map(|()| text.to_owned())
        .map_err(str::to_owned)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn names_leave_room_for_the_sink() {
        assert!(name("echo").is_ok());
        assert!(name("").is_err());
        assert!(name(&"x".repeat(250)).is_ok());
        assert!(name(&"x".repeat(251)).is_err());
    }
}
