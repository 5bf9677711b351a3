//! Who pays for what the broker holds: every charge is made and released here.
//!
//! ```text
//!   connection   half-open until the greeting; descriptors until it ends
//!   name         until its instance ends
//!   connect      half-open, descriptors, a channel and its memory, until it is answered …
//!   channel      … and the last two of them until an end says that it is closed
//!   region       a descriptor and its memory, until nobody has it
//!   memory       a descriptor and its bytes, while it is kept for a unit
//! ```
//! ipcd's own connection, by which services are pinged, pays nothing: nobody's flood is to keep
//! the watchdog from its work.

use std::{collections::HashMap, sync::Arc};

use ipc::{ServiceId, Status};

use super::{Peer, Token};
use crate::events::RingId;
use crate::quota::{Charge, Kind, Ledger, Over, Payer, Quota};

/// Descriptors of a pending connect: the client's lane, and both ends of the doorbell.
const OF_A_CONNECT: u64 = 3;
/// Accounts that are kept though they hold nothing, before they are looked through.
const IDLE_ACCOUNTS: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Accounts {
    ledger: Ledger,
    connections: HashMap<Token, Connection>,
    names: HashMap<ServiceId, Charge>,
    /// By ticket.
    connects: HashMap<u64, Connect>,
    channels: HashMap<u64, Vec<Charge>>,
    /// Of events.
    rings: HashMap<RingId, Vec<Charge>>,
    /// Connections that ended since idle accounts were last forgotten.
    ended: usize,
}

#[derive(Debug)]
struct Connection {
    payer: Payer,
    half_open: Option<Charge>,
    descriptors: Charge,
}

#[derive(Debug)]
struct Connect {
    /// What is held while the service has not answered.
    meanwhile: Vec<Charge>,
    /// What the channel is charged with for as long as it is open.
    lasting: Vec<Charge>,
}

impl Accounts {
    /// Charges a new connection.
    ///
    /// # Errors
    /// `QUOTA`; nothing is charged.
    pub(super) fn admit(&mut self, token: Token, peer: &Peer) -> Result<(), Status> {
        let service = peer.unit.as_ref().map(|unit| &*unit.service);
        let payer = Payer::new(peer.uid, service);
        let descriptors = self.ledger.charge(&payer, Kind::Descriptors, peer.descriptors);
        let descriptors = descriptors.map_err(status)?;
        // ipcd itself made a service's first connection: a crowd at the door is not to keep a
        // service from being started.
        let half_open = if peer.is_inherited {
            None
        } else {
            match self.ledger.charge(&payer, Kind::HalfOpen, 1) {
                Ok(charge) => Some(charge),
                Err(over) => {
                    self.ledger.release(descriptors);
                    return Err(status(over));
                }
            }
        };
        self.connections.insert(token, Connection { payer, half_open, descriptors });
        Ok(())
    }

    /// A connection has greeted.
    pub(super) fn greeted(&mut self, token: Token) {
        let connection = self.connections.get_mut(&token);
        if let Some(charge) = connection.and_then(|it| it.half_open.take()) {
            self.ledger.release(charge);
        }
    }

    /// A connection has ended. Its names, connects and channels are settled by themselves.
    pub(super) fn gone(&mut self, token: Token, now_ns: u64) {
        let Some(connection) = self.connections.remove(&token) else { return };
        self.ledger.release(connection.descriptors);
        if let Some(charge) = connection.half_open {
            self.ledger.release(charge);
        }
        self.ended += 1;
        if self.ended > IDLE_ACCOUNTS {
            self.ended = 0;
            self.ledger.forget_idle(now_ns);
        }
    }

    /// Counts a message; false where its sender has sent too many in too short a time.
    pub(super) fn message(&mut self, token: Token, now_ns: u64) -> bool {
        let Some(connection) = self.connections.get(&token) else { return true };
        self.ledger.admit(&connection.payer, now_ns).is_ok()
    }

    /// Makes sure that a connection may serve one more name.
    ///
    /// # Errors
    /// `QUOTA`.
    pub(super) fn name(&mut self, token: Token) -> Result<Option<Charge>, Status> {
        let Some(connection) = self.connections.get(&token) else { return Ok(None) };
        self.ledger.charge(&connection.payer, Kind::Names, 1).map(Some).map_err(status)
    }

    /// Keeps the charge for a name until its instance ends; without an instance it ends at once.
    pub(super) fn named(&mut self, charge: Option<Charge>, instance: Option<ServiceId>) {
        match (charge, instance) {
            (Some(charge), Some(instance)) => drop(self.names.insert(instance, charge)),
            (Some(charge), None) => self.ledger.release(charge),
            (None, _) => {}
        }
    }

    pub(super) fn unnamed(&mut self, instance: ServiceId) {
        if let Some(charge) = self.names.remove(&instance) {
            self.ledger.release(charge);
        }
    }

