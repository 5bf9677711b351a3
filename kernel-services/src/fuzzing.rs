//! The broker before nodes that say anything in any order, for a fuzz target.
//!
//! What the reactor would do is only noted here, and held against what must be so: nothing is sent
//! to who is gone, and what is held for an introduction is released or delivered once. Every method
//! panics when that does not hold.

#![allow(clippy::missing_panics_doc, reason = "said once, above")]

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ipc::{
    Geometry, LaneFacts, Status,
    control::{self, Reply},
};

use crate::{
    broker::{Broker, Carried, Effect, Event, Peer, RegionEffect, RingEffect, Stow, Token},
    ids::{IdSource, Ids},
    registry::Registry,
    token::TokenKey,
};

const UID: u32 = 1000;

/// The descriptors that come with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// None.
    Nothing,
    /// A proper lane of the default geometry.
    Lane,
    /// A proper first segment of a board.
    Board,
    /// Pinned memory that may be written, as long as a lane.
    Region,
    /// A ring of events.
    Ring,
    /// A cursor page.
    Page,
    /// Something that is no lane.
    Junk,
    /// More than one.
    Many,
}

/// A broker, and what its reactor would have.
#[derive(Debug)]
pub struct Ground {
    broker: Broker,
    now_ns: u64,
    connected: HashSet<Token>,
    /// Tickets held, and whether they were offered.
    held: HashMap<u64, bool>,
    boards: HashSet<u64>,
    regions: HashSet<u64>,
    kept: HashSet<u64>,
    rings: HashSet<u64>,
    /// The channel last offered, and to whom.
    offered: Option<(Token, u64)>,
    next: Token,
}

/// Reserves nothing: there is no other run.
#[derive(Debug)]
struct Forgetful;

impl IdSource for Forgetful {
    fn reserve(&mut self, _end: u32) -> Result<(), Status> {
        Ok(())
    }
}

impl Ground {
    /// Starts with nobody.
    ///
    /// # Errors
    /// Those of a broker; none is due here.
    pub fn new() -> Result<Ground, Status> {
        let registry = Registry::new(Ids::new(1..1, Box::new(Forgetful)));
        let key = TokenKey::ephemeral().map_err(|_| Status::IO)?;
        Ok(Ground {
            broker: Broker::new(registry, 1, UID, 0, Arc::new(key))?,
            now_ns: 0,
            connected: HashSet::new(),
            held: HashMap::new(),
            boards: HashSet::new(),
            regions: HashSet::new(),
            kept: HashSet::new(),
            rings: HashSet::new(),
            offered: None,
            next: 1,
        })
    }

    /// Accepts a connection, of another user if it is `foreign`. Returns its number.
    pub fn accept(&mut self, foreign: bool) -> u64 {
        let token = self.next;
        self.next += 1;
        self.connected.insert(token);
        let uid = UID + u32::from(foreign);
        let peer = Peer { pid: token as u32 + 100, uid, ..Peer::default() };
        self.step(Event::Accepted { token, peer }, None);
        assert!(!foreign || !self.connected.contains(&token), "a stranger was let in");
        token
    }

    /// Has a connection send a packet. Whoever is cut already sends nothing.
    pub fn packet(&mut self, token: u64, bytes: &[u8], beside: Beside) {
        if !self.connected.contains(&token) {
            return;
        }
        let size = Geometry::default().lane_bytes() as u64;
        let memory = LaneFacts { bytes: size, allocated: size, ..LaneFacts::default() };
        let carried = match beside {
            Beside::Nothing => Carried::Nothing,
            Beside::Lane => Carried::One(LaneFacts { sealed: true, pinned: true, ..memory }),
            Beside::Board => {
                Carried::One(LaneFacts { sealed: true, bytes: 4096, allocated: 4096, ..memory })
            }
            Beside::Region => Carried::One(LaneFacts { writable: true, pinned: true, ..memory }),
            Beside::Ring => {
                Carried::One(LaneFacts { sealed: true, bytes: 8192, allocated: 8192, ..memory })
            }
            Beside::Page => {
                Carried::One(LaneFacts { sealed: true, bytes: 4096, allocated: 4096, ..memory })
            }
            Beside::Junk => Carried::One(LaneFacts { allocated: 0, ..memory }),
            Beside::Many => Carried::Many,
        };
        // As the reactor does.
        let (sequence, request) = match control::decode_request(bytes) {
            Ok((sequence, request)) => (sequence, Ok(request)),
            Err(malformed) => (0, Err(malformed)),
        };
        self.step(Event::Packet { token, sequence, request, carried }, Some(token));
    }

    /// Has the service to which a channel was offered last answer, if there is such an offer.
    pub fn answer(&mut self, status: i32, beside: Beside) {
        if let Some((token, channel)) = self.offered.take() {
            let request = control::Request::Accept { channel, status: Status::from_code(status) };
            self.packet(token, &control::encode_request(0, &request), beside);
        }
    }

    /// Has an offer fail for want of descriptors, if one is open.
    pub fn fail_offer(&mut self, status: Status) {
        if let Some(ticket) = self.held.iter().find(|(_, offered)| **offered).map(|(it, _)| *it) {
            self.step(Event::Failed { ticket, status }, None);
        }
    }

    /// Closes a connection from its other end.
    pub fn gone(&mut self, token: u64) {
        if self.connected.remove(&token) {
            self.step(Event::Gone { token }, None);
        }
    }

    /// Lets time pass, and whatever is due happen.
    pub fn pass(&mut self, ns: u64) {
        self.now_ns = self.now_ns.saturating_add(ns);
        while self.broker.deadline_ns().is_some_and(|deadline| deadline <= self.now_ns) {
            let before = self.broker.deadline_ns();
            self.step(Event::Tick, None);
            assert_ne!(before, self.broker.deadline_ns(), "a deadline stays past");
        }
    }

