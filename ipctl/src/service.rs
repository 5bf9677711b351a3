//! From the name of a service to a channel to it.

use std::time::Duration;

use clap::Args;
use ipc::{Address, AddressError, Client, Node, NodeError, Status};

use crate::{failure::Failure, output::Progress, units};

/// How long to be patient with a service.
#[derive(Args, Debug)]
pub(crate) struct Patience {
    /// How long to wait for each answer
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "5s",
        requires = "name",
        value_parser = units::duration
    )]
    pub(crate) timeout: Duration,
    /// If nobody serves the name, wait up to so long until somebody does
    #[arg(long, value_name = "DURATION", requires = "name", value_parser = units::duration)]
    wait: Option<Duration>,
}

impl Patience {
    /// Opens a channel to whoever serves the name.
    pub(crate) fn open(&self, node: &Node, name: &str) -> Result<Client, Failure> {
        let dest = match (node.discover(name), self.wait) {
            (Err(NodeError::Refused(Status::NOT_FOUND)), Some(wait)) => {
                let mut progress = Progress::new();
                progress.show(format_args!("waiting for {name:?}"));
                node.wait_service(name, Some(wait)).map_err(|error| match error {
                    NodeError::TimedOut => {
                        Failure::NeverServed { name: name.to_owned(), waited: wait }
                    }
                    error => error.into(),
                })?
            }
            (found, _) => found.map_err(|error| missing(error, name))?,
        };
        node.client(dest).map_err(|error| missing(error, name))
    }
}

fn missing(error: NodeError, name: &str) -> Failure {
    match error {
        NodeError::Refused(Status::NOT_FOUND) => Failure::NotYetServed(name.to_owned()),
        NodeError::Refused(Status::TIMED_OUT) => Failure::NeverOpened(name.to_owned()),
        error => error.into(),
    }
}

/// Reads the name of a service, or an address that stands for one.
pub(crate) fn name(text: &str) -> Result<String, String> {
    match text.parse::<Address>() {
        Ok(_) => Ok(text.to_owned()),
        Err(AddressError::Name(why)) => Err(why.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