    /// Charges a connect with all that it takes, and that its channel will.
    ///
    /// # Errors
    /// `QUOTA`; nothing is charged.
    pub(super) fn connect(
        &mut self,
        token: Token,
        ticket: u64,
        lane_bytes: u64,
    ) -> Result<(), Status> {
        let Some(connection) = self.connections.get(&token) else { return Ok(()) };
        let payer = connection.payer.clone();
        let meanwhile = [(Kind::HalfOpen, 1), (Kind::Descriptors, OF_A_CONNECT)];
        let meanwhile = self.charge_all(&payer, meanwhile)?;
        match self.charge_all(&payer, lasting(lane_bytes)) {
            Ok(lasting) => {
                self.connects.insert(ticket, Connect { meanwhile, lasting });
                Ok(())
            }
            Err(status) => {
                self.release_all(meanwhile);
                Err(status)
            }
        }
    }

    /// A connect has come to nothing.
    pub(super) fn settle(&mut self, ticket: u64) {
        if let Some(Connect { meanwhile, lasting }) = self.connects.remove(&ticket) {
            self.release_all(meanwhile);
            self.release_all(lasting);
        }
    }

    /// A connect has become a channel.
    pub(super) fn opened(&mut self, ticket: u64, channel: u64) {
        if let Some(Connect { meanwhile, lasting }) = self.connects.remove(&ticket) {
            self.release_all(meanwhile);
            self.channels.insert(channel, lasting);
        }
    }

    /// Charges a channel that is open since an earlier run.
    ///
    /// # Errors
    /// `QUOTA`; nothing is charged.
    pub(super) fn survived(
        &mut self,
        client: Token,
        channel: u64,
        lane_bytes: u64,
    ) -> Result<(), Status> {
        let Some(connection) = self.connections.get(&client) else { return Ok(()) };
        let payer = connection.payer.clone();
        let charges = self.charge_all(&payer, lasting(lane_bytes))?;
        self.channels.insert(channel, charges);
        Ok(())
    }

    /// Charges a ring of events: its memory, and the descriptor by which it is handed on. It is
    /// charged until it is handed on no more, also where its publisher is gone by then.
    ///
    /// # Errors
    /// `QUOTA`; nothing is charged.
    pub(super) fn ring(&mut self, by: Token, ring: RingId, bytes: u64) -> Result<(), Status> {
        let charges = self.memory(by, bytes)?;
        self.rings.insert(ring, charges);
        Ok(())
    }

    pub(super) fn ring_gone(&mut self, ring: RingId) {
        let charges = self.rings.remove(&ring).unwrap_or_default();
        self.release_all(charges);
    }

    pub(super) fn closed(&mut self, channel: u64) {
        let charges = self.channels.remove(&channel).unwrap_or_default();
        self.release_all(charges);
    }

    /// Charges a node with memory that outlives its connection, and the descriptor of it: of a
    /// region, or kept for a unit. Whoever keeps it keeps the charges.
    ///
    /// # Errors
    /// `QUOTA`; nothing is charged.
    pub(super) fn memory(&mut self, token: Token, bytes: u64) -> Result<Vec<Charge>, Status> {
        let Some(connection) = self.connections.get(&token) else { return Ok(Vec::new()) };
        let payer = connection.payer.clone();
        self.charge_all(&payer, [(Kind::SharedBytes, bytes), (Kind::Descriptors, 1)])
    }

    /// It is not kept any more.
    pub(super) fn let_go(&mut self, charges: Vec<Charge>) {
        self.release_all(charges);
    }

    /// Sets what users and services may hold from now on.
    pub(super) fn limit(&mut self, users: Quota, services: HashMap<Arc<str>, Quota>) {
        self.ledger.limit_users(users);
        self.ledger.limit_services(services);
    }

    /// Checks that nobody holds anything.
    ///
    /// # Panics
    /// When somebody does.
    pub(super) fn assert_settled(&self) {
        self.ledger.assert_settled();
    }

    fn charge_all<const N: usize>(
        &mut self,
        payer: &Payer,
        what: [(Kind, u64); N],
    ) -> Result<Vec<Charge>, Status> {
        let mut made = Vec::with_capacity(N);
        for (kind, amount) in what {
            match self.ledger.charge(payer, kind, amount) {
                Ok(charge) => made.push(charge),
                Err(over) => {
                    self.release_all(made);
                    return Err(status(over));
                }
            }
        }
        Ok(made)
    }

    pub(super) fn release_all(&mut self, charges: Vec<Charge>) {
        for charge in charges {
            self.ledger.release(charge);
        }
    }
}

/// What a channel is charged with for as long as it is open.
fn lasting(lane_bytes: u64) -> [(Kind, u64); 2] {
    [(Kind::Channels, 1), (Kind::SharedBytes, 2 * lane_bytes)]
}

#[allow(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn status(_: Over) -> Status {
    Status::QUOTA
}

#[cfg(test)]
impl Accounts {
    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}
