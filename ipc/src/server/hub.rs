//! The loop of a server: polls its channels in memory while they are busy, sleeps when they are
//! not, and runs handlers and completions.
//!
//! One thread at a time leads: it polls and sleeps. When others wait in the loop, it gives up the
//! lead before it runs a handler, so that somebody always listens.
//!
//! Channels are *hot* or *armed*. Hot ones are polled in memory. When nothing has come for the
//! spin budget, all hot ones are armed: each is told how to wake us, and looked at once more.
//! While some are busy, those that have been idle for a while are armed without them: each channel
//! that is polled makes every other one wait.

mod lead;
mod sleep;
mod sources;

use std::{
    cell::Cell,
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    eventfd::{EfdFlags, EventFd},
    timerfd::TimerFd,
};

pub(crate) use self::{
    lead::Member,
    sources::{Source, unless_busy},
};
use self::{
    lead::{Lead, Led, Seat},
    sources::Sources,
};
use super::incoming::{Handler, Yield};
use crate::{
    ServiceId,
    channel::Fate,
    claim::Claim,
    clock,
    error::{CallError, NodeError},
    fork::Birth,
    interrupt::Interrupter,
    link::{FOREVER, Link},
    node::Probe,
    sync::{AtomicBool, AtomicU32, Ordering, pause},
    table::{Callback, Outcome},
    wait::{
        futex,
        spin::{Spell, Spin},
    },
};

/// Polls in vain between looks at the clock, at news and at the peers' lives.
const POLLS_PER_LOOK: u32 = 128;
/// Polls in vain without `pause`: what is on its way comes within these.
const EAGER_POLLS: u32 = 1000;
/// Between two such looks under a steady load, which must not keep others from being heard, in ns.
/// While some channels are armed each is a system call.
const LOOK_NS: u64 = 20_000;
/// Between two searches for idle channels, in ns: arming them costs as much as 10 µs.
const TEND_NS: u64 = 1_000_000;
/// Questions of the runtime that wait to be answered.
const PROBES: usize = 16;
/// Events taken from epoll at a time.
const EVENTS: usize = 64;

const TOKEN_KICK: u64 = u64::MAX;
const TOKEN_INTERRUPT: u64 = u64::MAX - 1;
const TOKEN_TIMER: u64 = u64::MAX - 2;

/// How the leader sleeps, for those who have news for it.
mod asleep {
    pub(super) const AWAKE: u32 = 0;
    pub(super) const IN_FUTEX: u32 = 1;
    pub(super) const IN_EPOLL: u32 = 2;
}

thread_local! {
    /// Whether this thread runs a handler or a completion.
    static IN_HANDLER: Cell<bool> = const { Cell::new(false) };
}

/// Tells whether this thread runs a handler or a completion of any server now.
pub fn in_handler() -> bool {
    IN_HANDLER.get()
}

/// Marks this thread as running handlers.
struct InHandler;

impl InHandler {
    fn enter() -> InHandler {
        IN_HANDLER.set(true);
        InHandler
    }
}

impl Drop for InHandler {
    fn drop(&mut self) {
        IN_HANDLER.set(false);
    }
}

#[derive(Debug)]
pub(crate) struct Hub {
    birth: Birth,
    epoll: Epoll,
    /// Wakes the leader from epoll: edge-triggered, never read.
    kick: EventFd,
    /// Counts kicks; the leader sleeps on it, too.
    kicks: AtomicU32,
    asleep: AtomicU32,
    interrupter: Arc<Interrupter>,
    /// The interruption that was last reported.
    seen_turn: AtomicU32,
    lead: Claim<Lead>,
    /// Threads that wait for the lead, and the word that they sleep on.
    waiting: AtomicU32,
    baton: AtomicU32,
    /// Whether somebody polls our descriptor.
    pollable: AtomicBool,
    news: Mutex<News>,
    has_news: AtomicBool,
    has_completions: AtomicBool,
    /// For the deadlines of callbacks, while a foreign loop sleeps for us.
    timer: OnceLock<TimerFd>,
    /// Hears of clients that are gone.
    farewell: OnceLock<Farewell>,
    demotion: OnceLock<Demotion>,
    sources: Sources,
}

/// Takes the number of a channel that has ended.
pub(crate) struct Farewell(pub(crate) Box<dyn Fn(u64) + Send + Sync>);

impl std::fmt::Debug for Farewell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Farewell")
    }
}

/// Takes an instance that has let go of its name, and the epoch at which it served.
pub(crate) struct Demotion(pub(crate) Box<dyn Fn(ServiceId, u64) + Send + Sync>);

impl std::fmt::Debug for Demotion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Demotion")
    }
}

#[derive(Debug, Default)]
struct News {
    members: Vec<Member>,
    summoned: Vec<u32>,
    completions: VecDeque<Completion>,
    /// Of the runtime, which the loop answers.
    probes: Vec<Probe>,
}

