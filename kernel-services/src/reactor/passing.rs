//! Descriptors that pass from one node to another: lanes, doorbells, pidfds, boards, and memory
//! that is kept for those who come later.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use ipc::{
    Status,
    control::{
        Introduction, Reply,
        closer::{PeerSocket, Stranger},
        encode_reply, packet,
    },
};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, socketpair},
};

use super::{Lost, Node, Parcel, Reactor};
use crate::{
    broker::{BoardKey, Event, RegionEffect, Stow, Token},
    events::RingId,
};

/// Memory of nodes, beside lanes that are on their way.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) boards: HashMap<BoardKey, Arc<OwnedFd>>,
    pub(super) regions: HashMap<u64, Arc<OwnedFd>>,
    pub(super) rings: HashMap<RingId, Arc<OwnedFd>>,
    /// For units' successors, by the broker's numbers.
    kept: HashMap<u64, Arc<OwnedFd>>,
}

impl Reactor {
    /// Offers a channel to a service, and to which client.
    pub(super) fn offer(
        &mut self,
        ticket: u64,
        [to, client]: [Token; 2],
        introduction: Introduction,
    ) -> Option<Event> {
        let failed = |status| Some(Event::Failed { ticket, status });
        let fds = match self.make_bell(ticket, client) {
            Ok(fds) => fds,
            Err(status) => return failed(status),
        };
        if let Some(held) = self.held.get(&ticket) {
            held.span.offered(&introduction);
        }
        let bytes = encode_reply(0, &Reply::Incoming(Box::new(introduction)));
        match self.post(to, Parcel::new(bytes, fds)) {
            Ok(()) => None,
            Err(Lost::Introduction) => failed(Status::QUOTA),
            Err(Lost::Node) => self.drop_node(to),
        }
    }

    /// Gives a client the channel that a service has accepted, with its lane where it has one.
    pub(super) fn deliver(
        &mut self,
        ticket: u64,
        (to, sequence): (Token, u32),
        service: Token,
        introduction: Introduction,
        lane: Option<Stranger>,
    ) -> Option<Event> {
        let bell = self.held.remove(&ticket)?.bell;
        let has_lane = lane.is_some();
        let mut fds: Vec<_> = lane.map(|lane| Arc::new(lane.vouched())).into_iter().collect();
        fds.extend(self.pidfd(service));
        let bytes = encode_reply(sequence, &Reply::Connected(Box::new(introduction)));
        match self.post(to, Parcel { bytes, fds, has_lane, bell: Some(bell?) }) {
            Ok(()) => None,
            Err(Lost::Introduction) => self.reply(to, sequence, &Reply::Refused(Status::QUOTA)),
            Err(Lost::Node) => self.drop_node(to),
        }
    }

    /// Makes the doorbell; gives what goes to the service.
    fn make_bell(&mut self, ticket: u64, client: Token) -> Result<Vec<Arc<OwnedFd>>, Status> {
        let pidfd = self.pidfd(client);
        let held = self.held.get_mut(&ticket).ok_or(Status::IO)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .map_err(|errno| match errno {
                Errno::EMFILE | Errno::ENFILE => Status::QUOTA,
                Errno::ENOMEM | Errno::ENOBUFS => Status::NO_MEMORY,
                _ => Status::SYSTEM,
            })?;
        held.bell = Some(PeerSocket::new(ours, &self.closer));
        let mut fds: Vec<_> = held.lane.iter().map(Arc::clone).collect();
        fds.push(Arc::new(theirs));
        fds.extend(pidfd);
        Ok(fds)
    }

    pub(super) fn pidfd(&self, token: Token) -> Option<Arc<OwnedFd>> {
        self.nodes.get(&token)?.pidfd.clone()
    }

    pub(super) fn keep_board(&mut self, board: BoardKey, memory: Stranger) -> Option<Event> {
        // Sealed and of a segment's size, as the broker saw.
        self.memory.boards.insert(board, Arc::new(memory.vouched()));
        None
    }

    pub(super) fn lose_board(&mut self, board: BoardKey) -> Option<Event> {
        self.memory.boards.remove(&board);
        None
    }

    /// Does something with the memory of a region.
    pub(super) fn region(
        &mut self,
        effect: RegionEffect,
        carried: &mut Option<Stranger>,
    ) -> Option<Event> {
        match effect {
            RegionEffect::Keep { region } => {
                // Pinned, allocated memory, as the broker saw.
                let memory = carried.take()?.vouched();
                self.memory.regions.insert(region, Arc::new(memory));
                None
            }
            RegionEffect::Lose { region } => {
                // Freeing much memory takes a while, and nobody is to wait for it.
                if let Some(memory) = self.memory.regions.remove(&region).and_then(Arc::into_inner)
                {
                    drop(Stranger::new(memory, &self.closer));
                }
                None
            }
            RegionEffect::Send { to, sequence, region, owner, reply } => {
                let mut fds: Vec<_> =
                    self.memory.regions.get(&region).cloned().into_iter().collect();
                fds.extend(self.pidfd(owner));
                let bytes = encode_reply(sequence, &reply);
                match self.post(to, Parcel::new(bytes, fds)) {
                    Ok(()) => None,
                    Err(Lost::Introduction) => {
                        self.reply(to, sequence, &Reply::Refused(Status::QUOTA))
                    }
                    Err(Lost::Node) => self.drop_node(to),
                }
            }
        }
    }

    pub(super) fn send_board(
        &mut self,
        to: Token,
        sequence: u32,
        board: BoardKey,
        reply: &Reply,
    ) -> Option<Event> {
        let fds = self.memory.boards.get(&board).cloned().into_iter().collect();
        self.pass(to, sequence, reply, fds)
    }

    pub(super) fn stow(&mut self, stow: Stow, carried: &mut Option<Stranger>) -> Option<Event> {
        match stow {
            // Sealed, as the broker saw.
            Stow::Keep(key) => {
                drop(self.memory.kept.insert(key, Arc::new(carried.take()?.vouched())));
            }
            Stow::LetGo(key) => drop(self.memory.kept.remove(&key)),
            Stow::Give { key, to, sequence, reply } => {
                let fds = self.memory.kept.get(&key).cloned().into_iter().collect();
                return self.pass(to, sequence, &reply, fds);
            }
        }
        None
    }

    fn pass(
        &mut self,
        to: Token,
        sequence: u32,
        reply: &Reply,
        fds: Vec<Arc<OwnedFd>>,
    ) -> Option<Event> {
        let bytes = encode_reply(sequence, reply);
        match self.post(to, Parcel::new(bytes, fds)) {
            Ok(()) => None,
            Err(Lost::Introduction) => self.reply(to, sequence, &Reply::Refused(Status::QUOTA)),
            Err(Lost::Node) => self.drop_node(to),
        }
    }
}

/// Says why, if the node still listens; it is cut in either case.
pub(super) fn farewell(node: &Node, sequence: u32, status: Status) {
    let bytes = encode_reply(sequence, &Reply::Refused(status));
    let _ = packet::send(node.socket.as_fd(), &bytes, &[]);
}

/// Reads the sequence of a packet that cannot be read further, or 0.
pub(super) fn sequence_of(bytes: &[u8]) -> u32 {
    bytes.get(4..8).and_then(|it| it.try_into().ok()).map_or(0, u32::from_le_bytes)
}
