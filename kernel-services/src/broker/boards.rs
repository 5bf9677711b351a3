//! The boards that nodes show of their traffic: who showed which segments, and who may see them.
//! The memory is the reactor's; nothing in it is looked at here.

use std::collections::BTreeMap;

use ipc::{
    ServiceId, Status,
    control::{Reply, Request},
};

use super::{Broker, Carried, Effect, Token, Turn};

/// Names a segment: the node's id above, the segment's number below. Node ids are never reused.
pub(crate) type BoardKey = u64;

/// Segments by key, with their processes. A node has as many as a board can have, at most.
#[derive(Debug, Default)]
pub(super) struct Boards {
    shown: BTreeMap<BoardKey, u32>,
}

impl Boards {
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.shown.is_empty()
    }
}

fn key(node: ServiceId, segment: u32) -> BoardKey {
    u64::from(node.get()) << 32 | u64::from(segment)
}

impl Broker {
    /// Takes a segment in, if it is one: whoever maps it must neither fault nor pay for it. Without
    /// one, the segment of that number is no more.
    pub(super) fn show_board(
        &mut self,
        from: Token,
        node: ServiceId,
        sequence: u32,
        segment: u32,
        carried: Carried,
        turn: &mut Turn,
    ) {
        let board = key(node, segment);
        let Some(session) = self.sessions.get(&from) else { return };
        match carried {
            Carried::One(facts) if facts.fit_board(segment) => {}
            Carried::Nothing => {
                if self.boards.shown.remove(&board).is_some() {
                    turn.out.push(Effect::LoseBoard { board });
                }
                return;
            }
            Carried::One(_) | Carried::Many => {
                return self.cut(from, sequence, Status::PROTOCOL, turn);
            }
        }
        // Shown again, it takes its own place.
        self.boards.shown.insert(board, session.peer.pid);
        turn.out.push(Effect::KeepBoard { board });
    }

    /// Whether this is a process of the runtime's user that nobody supervises.
    pub(super) fn is_operator(&self, who: Token) -> bool {
        let peer = self.sessions.get(&who).map(|session| &session.peer);
        peer.is_some_and(|peer| peer.unit.is_none() && peer.uid == self.uid)
    }

    /// Gives the next segment to an operator. What others do is no supervised service's business.
    pub(super) fn next_board(&self, to: Token, sequence: u32, after: u64, turn: &mut Turn) {
        if !self.is_operator(to) {
            let reply = Reply::Refused(Status::ACCESS);
            return turn.out.push(Effect::Send { to, sequence, reply });
        }
        turn.out.push(match self.boards.shown.range(after..).next() {
            None => Effect::Send { to, sequence, reply: Reply::Done },
            Some((&board, &pid)) => {
                let (node, segment) = (ServiceId::new((board >> 32) as u32), board as u32);
                let reply = Reply::Board { node, pid, segment, next: board + 1 };
                Effect::SendBoard { to, sequence, board, reply }
            }
        });
    }

    /// Has an operator look at traced requests, or at payloads of them.
    pub(super) fn look(&self, to: Token, request: &Request, turn: &mut Turn) -> Reply {
        match *request {
            Request::Trace { instance, every_us, for_ms } => {
                self.trace(to, instance, Reply::Trace { instance, every_us, for_ms }, turn)
            }
            Request::Payloads { instance, bytes, for_ms } => {
                self.show_payloads(to, instance, bytes, for_ms, turn)
            }
            _ => Reply::Refused(Status::PROTOCOL),
        }
    }

    /// Passes an operator's order on to the node that serves an instance.
    fn trace(&self, from: Token, instance: ServiceId, order: Reply, turn: &mut Turn) -> Reply {
        if !self.is_operator(from) {
            return Reply::Refused(Status::ACCESS);
        }
        let node = self.registry.instance(instance).map(|it| it.node);
        let Some(&to) = node.and_then(|node| self.tokens.get(&node)) else {
            return Reply::Refused(Status::NOT_FOUND);
        };
        turn.out.push(Effect::Send { to, sequence: 0, reply: order });
        Reply::Done
    }

    /// A node left: its board goes with it.
    pub(super) fn lose_boards(&mut self, node: ServiceId, turn: &mut Turn) {
        let all = key(node, 0)..=key(node, u32::MAX);
        let gone: Vec<BoardKey> = self.boards.shown.range(all).map(|(&board, _)| board).collect();
        for board in gone {
            self.boards.shown.remove(&board);
            turn.out.push(Effect::LoseBoard { board });
        }
    }
}
