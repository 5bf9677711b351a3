//! iceoryx2's publish and subscribe of `[u8]`: a sample there, and one back in another service.

use std::error::Error;
use std::io;
use std::time::Duration;

use iceoryx2::node::Node;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::service::ipc::Service;
use iceoryx2::service::port_factory::publish_subscribe::PortFactory;

use super::iceoryx::node;
use crate::contender::{Caller, Contender, Place, Waits, check, idle, ready};

const LARGEST: usize = 64 << 10;

/// iceoryx2's samples, copied into loans and out.
#[derive(Debug)]
pub struct Samples;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

struct Link {
    publisher: Publisher<Service, [u8], ()>,
    subscriber: Subscriber<Service, [u8], ()>,
    _factories: [PortFactory<Service, [u8], ()>; 2],
    _node: Node<Service>,
}

impl Link {
    fn open(place: &Place, ways: [&str; 2]) -> Outcome<Link> {
        let node = node()?;
        let open = |way: &str| -> Outcome<_> {
            let name = format!("{}/{way}", place.name());
            let service = node.service_builder(&name.as_str().try_into()?);
            Ok(service.publish_subscribe::<[u8]>().open_or_create()?)
        };
        let [to, from] = [open(ways[0])?, open(ways[1])?];
        let publisher = to.publisher_builder().initial_max_slice_len(LARGEST).create()?;
        let subscriber = from.subscriber_builder().create()?;
        Ok(Link { publisher, subscriber, _factories: [to, from], _node: node })
    }

    fn send(&self, payload: &[u8]) -> Outcome<()> {
        self.publisher.loan_slice_uninit(payload.len())?.write_from_slice(payload).send()?;
        Ok(())
    }

    fn exchange(&self, request: &[u8], response: &mut [u8]) -> Outcome<()> {
        self.send(request)?;
        loop {
            if let Some(sample) = self.subscriber.receive()? {
                check(sample.payload().len(), request.len())?;
                response.copy_from_slice(sample.payload());
                return Ok(());
            }
            idle(false);
        }
    }

    fn answer(&self) -> Outcome<()> {
        loop {
            match self.subscriber.receive()? {
                Some(sample) => self.send(sample.payload())?,
                None => idle(false),
            }
        }
    }
}

impl Contender for Samples {
    fn name(&self) -> &'static str {
        "iceoryx2, a sample each way"
    }

    fn waits(&self) -> Waits {
        Waits::Polling
    }

    fn largest(&self) -> usize {
        LARGEST
    }

    fn serve(&self, place: &Place) -> io::Result<()> {
        let link = Link::open(place, ["back", "there"]).map_err(io::Error::other)?;
        ready("")?;
        link.answer().map_err(io::Error::other)
    }

    fn connect(&self, place: &Place) -> io::Result<Box<dyn Caller>> {
        let link = Link::open(place, ["there", "back"]).map_err(io::Error::other)?;
        Ok(Box::new(link))
    }

    fn clean(&self, _: &Place) {
        // A node that is gone leaves its files to the next one.
        if let Ok(node) = node() {
            node.blocking_cleanup_dead_nodes(Duration::from_secs(1));
        }
    }
}

impl Caller for Link {
    fn call(&mut self, request: &[u8], response: &mut [u8]) -> io::Result<()> {
        self.exchange(request, response).map_err(io::Error::other)
    }
}
