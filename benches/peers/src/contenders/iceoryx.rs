//! iceoryx2: request and response of `[u8]`, by its own recipes: `loan_slice_uninit`, then
//! `write_from_slice` or a write in place; who sleeps has an event service each way beside it.
#![allow(unsafe_code)]

use std::error::Error;
use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use iceoryx2::active_request::ActiveRequest;
use iceoryx2::node::{Node, NodeBuilder};
use iceoryx2::port::client::Client;
use iceoryx2::port::listener::{Listener, ListenerWaitError};
use iceoryx2::port::notifier::Notifier;
use iceoryx2::prelude::{LogLevel, SignalHandlingMode, set_log_level};
use iceoryx2::request_mut::RequestMut;
use iceoryx2::response::Response;
use iceoryx2::response_mut::ResponseMut;
use iceoryx2::service::ipc::Service;
use iceoryx2::service::port_factory::request_response::PortFactory;

use crate::contender::{
    Caller, Contender, LARGEST, Payload, Place, STAMP, Waits, check, idle, ready,
};

/// iceoryx2.
#[derive(Debug)]
pub struct Iceoryx {
    /// Copied into loans and out of samples, or written and read in place.
    pub payload: Payload,
    /// Polling `receive`, or sleeping in a `Listener` until there is something to receive.
    pub waits: Waits,
}

type Factory = PortFactory<Service, [u8], (), [u8], ()>;
type Question = RequestMut<Service, [u8], (), [u8], ()>;
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

struct Link {
    client: Client<Service, [u8], (), [u8], ()>,
    bells: Option<Bells>,
    payload: Payload,
    crowded: bool,
    _factory: Factory,
    _node: Node<Service>,
}

/// What a sleeper is woken by, and what it wakes the other side with.
struct Bells {
    ring: Notifier<Service>,
    hear: Listener<Service>,
}