struct Completion(Callback, Outcome);

impl std::fmt::Debug for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Completion")
    }
}

impl Hub {
    pub(crate) fn new(spin: Spin, interrupter: Arc<Interrupter>) -> Result<Arc<Hub>, NodeError> {
        let failed = NodeError::system("make an epoll instance");
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let kick = EventFd::from_value_and_flags(0, flags)
            .map_err(NodeError::system("make an eventfd"))?;
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        for (fd, token) in [(kick.as_fd(), TOKEN_KICK), (interrupter.bell(), TOKEN_INTERRUPT)] {
            epoll
                .add(fd, EpollEvent::new(edge, token))
                .map_err(NodeError::system("watch an eventfd"))?;
        }
        Ok(Arc::new(Hub {
            birth: Birth::now(),
            epoll,
            kick,
            kicks: AtomicU32::new(0),
            asleep: AtomicU32::new(asleep::AWAKE),
            seen_turn: AtomicU32::new(interrupter.turn()),
            interrupter,
            lead: Claim::new(Lead::new(spin)),
            waiting: AtomicU32::new(0),
            baton: AtomicU32::new(0),
            pollable: AtomicBool::new(false),
            news: Mutex::default(),
            has_news: AtomicBool::new(false),
            has_completions: AtomicBool::new(false),
            timer: OnceLock::new(),
            farewell: OnceLock::new(),
            demotion: OnceLock::new(),
            sources: Sources::default(),
        }))
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Adds a channel.
    pub(crate) fn add(&self, member: Member) {
        self.tell(|news| news.members.push(member));
    }

    /// Has the leader watch over a call that a callback waits for: a thread that called on the same
    /// channel may have overwritten the sleep that was announced there.
    pub(crate) fn attend(&self, link: &Link) {
        self.summon(link.token.load(Ordering::Relaxed));
    }

    /// Has the leader look at a channel.
    pub(crate) fn summon(&self, token: u32) {
        self.tell(|news| news.summoned.push(token));
    }

    /// Has the leader answer, when it comes round, a question whether it does.
    pub(crate) fn probe(&self, probe: Probe) {
        self.tell(|news| {
            // Those before are not waited for any more.
            if news.probes.len() >= PROBES {
                news.probes.remove(0);
            }
            news.probes.push(probe);
        });
    }

    /// Has a completion run.
    pub(crate) fn complete(&self, callback: Callback, outcome: Outcome) {
        self.news().completions.push_back(Completion(callback, outcome));
        self.has_completions.store(true, Ordering::SeqCst);
        self.kick();
    }

    fn tell(&self, what: impl FnOnce(&mut News)) {
        what(&mut self.news());
        self.has_news.store(true, Ordering::SeqCst);
        self.kick();
    }

    /// Wakes the leader, if it sleeps.
    pub(crate) fn kick(&self) {
        self.kicks.fetch_add(1, Ordering::SeqCst);
        match self.asleep.load(Ordering::SeqCst) {
            asleep::IN_FUTEX => futex::wake(&self.kicks, false, i32::MAX),
            asleep::IN_EPOLL => self.ring(),
            _ => {}
        }
    }

    fn ring(&self) {
        // EAGAIN: the counter is full, and the edge was given.
        let _ = nix::unistd::write(&self.kick, &1_u64.to_ne_bytes());
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loop. Returns after the first round that found work if `once`, at `until`, or when
    /// interrupted.
    pub(crate) fn serve(
        &self,
        until: u64,
        once: bool,
        handler: &mut Handler<'_>,
    ) -> Result<usize, CallError> {
        // An interruption that nobody has heard yet is this call's.
        self.serve_since(self.seen_turn(), until, once, handler)
    }

    /// The interruption that was last reported.
    pub(crate) fn seen_turn(&self) -> u32 {
        self.seen_turn.load(Ordering::Relaxed)
    }

    /// As `serve`, for who has heard of the interruptions up to `turn`.
    pub(crate) fn serve_since(
        &self,
        turn: u32,
        until: u64,
        once: bool,
        handler: &mut Handler<'_>,
    ) -> Result<usize, CallError> {
        if in_handler() {
            return Err(CallError::Reentrant);
        }
        if !self.birth.is_here() {
            return Err(CallError::Forked);
        }
        let mut count = 0;
        loop {
            self.check_interrupted(turn).inspect_err(|_| self.pass_baton())?;
            let Some(lead) = self.lead.try_claim() else {
                if !self.wait_for_lead(until, turn) {
                    return Ok(count);
                }
                continue;
            };
            let mut held = Led { hub: self, lead: Some(lead) };
            let worked = self.work(&mut held, until, once, turn, handler);
            count += *worked.as_ref().unwrap_or(&0);
            // Work stops early when the lead was given up: come back for it.
            let over = until != FOREVER && clock::now_ns() >= until;
            if worked.is_err() || (once && count > 0) || over {
                if let Some(lead) = held.lead.as_deref_mut() {
                    self.leave_pollable(lead);
                }
                return worked.map(|_| count);
            }
        }
    }

    /// Leads until there was work (if `once`), until the lead was given up, or until the time is
    /// over. Returns the number of handlers and completions run.
    fn work(
        &self,
        held: &mut Led<'_>,
        until: u64,
        once: bool,
        turn: u32,
        handler: &mut Handler<'_>,
    ) -> Result<usize, CallError> {
        let mut count = 0;
        let mut now = clock::now_ns();
        let mut may_poll = now < until;
        if let Some(lead) = held.lead.as_deref_mut() {
            may_poll &= lead.spin.may_poll();
            if until.saturating_sub(now) < LOOK_NS || self.pollable.load(Ordering::Relaxed) {
                // Who comes for a moment gets all that there is by now.
                lead.look_at = 0;
            }
            if now >= lead.look_at {
                count += self.look(held, now, false).1;
            }
        }
        let mut spell: Option<Spell> = None;
        // Polls since something came.
        let mut polls = 0_u32;
        loop {
            let worked = self.round(held, now, handler);
            count += worked;
            let Some(lead) = held.lead.as_deref_mut() else { return Ok(count) };
            if worked > 0 {
                if once {
                    return Ok(count);
                }
                if let Some(spell) = spell.take() {
                    spell.paid(&mut lead.spin);
                }
                polls = 0;
                now = clock::now_ns();
                if now < lead.look_at {
                    continue;
                }
            } else {
                polls += 1;
                if !polls.is_multiple_of(POLLS_PER_LOOK) && !lead.hot.is_empty() && may_poll {
                    if polls > EAGER_POLLS {
                        pause();
                    }
                    continue;
                }
                now = clock::now_ns();
            }
            self.check_interrupted(turn)?;
            let (has_news, run) = self.look(held, now, worked == 0);
            count += run;
            let Some(lead) = held.lead.as_deref_mut() else { return Ok(count) };
            if (once && count > 0) || now >= until && !has_news {
                return Ok(count);
            }
            if has_news || worked > 0 {
                continue;
            }
            if spell.get_or_insert_with(|| Spell::begin(&mut lead.spin, || now)).goes_on(now) {
                continue;
            }
            if let Some(spell) = spell.take() {
                spell.in_vain(&mut lead.spin);
            }
            self.sleep(lead, until, turn);
            polls = 0;
            now = clock::now_ns();
        }
    }

    /// Looks at what is not in the rings: doorbells, deadlines, news, lives, completions. Returns
    /// whether there was news, and the number of completions run.
    fn look(&self, held: &mut Led<'_>, now: u64, is_idle: bool) -> (bool, usize) {
        let Some(lead) = held.lead.as_deref_mut() else { return (false, 0) };
        if now >= lead.look_at {
            lead.look_at = now + LOOK_NS;
            self.collect(lead, EpollTimeout::ZERO);
        }
        lead.expire(now);
        let has_news = self.take_news(lead);
        let is_due = now >= lead.tend_at;
        if is_due {
            lead.tend_at = now + TEND_NS;
            lead.cool(now);
        }
        if is_due || is_idle {
            self.check_lives(lead);
        }
        (has_news, self.run_completions(held))
    }

    /// Serves every hot channel that has something. Stops when the lead was given up.
    #[inline]
    fn round(&self, held: &mut Led<'_>, now: u64, handler: &mut Handler<'_>) -> usize {
        let mut worked = 0;
        let mut index = 0;
        loop {
            let Some(lead) = held.lead.as_deref_mut() else { return worked };
            let Some(token) = lead.hot.get(index).copied() else {
                return worked + self.serve_sources(held);
            };
            index += 1;
            let Some(seat) = lead.seats[token as usize].as_mut() else { continue };
            match &seat.member {
                Member::Incoming(incoming) => {
                    if incoming.has_backlog() {
                        incoming.flush();
                    }
                    if !incoming.is_ready() {
                        continue;
                    }
                    let incoming = Arc::clone(incoming);
                    seat.busy_at = now;
                    let turn = lead.turn(token, now);
                    let _in_handler = InHandler::enter();
                    worked += incoming.serve(now, turn, held, handler).unwrap_or(0);
                    if held.lead.is_none() {
                        // Whoever leads now could not arm the channel while we served it.
                        self.kick();
                    }
                }
                Member::Outgoing(link) => {
                    if link.channel.is_ready() || link.is_lined() {
                        link.serve_callbacks(now);
                    }
                }
            }
        }
    }

    /// Takes in what others have for the leader. Returns whether there was anything.
    fn take_news(&self, lead: &mut Lead) -> bool {
        if !self.has_news.load(Ordering::Acquire) {
            return false;
        }
        let News { members, summoned, probes, .. } = {
            let mut news = self.news();
            self.has_news.store(false, Ordering::SeqCst);
            let completions = std::mem::take(&mut news.completions);
            std::mem::replace(&mut *news, News { completions, ..News::default() })
        };
        probes.into_iter().for_each(Probe::answer);
        for member in members {
            self.admit(lead, member);
        }
        for token in summoned {
            lead.heat(token);
        }
        true
    }

    fn admit(&self, lead: &mut Lead, member: Member) {
        let free = lead.seats.iter().position(Option::is_none);
        let token = free.unwrap_or(lead.seats.len()) as u32;
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        let event = EpollEvent::new(edge, u64::from(token));
        if self.epoll.add(member.channel().bell(), event).is_err() {
            // Without a doorbell it could never wake us.
            member.channel().end(Fate::Closed);
            return;
        }
        match &member {
            Member::Incoming(incoming) => incoming.token.store(token, Ordering::Relaxed),
            Member::Outgoing(link) => link.token.store(token, Ordering::Relaxed),
        }
        let is_outgoing = matches!(member, Member::Outgoing(_));
        let seat = Some(Seat { member, is_hot: false, busy_at: 0 });
        match free {
            Some(index) => lead.seats[index] = seat,
            None => lead.seats.push(seat),
        }
        lead.count += 1;
        if is_outgoing {
            lead.outgoing.push(token);
        }
        lead.heat(token);
    }

    fn run_completions(&self, held: &mut Led<'_>) -> usize {
        if !self.has_completions.load(Ordering::Acquire) {
            return 0;
        }
        let mut run = 0;
        // As many as there are now: a completion that starts another call must not keep us here.
        let mut most = {
            let news = self.news();
            self.has_completions.store(false, Ordering::SeqCst);
            news.completions.len()
        };
        while most > 0 {
            most -= 1;
            let Some(Completion(callback, outcome)) = self.news().completions.pop_front() else {
                break;
            };
            held.before_handler();
            let _in_handler = InHandler::enter();
            callback(outcome);
            run += 1;
        }
        if !self.news().completions.is_empty() {
            self.has_completions.store(true, Ordering::SeqCst);
        }
        run
    }

    /// Lets go of the channels whose other end is gone.
    fn check_lives(&self, lead: &mut Lead) {
        let mut gone = Vec::new();
        for &token in &lead.hot {
            let Some(member) = lead.member(token) else { continue };
            let is_over = match member.channel().check_life() {
                Fate::Open => false,
                // What it sent before it went counts, unless it went to another.
                Fate::Died | Fate::Closed => {
                    member.judge_end();
                    let has_left = matches!(member, Member::Incoming(it) if it.has_left());
                    has_left || !member.is_ready() || member.channel().is_cut()
                }
                Fate::Poisoned(_) => true,
            };
            if is_over {
                gone.push(token);
            }
        }
        for token in gone {
            self.dismiss(lead, token);
        }
    }

    fn dismiss(&self, lead: &mut Lead, token: u32) {
        lead.hot.retain(|hot| *hot != token);
        lead.outgoing.retain(|outgoing| *outgoing != token);
        if let Some(Seat { member, .. }) = lead.seats[token as usize].take() {
            lead.count -= 1;
            let _ = self.epoll.delete(member.channel().bell());
            match (member, self.farewell.get()) {
                (Member::Outgoing(link), _) => link.fail_callbacks(),
                (Member::Incoming(it), Some(farewell)) => {
                    farewell.0(it.channel.introduction.channel);
                }
                (Member::Incoming(_), None) => {}
            }
        }
    }

    /// Has clients' ends told; only the first who asks is.
    pub(crate) fn tell_ends(&self, farewell: Farewell) -> bool {
        self.farewell.set(farewell).is_ok()
    }

    /// Has it told who lets go of a name; only the first who asks is.
    pub(crate) fn tell_demotions(&self, demotion: Demotion) -> bool {
        self.demotion.set(demotion).is_ok()
    }

    /// An instance has let go of its name.
    pub(crate) fn demoted(&self, instance: ServiceId, epoch: u64) {
        self.demotion.get().iter().for_each(|it| it.0(instance, epoch));
    }

    fn is_told_something(&self) -> bool {
        self.has_news.load(Ordering::SeqCst) || self.has_completions.load(Ordering::SeqCst)
    }

    /// Each call that runs when the node is interrupted hears of it, or the next one does.
    fn check_interrupted(&self, turn: u32) -> Result<(), CallError> {
        let now = self.interrupter.turn();
        if now == turn {
            return Ok(());
        }
        self.seen_turn.store(now, Ordering::Relaxed);
        Err(CallError::Canceled)
    }
}