    /// Closes every connection; nothing must be left.
    pub fn end(mut self) {
        let mut tokens: Vec<_> = self.connected.iter().copied().collect();
        tokens.sort_unstable();
        for token in tokens {
            self.gone(token);
        }
        assert!(self.held.is_empty(), "held for nobody: {:?}", self.held);
        assert!(self.boards.is_empty(), "boards of nobody: {:?}", self.boards);
        assert!(self.regions.is_empty(), "regions of nobody: {:?}", self.regions);
        assert!(self.kept.is_empty(), "kept for nobody: {:?}", self.kept);
        assert!(self.rings.is_empty(), "rings of nobody: {:?}", self.rings);
        assert_eq!(self.broker.deadline_ns(), None, "nobody is left to wait for");
        self.broker.close(self.now_ns);
    }

    fn step(&mut self, event: Event, at_hand: Option<Token>) {
        for effect in self.broker.step(event, self.now_ns) {
            self.note(effect, at_hand);
        }
    }

    fn note(&mut self, effect: Effect, at_hand: Option<Token>) {
        match effect {
            Effect::Send { to, sequence, reply } => {
                assert!(self.connected.contains(&to), "a reply to nobody");
                check_reply(sequence, &reply);
            }
            Effect::Hold { ticket } => {
                assert!(at_hand.is_some(), "nothing is at hand");
                assert_eq!(self.held.insert(ticket, false), None, "held twice");
            }
            Effect::Offer { ticket, to, client, introduction } => {
                assert!(self.connected.contains(&to) && self.connected.contains(&client));
                assert!(self.held.insert(ticket, true).is_some(), "an offer of nothing");
                check_reply(0, &Reply::Incoming(Box::new(introduction)));
                self.offered = Some((to, introduction.channel));
            }
            Effect::Deliver { ticket, to, service, sequence, introduction } => {
                assert!(self.connected.contains(&to) && at_hand == Some(service));
                assert_eq!(self.held.remove(&ticket), Some(true), "delivered without an offer");
                check_reply(sequence, &Reply::Connected(Box::new(introduction)));
            }
            Effect::KeepBoard { board } => {
                assert!(at_hand.is_some(), "nothing is at hand");
                self.boards.insert(board);
            }
            Effect::SendBoard { to, sequence, board, reply } => {
                assert!(self.connected.contains(&to) && self.boards.contains(&board));
                check_reply(sequence, &reply);
            }
            Effect::LoseBoard { board } => {
                assert!(self.boards.remove(&board), "lost twice");
            }
            Effect::Region(RegionEffect::Keep { region }) => {
                assert!(at_hand.is_some(), "nothing is at hand");
                self.regions.insert(region);
            }
            Effect::Region(RegionEffect::Send { to, sequence, region, owner, reply }) => {
                assert!(self.connected.contains(&to) && self.connected.contains(&owner));
                assert!(self.regions.contains(&region), "a region without memory");
                check_reply(sequence, &reply);
            }
            Effect::Region(RegionEffect::Lose { region }) => {
                assert!(self.regions.remove(&region), "lost twice");
            }
            Effect::Ring(RingEffect::Keep { ring }) => {
                assert!(at_hand.is_some(), "nothing is at hand");
                assert!(self.rings.insert(ring), "kept twice");
            }
            Effect::Ring(RingEffect::Send { to, ring, reply }) => {
                assert!(self.connected.contains(&to) && self.rings.contains(&ring));
                check_reply(0, &reply);
            }
            Effect::Ring(RingEffect::Lose { ring }) => {
                assert!(self.rings.remove(&ring), "lost twice");
            }
            Effect::Ring(RingEffect::Pass { to, reply }) => {
                assert!(self.connected.contains(&to) && at_hand.is_some());
                check_reply(0, &reply);
            }
            Effect::Stow(Stow::Keep(key)) => {
                assert!(at_hand.is_some() && self.kept.insert(key), "kept twice");
            }
            Effect::Stow(Stow::Give { key, to, sequence, reply }) => {
                assert!(self.connected.contains(&to) && self.kept.contains(&key));
                check_reply(sequence, &reply);
            }
            Effect::Stow(Stow::LetGo(key)) => {
                assert!(self.kept.remove(&key), "let go twice");
            }
            Effect::Release { ticket } => {
                assert!(self.held.remove(&ticket).is_some(), "released twice");
            }
            Effect::Cut { token, .. } => {
                assert!(self.connected.remove(&token), "cut twice");
            }
            Effect::Tell(notice) => panic!("nobody supervises, but was told {notice:?}"),
            Effect::Keep(_)
            | Effect::LetGo { .. }
            | Effect::Examine { .. }
            | Effect::LookInto { .. }
            | Effect::Kill { .. }
            | Effect::Plan { .. } => {}
            Effect::Note(note) => panic!("nobody records, but was told {note:?}"),
            Effect::Issue { to, .. } | Effect::Check { to, .. } => {
                assert!(self.connected.contains(&to), "a token for nobody");
            }
        }
    }
}

/// A reply fits a packet, and is understood as it was meant.
fn check_reply(sequence: u32, reply: &Reply) {
    let bytes = control::encode_reply(sequence, reply);
    assert!(bytes.len() <= control::MAX_PACKET, "{} bytes", bytes.len());
    let understood = control::decode_reply(&bytes);
    assert_eq!(understood.as_ref(), Ok(&(sequence, reply.clone())));
}
