//! libipc: `Client::call_into` to a `Server`, as an ordinary program would use them.

use std::any::Any;
use std::io;
use std::time::Duration;

use ipc::{CallOptions, Client, Config, Node, Priority, Spin};
use kernel_services::Kernel;

use crate::contender::{Caller, Contender, Place, Waits, check, ready};

const SERVICE: &str = "peers";
const PATIENCE: Duration = Duration::from_secs(30);
const NO_DEADLINE: CallOptions = CallOptions { priority: Priority::Normal, timeout: None };

/// Copied payloads.
#[derive(Debug)]
pub struct Libipc {
    /// Both sides poll, or both sleep at once. In a crowd, clients of a polling server use the
    /// default, which learns whether to spin.
    pub waits: Waits,
}

struct Link {
    client: Client,
    // The client's channel is served by it.
    _node: Node,
}

impl Contender for Libipc {
    fn name(&self) -> &'static str {
        "libipc"
    }

    fn waits(&self) -> Waits {
        self.waits
    }

    fn takes_crowds(&self) -> bool {
        true
    }

    fn prepare(&self, place: &Place) -> io::Result<Box<dyn Any>> {
        Ok(Box::new(Kernel::embedded(&place.directory).map_err(io::Error::other)?))
    }

    fn serve(&self, place: &Place) -> io::Result<()> {
        let spin = if self.waits == Waits::Polling { Spin::Always } else { Spin::Never };
        let node = connect(place, spin)?;
        let server = node.server().map_err(io::Error::other)?;
        server.register(SERVICE, 0).map_err(io::Error::other)?;
        ready("")?;
        server
            .run(|request| {
                // A caller that is gone needs no answer.
                let _ = request.reply(request.payload());
            })
            .map_err(io::Error::other)
    }

    fn connect(&self, place: &Place) -> io::Result<Box<dyn Caller>> {
        let spin = match self.waits {
            Waits::Sleeping => Spin::Never,
            Waits::Polling if place.is_crowded() => Spin::Learned,
            Waits::Polling => Spin::Always,
        };
        let node = connect(place, spin)?;
        let id = node.wait_service(SERVICE, Some(PATIENCE)).map_err(io::Error::other)?;
        let client = node.client(id).map_err(io::Error::other)?;
        Ok(Box::new(Link { client, _node: node }))
    }
}

impl Caller for Link {
    fn call(&mut self, request: &[u8], response: &mut [u8]) -> io::Result<()> {
        let length =
            self.client.call_into(request, response, NO_DEADLINE).map_err(io::Error::other)?;
        check(length, request.len())
    }
}

fn connect(place: &Place, spin: Spin) -> io::Result<Node> {
    let runtime_dir = Some(place.directory.clone());
    Node::connect(&Config { runtime_dir, spin, ..Config::default() }).map_err(io::Error::other)
}
