//! The lead of a loop: what only the leader has, and how it passes from thread to thread.

use std::{sync::Arc, time::Duration};

use nix::sys::epoll::EpollEvent;

use super::{EVENTS, Hub, sleep::left};
use crate::{
    channel::{Channel, Claimed},
    layout::Ring,
    link::{FOREVER, Link},
    server::incoming::{Incoming, Yield},
    sync::Ordering,
    wait::{
        Fences, futex,
        spin::{Spin, SpinBudget},
    },
};

/// One of the channels that a loop serves.
#[derive(Clone, Debug)]
pub(crate) enum Member {
    /// A client's channel to us.
    Incoming(Arc<Incoming>),
    /// Our channel to a service, for the callbacks of its calls.
    Outgoing(Arc<Link>),
}

impl Member {
    pub(super) fn channel(&self) -> &Channel {
        match self {
            Member::Incoming(incoming) => &incoming.channel,
            Member::Outgoing(link) => &link.channel,
        }
    }

    /// Whether there is something to do.
    #[inline]
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Member::Incoming(incoming) => incoming.is_ready(),
            Member::Outgoing(link) => link.channel.is_ready(),
        }
    }

    /// The ring whose room something here waits for, and the count of taken frames that makes it.
    pub(super) fn wants(&self) -> Option<(Ring, u64)> {
        match self {
            Member::Incoming(incoming) => incoming.wants(),
            Member::Outgoing(link) => link.wants(),
        }
    }

    /// After its receiving claim was given up: a thread that found it held may be waiting.
    pub(super) fn left(&self) {
        if let Member::Outgoing(link) = self {
            link.left_to_followers();
        }
    }
}

/// What only the leader has.
#[derive(Debug)]
pub(super) struct Lead {
    pub(super) members: Vec<Option<Member>>,
    pub(super) count: usize,
    pub(super) hot: Vec<u32>,
    /// Those on which we are the client.
    pub(super) outgoing: Vec<u32>,
    pub(super) spin: SpinBudget,
    pub(super) events: Vec<EpollEvent>,
}

impl Lead {
    pub(super) fn new(spin: Spin) -> Lead {
        Lead {
            members: Vec::new(),
            count: 0,
            hot: Vec::new(),
            outgoing: Vec::new(),
            spin: SpinBudget::new(spin),
            events: vec![EpollEvent::empty(); EVENTS],
        }
    }

    /// Polls this channel in memory from now on.
    pub(super) fn heat(&mut self, token: u32) {
        let exists = self.members.get(token as usize).is_some_and(Option::is_some);
        if exists && !self.hot.contains(&token) {
            self.hot.push(token);
        }
    }

    fn links(&self) -> impl Iterator<Item = &Arc<Link>> {
        self.outgoing.iter().filter_map(|token| match &self.members[*token as usize] {
            Some(Member::Outgoing(link)) => Some(link),
            Some(Member::Incoming(_)) | None => None,
        })
    }

    /// Ends the calls whose time is over, on armed channels, too.
    pub(super) fn expire(&self, now: u64) {
        let due = self.links().filter(|link| link.next_expiry() <= now);
        due.for_each(|link| link.serve_callbacks(now));
    }

    /// The earliest time at which some call's callback is due.
    pub(super) fn next_expiry(&self) -> u64 {
        self.links().map(|link| link.next_expiry()).min().unwrap_or(FOREVER)
    }
}

/// The lead, while a thread has it; given up before a handler runs if others wait.
pub(super) struct Led<'a> {
    pub(super) hub: &'a Hub,
    pub(super) lead: Option<Claimed<'a, Lead>>,
}

impl Yield for Led<'_> {
    #[inline]
    fn before_handler(&mut self) {
        if self.hub.waiting.load(Ordering::Relaxed) > 0 {
            self.give_up();
        }
    }
}

impl Led<'_> {
    #[cold]
    fn give_up(&mut self) {
        if let Some(lead) = self.lead.take() {
            drop(lead);
            self.hub.pass_baton();
        }
    }
}

impl Drop for Led<'_> {
    fn drop(&mut self) {
        if let Some(lead) = self.lead.take() {
            drop(lead);
            self.hub.pass_baton();
        }
    }
}

impl Hub {
    /// Sleeps until the lead may be free. Returns false at `until`.
    pub(super) fn wait_for_lead(&self, until: u64, turn: u32) -> bool {
        let baton = self.baton.load(Ordering::SeqCst);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Fences::within().heavy();
        let mut in_time = true;
        if !self.lead.is_free() && turn == self.interrupter.turn() {
            let time = left(until);
            in_time = time != Some(Duration::ZERO);
            if in_time {
                let word = futex::Word { at: &self.baton, value: baton, shared: false };
                let turned = self.interrupter.word(turn);
                futex::wait_words([Some(word), Some(turned), None, None], time);
            }
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        in_time
    }

    /// After the lead was given up: lets one of the waiting have it.
    pub(super) fn pass_baton(&self) {
        // The release of the lead ended with a light fence; who waits has passed a heavy one.
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.baton.fetch_add(1, Ordering::SeqCst);
            futex::wake(&self.baton, false, 1);
        }
    }
}
