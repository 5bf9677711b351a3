//! The lead of a loop: what only the leader has, and how it passes from thread to thread.

use std::{sync::Arc, time::Duration};

use nix::sys::epoll::EpollEvent;

use super::{EVENTS, Hub, sleep::left};
use crate::{
    channel::{Channel, Claimed},
    clock,
    layout::Ring,
    link::{FOREVER, Link},
    server::incoming::{Incoming, Turn, Yield},
    sync::Ordering,
    wait::{
        Fences, futex,
        spin::{Spin, SpinBudget},
    },
};

/// Channels that are polled however idle they are, while the loop polls at all.
const FEW: usize = 2;
/// So long without a frame is idle, in ns: many that call in turn must not be taken for idle.
const IDLE_NS: u64 = 20_000_000;
/// Most channels that are armed at a time beside busy ones, which wait meanwhile.
const COOLED: usize = 64;

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

    /// Of a client that has closed its end: whether it was that client.
    #[cold]
    pub(super) fn judge_end(&self) {
        if let Member::Incoming(it) = self
            && !it.channel.is_ready()
            && let Some(rx) = it.channel.rx.try_claim()
        {
            it.channel.judge_end(&rx);
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

/// The place of a channel in the loop. Its number is the channel's token.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) member: Member,
    /// Whether `Lead::hot` has it.
    pub(super) is_hot: bool,
    /// When it became hot, or last had something.
    pub(super) busy_at: u64,
}

/// What only the leader has.
#[derive(Debug)]
pub(super) struct Lead {
    pub(super) seats: Vec<Option<Seat>>,
    pub(super) count: usize,
    /// Those that are polled in memory. The others were armed, and ring.
    pub(super) hot: Vec<u32>,
    /// When to look at what is not in the rings, however busy these are.
    pub(super) look_at: u64,
    /// When to look for the idle and the gone among the hot.
    pub(super) tend_at: u64,
    /// Who was served last, and until when its turns are short for the sake of others.
    last: u32,
    shared_until: u64,
    /// Those on which we are the client.
    pub(super) outgoing: Vec<u32>,
    pub(super) spin: SpinBudget,
    pub(super) events: Vec<EpollEvent>,
}

impl Lead {
    pub(super) fn new(spin: Spin) -> Lead {
        Lead {
            seats: Vec::new(),
            count: 0,
            hot: Vec::new(),
            look_at: 0,
            tend_at: 0,
            last: u32::MAX,
            shared_until: 0,
            outgoing: Vec::new(),
            spin: SpinBudget::new(spin),
            events: vec![EpollEvent::empty(); EVENTS],
        }
    }

    /// The member of this number, if there is one.
    pub(super) fn member(&self, token: u32) -> Option<&Member> {
        self.seats.get(token as usize)?.as_ref().map(|seat| &seat.member)
    }

    /// Polls this channel in memory from now on.
    pub(super) fn heat(&mut self, token: u32) {
        if let Some(Some(seat)) = self.seats.get_mut(token as usize)
            && !seat.is_hot
        {
            seat.is_hot = true;
            seat.busy_at = clock::now_ns();
            self.hot.push(token);
        }
    }

    /// Notes that it is this channel's turn.
    #[inline]
    pub(super) fn turn(&mut self, token: u32, now: u64) -> Turn {
        if token != self.last {
            self.last = token;
            self.shared_until = now + IDLE_NS;
        }
        if now < self.shared_until { Turn::among(self.hot.len()) } else { Turn::ALONE }
    }

    /// Arms clients' channels that have been idle for long while others are busy. A few are polled
    /// all the same: they cost next to nothing, and a doorbell much.
    pub(super) fn cool(&mut self, now: u64) {
        let most = self.hot.len().saturating_sub(FEW).min(COOLED);
        let is_idle = |token: &u32| {
            let seat = self.seats[*token as usize].as_ref();
            seat.is_some_and(|seat| {
                seat.busy_at.saturating_add(IDLE_NS) <= now
                    && matches!(seat.member, Member::Incoming(_))
            })
        };
        let idle: Vec<u32> = self.hot.iter().copied().filter(is_idle).take(most).collect();
        if !idle.is_empty() {
            // If one has something after all they all stay hot until the next time.
            self.arm(&idle);
        }
    }

    fn links(&self) -> impl Iterator<Item = &Arc<Link>> {
        self.outgoing.iter().filter_map(|token| match self.member(*token) {
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
