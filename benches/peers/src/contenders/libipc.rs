//! libipc: `Client::call_into`, or `Client::call_loaned`, to a `Server`, as an ordinary program
//! would use them.

use std::any::Any;
use std::io;
use std::time::Duration;

use ipc::{CallError, CallOptions, Client, Config, Node, Priority, Request, Spin};
use kernel_services::Kernel;

use crate::contender::{Caller, Contender, Payload, Place, STAMP, Waits, check, ready};

const SERVICE: &str = "peers";
const PATIENCE: Duration = Duration::from_secs(30);
const NO_DEADLINE: CallOptions = CallOptions { priority: Priority::Normal, timeout: None };

/// libipc.
#[derive(Debug)]
pub struct Libipc {
    /// Copied, by the ring or, from 16 KiB on, by bulk memory; or lent there and left in place.
    pub payload: Payload,
    /// Both sides poll, or both sleep at once. In a crowd, clients of a polling server use the
    /// default, which learns whether to spin.
    pub waits: Waits,
    /// Whether the client shares memory; its calls go over a socket by themselves otherwise.
    pub shares: bool,
}

struct Link {
    client: Client,
    payload: Payload,
    // The client's channel is served by it.
    _node: Node,
}

impl Contender for Libipc {
    fn name(&self) -> &'static str {
        if self.shares { "libipc" } else { "libipc, over a socket" }
    }

    fn payload(&self) -> Payload {
        self.payload
    }

    fn waits(&self) -> Waits {
        self.waits
    }

    fn takes_crowds(&self) -> bool {
        self.payload == Payload::Copied && self.shares
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
        // A caller that is gone needs no answer.
        match self.payload {
            Payload::Copied => server.run(|request| {
                let _ = answer_copied(&request);
            }),
            Payload::InPlace => server.run(|request| {
                let _ = answer_in_place(&request);
            }),
        }
        .map_err(io::Error::other)
    }

    fn connect(&self, place: &Place) -> io::Result<Box<dyn Caller>> {
        let spin = match self.waits {
            Waits::Sleeping => Spin::Never,
            Waits::Polling if place.is_crowded() => Spin::Learned,
            Waits::Polling => Spin::Always,
        };
        let node = connect_as(place, spin, self.shares)?;
        let id = node.wait_service(SERVICE, Some(PATIENCE)).map_err(io::Error::other)?;
        let client = node.client(id).map_err(io::Error::other)?;
        Ok(Box::new(Link { client, payload: self.payload, _node: node }))
    }
}

impl Caller for Link {
    fn call(&mut self, request: &[u8], response: &mut [u8]) -> io::Result<()> {
        let length = match self.payload {
            Payload::Copied => self.client.call_into(request, response, NO_DEADLINE),
            Payload::InPlace => self.call_in_place(request, response),
        };
        check(length.map_err(io::Error::other)?, request.len())
    }
}

impl Link {
    fn call_in_place(&self, request: &[u8], response: &mut [u8]) -> Result<usize, CallError> {
        let mut loan = self.client.loan(request.len())?;
        loan[..STAMP].copy_from_slice(&request[..STAMP]);
        let answer = self.client.call_loaned(loan, NO_DEADLINE)?;
        answer.read_at(0, &mut response[..STAMP]);
        Ok(answer.len())
    }
}

/// What came in bulk is copied from loan to loan, as the other lenders do it, and not by way of
/// private memory: this server decides nothing by what it copies.
fn answer_copied(request: &Request<'_>) -> Result<(), CallError> {
    let Some(view) = request.view() else { return request.reply(request.payload()) };
    let mut loan = request.loan(view.len())?;
    view.copy_to(&mut loan);
    request.reply_loaned(loan)
}

fn answer_in_place(request: &Request<'_>) -> Result<(), CallError> {
    let Some(view) = request.view() else { return request.reply(request.payload()) };
    let mut loan = request.loan(view.len())?;
    view.read_at(0, &mut loan[..STAMP]);
    request.reply_loaned(loan)
}

pub(super) fn connect(place: &Place, spin: Spin) -> io::Result<Node> {
    connect_as(place, spin, true)
}

fn connect_as(place: &Place, spin: Spin, share_memory: bool) -> io::Result<Node> {
    let runtime_dir = Some(place.directory.clone());
    let config = Config { runtime_dir, spin, share_memory, ..Config::default() };
    Node::connect(&config).map_err(io::Error::other)
}
