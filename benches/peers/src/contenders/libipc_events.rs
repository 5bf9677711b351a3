//! libipc's events: one published in a topic, and one back in another.

use std::any::Any;
use std::io;

use ipc::bus::{PublishOptions, Publisher, SubscribeOptions, Subscription};
use ipc::{Node, Spin};
use kernel_services::Kernel;

use super::libipc::connect;
use crate::contender::{Caller, Contender, Place, Waits, check, ready};

const THERE: &str = "peers.there";
const BACK: &str = "peers.back";

/// libipc's events.
#[derive(Debug)]
pub struct Events {
    /// Both sides poll, or both sleep.
    pub waits: Waits,
}

struct Link {
    publisher: Publisher,
    subscription: Subscription,
    answer: Vec<u8>,
    _node: Node,
}

impl Events {
    fn link(&self, place: &Place, ways: [&str; 2]) -> io::Result<Link> {
        let spin = if self.waits == Waits::Polling { Spin::Always } else { Spin::Never };
        let node = connect(place, spin)?;
        let subscription = node.subscribe(ways[1], SubscribeOptions::default());
        let subscription = subscription.map_err(io::Error::other)?;
        let publisher = node.publisher(ways[0], PublishOptions::default());
        let publisher = publisher.map_err(io::Error::other)?;
        Ok(Link { publisher, subscription, answer: Vec::new(), _node: node })
    }
}

impl Contender for Events {
    fn name(&self) -> &'static str {
        "libipc, an event each way"
    }

    fn waits(&self) -> Waits {
        self.waits
    }

    fn largest(&self) -> usize {
        64 << 10
    }

    fn prepare(&self, place: &Place) -> io::Result<Box<dyn Any>> {
        Ok(Box::new(Kernel::embedded(&place.directory).map_err(io::Error::other)?))
    }

    fn serve(&self, place: &Place) -> io::Result<()> {
        let mut link = self.link(place, [BACK, THERE])?;
        ready("")?;
        loop {
            link.take()?;
            link.publisher.publish(&link.answer).map_err(io::Error::other)?;
        }
    }

    fn connect(&self, place: &Place) -> io::Result<Box<dyn Caller>> {
        Ok(Box::new(self.link(place, [THERE, BACK])?))
    }
}

impl Link {
    fn take(&mut self) -> io::Result<()> {
        self.answer.clear();
        self.subscription.recv_into(&mut self.answer, None).map(drop).map_err(io::Error::other)
    }
}

impl Caller for Link {
    fn call(&mut self, request: &[u8], response: &mut [u8]) -> io::Result<()> {
        self.publisher.publish(request).map_err(io::Error::other)?;
        self.take()?;
        check(self.answer.len(), request.len())?;
        response.copy_from_slice(&self.answer);
        Ok(())
    }
}
