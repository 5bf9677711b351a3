//! After a restart: names are kept for those who served them and live, until they are back.
//!
//! A newcomer that asks for such a name is answered when all of its holders have returned, or when
//! their time is over; it then stands by behind them. So nobody gets a name, and its callers, only
//! for being faster.

use std::collections::HashMap;

use ipc::{ServiceId, Status, control::Request};

use super::{Broker, Carried, Effect, Token, Turn};
use crate::holders::Holder;

/// How long holders have to return: longer than the longest pause between their attempts.
const RETURN_NS: u64 = 3_000_000_000;
/// Registrations that wait at most.
const WAITING: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Returning {
    /// By name, the instances that are expected.
    expected: HashMap<String, Vec<ServiceId>>,
    until_ns: u64,
    /// Whether somebody remembers who serves what.
    pub(super) is_remembered: bool,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    token: Token,
    sequence: u32,
    request: Request,
}

impl Returning {
    pub(super) fn until_ns(&self) -> u64 {
        self.until_ns
    }
}

impl Broker {
    /// Keeps the names of those who held them under an earlier run, for a while.
    pub(crate) fn expecting(mut self, holders: Vec<Holder>, now_ns: u64) -> Broker {
        self.returning.is_remembered = true;
        self.returning.until_ns = now_ns.saturating_add(RETURN_NS);
        for Holder { instance, name, .. } in holders {
            let expected = self.returning.expected.entry(name).or_default();
            expected.push(ServiceId::new(instance));
        }
        self
    }

    /// Somebody is back with a name: who served it may be yet to come, unless somebody was given
    /// it in this run.
    pub(super) fn unsettle(&mut self, name: ServiceId, turn: &Turn) {
        if turn.now_ns < self.returning.until_ns && !self.was_served(name) {
            self.unsettled.insert(name);
        }
    }

    /// Tells whether a name is kept for others than who asks for it.
    pub(super) fn is_kept(&self, name: &str, proven: bool, now_ns: u64) -> bool {
        let Returning { expected, until_ns, .. } = &self.returning;
        !proven && now_ns < *until_ns && expected.contains_key(name)
    }

    /// Has a registration wait.
    pub(super) fn put_off(
        &mut self,
        token: Token,
        sequence: u32,
        request: Request,
    ) -> Result<(), Status> {
        if self.returning.waiting.len() >= WAITING {
            return Err(Status::FULL);
        }
        self.returning.waiting.push(Waiting { token, sequence, request });
        Ok(())
    }

    /// Somebody serves a name: notes it for the next run, and lets in who waited for its return.
    pub(super) fn returned(
        &mut self,
        token: Token,
        instance: ServiceId,
        name: &str,
        turn: &mut Turn,
    ) {
        let Some(session) = self.sessions.get(&token) else { return };
        turn.out.push(Effect::Keep(Holder {
            instance: instance.get(),
            pid: session.peer.pid,
            start_time: session.peer.start_time,
            name: name.to_owned(),
        }));
        let Some(expected) = self.returning.expected.get_mut(name) else { return };
        expected.retain(|&it| it != instance);
        if expected.is_empty() {
            self.returning.expected.remove(name);
            self.let_in(turn);
        }
    }

    /// Whoever has not returned in time is not waited for.
    pub(super) fn end_waiting(&mut self, turn: &mut Turn) {
        if turn.now_ns >= self.returning.until_ns && !self.returning.expected.is_empty() {
            for (_, instances) in self.returning.expected.drain() {
                turn.out.extend(instances.into_iter().map(|instance| Effect::LetGo { instance }));
            }
            self.let_in(turn);
        }
    }

    /// Asks once more on behalf of all who wait.
    fn let_in(&mut self, turn: &mut Turn) {
        for Waiting { token, sequence, request } in std::mem::take(&mut self.returning.waiting) {
            let node = self.sessions.get(&token).and_then(|it| it.node);
            if let Some(node) = node {
                self.request(token, node, sequence, request, Carried::Nothing, turn);
            }
        }
    }

    /// A connection is gone.
    pub(super) fn stop_waiting(&mut self, token: Token) {
        self.returning.waiting.retain(|it| it.token != token);
    }

    /// When holders are not waited for any more.
    pub(super) fn returning_until_ns(&self) -> Option<u64> {
        (!self.returning.expected.is_empty()).then_some(self.returning.until_ns)
    }
}
