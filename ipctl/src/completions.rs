//! `ipctl completions`: scripts that teach a shell this command line.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::{Cli, failure::Failure, output};

/// Print a script that completes `ipctl` on the TAB key.
#[derive(Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Arguments {
    /// Shell to write it for
    #[arg(value_enum)]
    shell: Shell,
}

const HELP: &str = "\
Examples:
  source <(ipctl completions bash)            in this shell only
  ipctl completions bash > ~/.local/share/bash-completion/completions/ipctl
  ipctl completions zsh > \"${fpath[1]}/_ipctl\"
  ipctl completions fish > ~/.config/fish/completions/ipctl.fish";

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    // Into memory first: clap_complete panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "ipctl", &mut script);
    output::write(&script)
}
