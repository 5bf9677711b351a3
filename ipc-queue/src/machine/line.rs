//! Who waits: for messages, and for room. First come, first served.

use std::collections::VecDeque;

use super::{Limits, Put, Take, Ticket};

#[derive(Debug)]
pub(super) struct Taker {
    pub(super) ticket: Ticket,
    pub(super) channel: u64,
    pub(super) take: Take,
}

#[derive(Debug)]
pub(super) struct Putter {
    pub(super) ticket: Ticket,
    pub(super) channel: u64,
    pub(super) put: Put,
}

#[derive(Debug, Default)]
pub(super) struct Line {
    takers: VecDeque<Taker>,
    putters: VecDeque<Putter>,
    /// Bytes that wait for room.
    bytes: u64,
    /// Nobody's time is over before; exact after [`Line::overdue`].
    not_before_ns: Option<u64>,
}

impl Line {
    pub(super) fn lengths(&self) -> (u64, u64) {
        (self.takers.len() as u64, self.putters.len() as u64)
    }

    pub(super) fn deadline_ns(&self) -> Option<u64> {
        self.not_before_ns
    }

    pub(super) fn has_putters(&self) -> bool {
        !self.putters.is_empty()
    }

    /// Lets one wait; gives it back where too many do.
    pub(super) fn wait_for_messages(&mut self, taker: Taker, limits: Limits) -> Result<(), Taker> {
        if self.takers.len() >= limits.waiting as usize {
            return Err(taker);
        }
        self.note(taker.take.wait_until_ns);
        self.takers.push_back(taker);
        Ok(())
    }

    /// Lets one wait; gives it back where too many do, or have too much.
    pub(super) fn wait_for_room(&mut self, putter: Putter, limits: Limits) -> Result<(), Putter> {
        let bytes = self.bytes + putter.put.payload.len() as u64;
        if self.putters.len() >= limits.waiting as usize || bytes > limits.bytes {
            return Err(putter);
        }
        self.bytes = bytes;
        self.note(putter.put.wait_until_ns);
        self.putters.push_back(putter);
        Ok(())
    }

    fn note(&mut self, until_ns: u64) {
        self.not_before_ns = Some(self.not_before_ns.map_or(until_ns, |it| it.min(until_ns)));
    }

    pub(super) fn next_taker(&mut self, dead: bool) -> Option<Taker> {
        let index = self.takers.iter().position(|taker| taker.take.dead == dead)?;
        self.takers.remove(index)
    }

    pub(super) fn next_putter_bytes(&self) -> Option<usize> {
        self.putters.front().map(|putter| putter.put.payload.len())
    }

    pub(super) fn next_putter(&mut self) -> Option<Putter> {
        let putter = self.putters.pop_front()?;
        self.bytes -= putter.put.payload.len() as u64;
        Some(putter)
    }

    /// Forgets what a consumer asked for; gives the tickets.
    pub(super) fn supersede(&mut self, consumer: u64) -> Vec<Ticket> {
        let mut old = Vec::new();
        self.takers.retain(|taker| {
            let is_old = taker.take.consumer == consumer;
            if is_old {
                old.push(taker.ticket);
            }
            !is_old
        });
        old
    }

    /// Forgets who waits over a channel: nobody hears the answer.
    pub(super) fn leave(&mut self, channel: u64) {
        self.takers.retain(|taker| taker.channel != channel);
        self.putters.retain(|putter| putter.channel != channel);
        self.bytes = self.putters.iter().map(|putter| putter.put.payload.len() as u64).sum();
    }

    /// Takes out those whose time is over, and says which of them wait for messages.
    pub(super) fn overdue(&mut self, now_ns: u64) -> Vec<(Ticket, bool)> {
        if self.not_before_ns.is_none_or(|at| at > now_ns) {
            return Vec::new();
        }
        let mut over = Vec::new();
        self.takers.retain(|taker| {
            let is_over = taker.take.wait_until_ns <= now_ns;
            if is_over {
                over.push((taker.ticket, true));
            }
            !is_over
        });
        self.putters.retain(|putter| {
            let is_over = putter.put.wait_until_ns <= now_ns;
            if is_over {
                over.push((putter.ticket, false));
                self.bytes -= putter.put.payload.len() as u64;
            }
            !is_over
        });
        let takers = self.takers.iter().map(|taker| taker.take.wait_until_ns);
        let putters = self.putters.iter().map(|putter| putter.put.wait_until_ns);
        self.not_before_ns = takers.chain(putters).min();
        over
    }
}