impl Bells {
    fn sleep(&self) -> Outcome<()> {
        match self.hear.blocking_wait(|_| {}) {
            // A process that was stopped for the floor's sake: look again.
            Ok(_) | Err(ListenerWaitError::InterruptSignal) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Contender for Iceoryx {
    fn name(&self) -> &'static str {
        match self.waits {
            Waits::Polling => "iceoryx2",
            Waits::Sleeping => "iceoryx2 + events",
        }
    }

    fn payload(&self) -> Payload {
        self.payload
    }

    fn waits(&self) -> Waits {
        self.waits
    }

    fn takes_crowds(&self) -> bool {
        self.waits == Waits::Polling && self.payload == Payload::Copied
    }

    fn serve(&self, place: &Place) -> io::Result<()> {
        self.answer(place).map_err(io::Error::other)
    }

    fn connect(&self, place: &Place) -> io::Result<Box<dyn Caller>> {
        self.open(place).map(|link| Box::new(link) as Box<dyn Caller>).map_err(io::Error::other)
    }

    fn clean(&self, _: &Place) {
        // A node that is gone leaves its files to the next one.
        if let Ok(node) = node() {
            node.blocking_cleanup_dead_nodes(Duration::from_secs(1));
        }
    }
}

impl Iceoryx {
    fn answer(&self, place: &Place) -> Outcome<()> {
        let node = node()?;
        let factory = factory(&node, place)?;
        let server = factory.server_builder().initial_max_slice_len(slice(place)).create()?;
        let bells = self.bells(&node, place, ["answers", "requests"])?;
        ready("")?;
        loop {
            while let Some(request) = server.receive()? {
                self.reply(&request)?;
                if let Some(bells) = &bells {
                    bells.ring.notify()?;
                }
            }
            match &bells {
                Some(bells) => bells.sleep()?,
                None => idle(false),
            }
        }
    }

    fn reply(&self, request: &ActiveRequest<Service, [u8], (), [u8], ()>) -> Outcome<()> {
        let loan = request.loan_slice_uninit(request.payload().len())?;
        let answer = match self.payload {
            Payload::Copied => loan.write_from_slice(request.payload()),
            Payload::InPlace => {
                let mut loan = loan;
                stamp(loan.payload_mut(), request.payload());
                // SAFETY: bytes have no invalid value, and a loan lies in a mapped file, whose
                // every byte has one: it began as zeros, and earlier answers were written to it.
                let whole: ResponseMut<Service, [u8], ()> = unsafe { loan.assume_init() };
                whole
            }
        };
        Ok(answer.send()?)
    }

    fn open(&self, place: &Place) -> Outcome<Link> {
        let node = node()?;
        let factory = factory(&node, place)?;
        let client = factory.client_builder().initial_max_slice_len(slice(place)).create()?;
        let bells = self.bells(&node, place, ["requests", "answers"])?;
        Ok(Link {
            client,
            bells,
            payload: self.payload,
            crowded: place.is_crowded(),
            _factory: factory,
            _node: node,
        })
    }

    fn bells(
        &self,
        node: &Node<Service>,
        place: &Place,
        names: [&str; 2],
    ) -> Outcome<Option<Bells>> {
        if self.waits == Waits::Polling {
            return Ok(None);
        }
        let [ring, hear] = names.map(|what| -> Outcome<_> {
            let name = format!("{}/{what}", place.name());
            Ok(node.service_builder(&name.as_str().try_into()?).event().open_or_create()?)
        });
        Ok(Some(Bells {
            ring: ring?.notifier_builder().create()?,
            hear: hear?.listener_builder().create()?,
        }))
    }
}

impl Caller for Link {
    fn call(&mut self, request: &[u8], response: &mut [u8]) -> io::Result<()> {
        self.exchange(request, response).map_err(io::Error::other)
    }
}

impl Link {
    fn exchange(&self, request: &[u8], response: &mut [u8]) -> Outcome<()> {
        let pending = self.loan(request)?.send()?;
        if let Some(bells) = &self.bells {
            bells.ring.notify()?;
        }
        loop {
            if let Some(answer) = pending.receive()? {
                check(answer.payload().len(), request.len())?;
                self.take(&answer, response);
                return Ok(());
            }
            match &self.bells {
                Some(bells) => bells.sleep()?,
                None => idle(self.crowded),
            }
        }
    }

    fn loan(&self, request: &[u8]) -> Outcome<Question> {
        let mut loan = self.client.loan_slice_uninit(request.len())?;
        Ok(match self.payload {
            Payload::Copied => loan.write_from_slice(request),
            Payload::InPlace => {
                stamp(loan.payload_mut(), request);
                // SAFETY: as in `reply`.
                unsafe { loan.assume_init() }
            }
        })
    }

    fn take(&self, answer: &Response<Service, [u8], ()>, response: &mut [u8]) {
        match self.payload {
            Payload::Copied => response.copy_from_slice(answer.payload()),
            Payload::InPlace => response[..STAMP].copy_from_slice(&answer.payload()[..STAMP]),
        }
    }
}

/// Writes the first bytes of `from` to the front of a loan, and leaves the rest.
fn stamp(loan: &mut [MaybeUninit<u8>], from: &[u8]) {
    loan[..STAMP].write_copy_of_slice(&from[..STAMP]);
}

/// The longest slice that is asked for: memory is reserved for several of them per client.
fn slice(place: &Place) -> usize {
    if place.is_crowded() { 4096 } else { LARGEST }
}

pub(super) fn node() -> Outcome<Node<Service>> {
    set_log_level(LogLevel::Error);
    Ok(NodeBuilder::new().signal_handling_mode(SignalHandlingMode::Disabled).create::<Service>()?)
}

/// Opens the service with its default settings, but for as many ports as there are.
fn factory(node: &Node<Service>, place: &Place) -> Outcome<Factory> {
    Ok(node
        .service_builder(&place.name().as_str().try_into()?)
        .request_response::<[u8], [u8]>()
        .max_servers(1)
        .max_clients(place.clients)
        .max_nodes(place.clients + 2)
        .open_or_create()?)
}
