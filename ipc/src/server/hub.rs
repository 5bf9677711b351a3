//! The loop of a server: polls its channels in memory while they are busy, sleeps when they are
//! not, and runs handlers and completions.
//!
//! One thread at a time leads: it polls and sleeps. When others wait in the loop, it gives up the
//! lead before it runs a handler, so that somebody always listens.
//!
//! Channels are *hot* or *armed*. Hot ones are polled in memory. When nothing has come for the
//! spin budget, all hot ones are armed: each is told how to wake us, and looked at once more.

use std::{
    cell::Cell,
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    eventfd::{EfdFlags, EventFd},
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};

use super::incoming::{Handler, Incoming, Yield};
use crate::{
    channel::{Channel, Claimed, Fate, Receive},
    claim::Claim,
    clock,
    error::{CallError, NodeError},
    fork::Birth,
    interrupt::Interrupter,
    link::{FOREVER, Link},
    sync::{AtomicBool, AtomicU32, Ordering, pause},
    table::{Callback, Outcome},
    wait::{
        Fences, Sleep, futex,
        spin::{Spin, SpinBudget, SpinPermit},
    },
};

/// Polls in vain between looks at the clock, at news and at the peers' lives.
const POLLS_PER_LOOK: u32 = 128;
/// Polls in vain without `pause`: what is on its way comes within these.
const EAGER_POLLS: u32 = 1000;
/// Rounds with work between such looks: a steady load must not keep others from being heard.
const ROUNDS_PER_LOOK: u32 = 64;
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

/// One of the channels that a loop serves.
#[derive(Clone, Debug)]
pub(crate) enum Member {
    /// A client's channel to us.
    Incoming(Arc<Incoming>),
    /// Our channel to a service, for the callbacks of its calls.
    Outgoing(Arc<Link>),
}

impl Member {
    fn channel(&self) -> &Channel {
        match self {
            Member::Incoming(incoming) => &incoming.channel,
            Member::Outgoing(link) => &link.channel,
        }
    }

    /// Whether there is something to do.
    #[inline]
    fn is_ready(&self) -> bool {
        match self {
            Member::Incoming(incoming) => incoming.is_ready(),
            Member::Outgoing(link) => link.channel.is_ready(),
        }
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
}

#[derive(Debug, Default)]
struct News {
    members: Vec<Member>,
    summoned: Vec<u32>,
    completions: VecDeque<Completion>,
}

struct Completion(Callback, Outcome);

impl std::fmt::Debug for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Completion")
    }
}

/// What only the leader has.
#[derive(Debug)]
struct Lead {
    members: Vec<Option<Member>>,
    count: usize,
    hot: Vec<u32>,
    /// Those on which we are the client.
    outgoing: Vec<u32>,
    spin: SpinBudget,
    events: Vec<EpollEvent>,
}

/// The lead, while a thread has it; given up before a handler runs if others wait.
struct Led<'a> {
    hub: &'a Hub,
    lead: Option<Claimed<'a, Lead>>,
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
            lead: Claim::new(Lead {
                members: Vec::new(),
                count: 0,
                hot: Vec::new(),
                outgoing: Vec::new(),
                spin: SpinBudget::new(spin),
                events: vec![EpollEvent::empty(); EVENTS],
            }),
            waiting: AtomicU32::new(0),
            baton: AtomicU32::new(0),
            pollable: AtomicBool::new(false),
            news: Mutex::default(),
            has_news: AtomicBool::new(false),
            has_completions: AtomicBool::new(false),
            timer: OnceLock::new(),
        }))
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// From now on our descriptor is readable whenever there is work.
    pub(crate) fn be_pollable(&self) {
        if !self.pollable.swap(true, Ordering::SeqCst) {
            let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
            if let Ok(timer) = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags) {
                let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
                let _ = self.epoll.add(timer.as_fd(), EpollEvent::new(edge, TOKEN_TIMER));
                let _ = self.timer.set(timer);
            }
            self.asleep.store(asleep::IN_EPOLL, Ordering::SeqCst);
            self.kick();
        }
    }

    /// Adds a channel.
    pub(crate) fn add(&self, member: Member) {
        self.tell(|news| news.members.push(member));
    }

    /// Has the leader watch over a call that a callback waits for.
    pub(crate) fn attend(&self, link: &Link) {
        // Awake, it polls the channel anyway, or is about to arm it.
        if self.asleep.load(Ordering::SeqCst) != asleep::AWAKE {
            self.summon(link.token.load(Ordering::Relaxed));
        }
    }

    /// Has the leader look at a channel.
    pub(crate) fn summon(&self, token: u32) {
        self.tell(|news| news.summoned.push(token));
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
        if in_handler() {
            return Err(CallError::Reentrant);
        }
        if !self.birth.is_here() {
            return Err(CallError::Forked);
        }
        // An interruption that nobody has heard yet is this call's.
        let turn = self.seen_turn.load(Ordering::Relaxed);
        let mut handled = 0;
        loop {
            self.check_interrupted(turn)?;
            let Some(lead) = self.lead.try_claim() else {
                if !self.wait_for_lead(until, turn) {
                    return Ok(handled);
                }
                continue;
            };
            let mut led = Led { hub: self, lead: Some(lead) };
            let worked = self.work(&mut led, until, once, turn, handler);
            handled += *worked.as_ref().unwrap_or(&0);
            // Work stops early when the lead was given up: come back for it.
            let over = until != FOREVER && clock::now_ns() >= until;
            if worked.is_err() || (once && handled > 0) || over {
                if let Some(lead) = led.lead.as_deref_mut() {
                    self.leave_pollable(lead);
                }
                return worked.map(|_| handled);
            }
        }
    }

    /// Leads until there was work (if `once`), until the lead was given up, or until the time is
    /// over. Returns the number of handlers and completions run.
    fn work(
        &self,
        led: &mut Led<'_>,
        until: u64,
        once: bool,
        turn: u32,
        handler: &mut Handler<'_>,
    ) -> Result<usize, CallError> {
        let mut handled = 0;
        let mut now = clock::now_ns();
        let is_patient = now < until;
        if let Some(lead) = led.lead.as_deref_mut() {
            self.collect(lead, EpollTimeout::ZERO);
        }
        let mut spell = Spell::default();
        // Polls since something came, and rounds in which something did.
        let (mut polls, mut rounds) = (0_u32, 0_u32);
        loop {
            let worked = self.round(led, now, handler);
            handled += worked;
            let Some(lead) = led.lead.as_deref_mut() else { return Ok(handled) };
            if worked > 0 {
                if once {
                    return Ok(handled);
                }
                spell.end(&mut lead.spin, true);
                (polls, rounds) = (0, rounds + 1);
                now = clock::now_ns();
                if !rounds.is_multiple_of(ROUNDS_PER_LOOK) {
                    continue;
                }
            } else {
                polls += 1;
                if !polls.is_multiple_of(POLLS_PER_LOOK) && !lead.hot.is_empty() && is_patient {
                    if polls > EAGER_POLLS {
                        pause();
                    }
                    continue;
                }
                now = clock::now_ns();
            }
            self.check_interrupted(turn)?;
            if rounds.is_multiple_of(ROUNDS_PER_LOOK) && rounds > 0 {
                self.collect(lead, EpollTimeout::ZERO);
            }
            lead.expire(now);
            let has_news = self.take_news(lead);
            self.check_lives(lead);
            handled += self.run_completions(led);
            let Some(lead) = led.lead.as_deref_mut() else { return Ok(handled) };
            if (once && handled > 0) || now >= until && !has_news {
                return Ok(handled);
            }
            if has_news || worked > 0 || spell.goes_on(&mut lead.spin, now) {
                continue;
            }
            spell.end(&mut lead.spin, false);
            self.sleep(lead, until, turn);
            spell = Spell::default();
            polls = 0;
            now = clock::now_ns();
        }
    }

    /// Serves every hot channel that has something. Stops when the lead was given up.
    #[inline]
    fn round(&self, led: &mut Led<'_>, now: u64, handler: &mut Handler<'_>) -> usize {
        let mut worked = 0;
        let mut index = 0;
        loop {
            let Some(lead) = led.lead.as_deref_mut() else { return worked };
            let Some(token) = lead.hot.get(index).copied() else { return worked };
            index += 1;
            let Some(member) = lead.members[token as usize].as_ref() else { continue };
            match member {
                Member::Incoming(incoming) => {
                    if incoming.has_backlog() {
                        incoming.flush();
                    }
                    if !incoming.is_ready() {
                        continue;
                    }
                    let incoming = Arc::clone(incoming);
                    let _in_handler = InHandler::enter();
                    worked += incoming.serve(now, led, handler).unwrap_or(0);
                    if led.lead.is_none() {
                        // Whoever leads now could not arm the channel while we served it.
                        self.kick();
                    }
                }
                Member::Outgoing(link) => {
                    if link.channel.is_ready() {
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
        let (members, summoned) = {
            let mut news = self.news();
            self.has_news.store(false, Ordering::SeqCst);
            (std::mem::take(&mut news.members), std::mem::take(&mut news.summoned))
        };
        members.into_iter().for_each(|member| self.admit(lead, member));
        for token in summoned {
            lead.heat(token);
        }
        true
    }

    fn admit(&self, lead: &mut Lead, member: Member) {
        let free = lead.members.iter().position(Option::is_none);
        let token = free.unwrap_or(lead.members.len()) as u32;
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
        match free {
            Some(index) => lead.members[index] = Some(member),
            None => lead.members.push(Some(member)),
        }
        lead.count += 1;
        if is_outgoing {
            lead.outgoing.push(token);
        }
        lead.heat(token);
    }

    fn run_completions(&self, led: &mut Led<'_>) -> usize {
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
            led.before_handler();
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
            let Some(member) = &lead.members[token as usize] else { continue };
            let is_over = match member.channel().check_life() {
                Fate::Open => false,
                // What it sent before it went counts.
                Fate::Died | Fate::Closed => !member.is_ready() || member.channel().is_cut(),
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
        if let Some(member) = lead.members[token as usize].take() {
            lead.count -= 1;
            let _ = self.epoll.delete(member.channel().bell());
            if let Member::Outgoing(link) = member {
                link.fail_callbacks();
            }
        }
    }

    /// Arms every hot channel and sleeps until something happens, or until then.
    fn sleep(&self, lead: &mut Lead, until: u64, turn: u32) {
        let pollable = self.pollable.load(Ordering::Relaxed);
        // With one channel, the futex: the shortest way to wake.
        let alone = lead.count == 1 && lead.hot.len() == 1 && !pollable && futex::has_waitv();
        let mode = if alone { asleep::IN_FUTEX } else { asleep::IN_EPOLL };
        let kicks = self.kicks.load(Ordering::SeqCst);
        self.asleep.store(mode, Ordering::SeqCst);
        let quiet = !self.is_told_something() && turn == self.interrupter.turn();
        let soonest = lead.next_expiry().min(until);
        if alone {
            self.sleep_in_futex(lead, quiet, kicks, turn, soonest);
        } else if quiet && self.arm(lead) {
            self.sleep_in_epoll(lead, soonest);
        }
        if !pollable {
            self.asleep.store(asleep::AWAKE, Ordering::SeqCst);
        }
    }

    fn sleep_in_futex(&self, lead: &Lead, quiet: bool, kicks: u32, turn: u32, until: u64) {
        let member = lead.members.iter().flatten().next().cloned();
        let Some(member) = member.filter(|_| quiet) else { return };
        let channel = member.channel();
        let event = channel.event();
        {
            // A thread that leads this link for itself wakes us when it leaves.
            let Some(_rx) = channel.rx.try_claim() else {
                let word = futex::Word { word: &self.kicks, value: kicks, shared: false };
                let turned = self.interrupter.word(turn);
                futex::wait_words([Some(word), Some(turned), None, None], left(until));
                return;
            };
            channel.park(Sleep::Futex);
            if let Member::Incoming(incoming) = &member
                && let Some((ring, count)) = incoming.wants()
            {
                channel.want(ring, count, Sleep::Futex);
            }
            channel.barrier();
        }
        if !member.is_ready() && channel.check_life() == Fate::Open {
            let word = futex::Word { word: &self.kicks, value: kicks, shared: false };
            channel.sleep(event, [Some(word), Some(self.interrupter.word(turn))], left(until));
        }
        disarm(channel);
    }

    fn sleep_in_epoll(&self, lead: &mut Lead, until: u64) {
        let timeout = match left(until) {
            None => EpollTimeout::NONE,
            // Rounded up, so as not to come back too early, and again, and again.
            Some(left) => {
                let ms = u16::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u16::MAX);
                EpollTimeout::from(ms)
            }
        };
        self.collect(lead, timeout);
    }

    /// Hears the doorbells of armed channels; those that rang are hot again. Without a wait it is
    /// no system call unless there are armed channels.
    fn collect(&self, lead: &mut Lead, timeout: EpollTimeout) {
        let all_hot = lead.hot.len() == lead.count && !self.pollable.load(Ordering::Relaxed);
        if all_hot && timeout == EpollTimeout::ZERO {
            return;
        }
        let mut events = std::mem::take(&mut lead.events);
        let count = self.epoll.wait(&mut events, timeout).unwrap_or(0);
        for event in &events[..count] {
            let Ok(token) = u32::try_from(event.data()) else { continue };
            if let Some(Some(member)) = lead.members.get(token as usize) {
                let channel = member.channel();
                // Hung up: the peer is gone, or closed. Its life word says which, if it can.
                if !channel.quiet_bell() && channel.check_life() == Fate::Open {
                    channel.end(Fate::Closed);
                }
                disarm(channel);
                lead.heat(token);
            }
        }
        lead.events = events;
    }

    /// Arms every hot channel; they are hot no more. Returns false, with all as it was, when one
    /// of them has something after all.
    fn arm(&self, lead: &mut Lead) -> bool {
        let members: Vec<(u32, Member)> = lead
            .hot
            .iter()
            .filter_map(|token| Some((*token, lead.members[*token as usize].clone()?)))
            .collect();
        // Claims are held from the announcement to the last look. One that cannot be had belongs
        // to a thread that kicks us when it gives it back.
        let claimed: Vec<(u32, &Member, Claimed<'_, Receive>)> = members
            .iter()
            .filter_map(|(token, member)| Some((*token, member, member.channel().rx.try_claim()?)))
            .collect();
        for (_, member, _) in &claimed {
            member.channel().park(Sleep::Doorbell);
            if let Member::Incoming(incoming) = member
                && let Some((ring, count)) = incoming.wants()
            {
                incoming.channel.want(ring, count, Sleep::Doorbell);
            }
        }
        // One barrier serves all that use the same kind.
        let mut kinds = Vec::new();
        for (_, member, _) in &claimed {
            if !kinds.contains(&member.channel().fences()) {
                kinds.push(member.channel().fences());
                member.channel().barrier();
            }
        }
        let quiet = claimed.iter().all(|(_, member, _)| {
            !member.is_ready() && member.channel().check_life() == Fate::Open && !has_room(member)
        });
        if quiet {
            // Those that another thread serves stay hot, to be looked at when it kicks us.
            let armed: Vec<u32> = claimed.iter().map(|(token, _, _)| *token).collect();
            lead.hot.retain(|token| !armed.contains(token));
        } else {
            claimed.iter().for_each(|(_, member, _)| disarm(member.channel()));
        }
        quiet
    }

    /// Before a return to a foreign loop: everything armed, or our descriptor readable.
    fn leave_pollable(&self, lead: &mut Lead) {
        if !self.pollable.load(Ordering::Relaxed) {
            return;
        }
        self.asleep.store(asleep::IN_EPOLL, Ordering::SeqCst);
        if let Some(timer) = self.timer.get() {
            let expiry = lead.next_expiry();
            let at = Expiration::OneShot(TimeSpec::from_duration(Duration::from_nanos(expiry)));
            let _ = if expiry == FOREVER {
                timer.unset()
            } else {
                timer.set(at, TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            };
        }
        if self.is_told_something() || !self.arm(lead) {
            self.ring();
        }
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

    /// Sleeps until the lead may be free. Returns false at `until`.
    fn wait_for_lead(&self, until: u64, turn: u32) -> bool {
        let baton = self.baton.load(Ordering::SeqCst);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Fences::within().heavy();
        let mut in_time = true;
        if !self.lead.is_free() && turn == self.interrupter.turn() {
            let time = left(until);
            in_time = time != Some(Duration::ZERO);
            if in_time {
                let word = futex::Word { word: &self.baton, value: baton, shared: false };
                let turned = self.interrupter.word(turn);
                futex::wait_words([Some(word), Some(turned), None, None], time);
            }
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        in_time
    }

    /// After the lead was given up: lets one of the waiting have it.
    fn pass_baton(&self) {
        // The release of the lead ended with a light fence; who waits has passed a heavy one.
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.baton.fetch_add(1, Ordering::SeqCst);
            futex::wake(&self.baton, false, 1);
        }
    }
}

impl Lead {
    /// Polls this channel in memory from now on.
    fn heat(&mut self, token: u32) {
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
    fn expire(&self, now: u64) {
        self.links().filter(|link| link.next_expiry() <= now).for_each(|link| {
            link.serve_callbacks(now);
        });
    }

    /// The earliest time at which some call's callback is due.
    fn next_expiry(&self) -> u64 {
        self.links().map(|link| link.next_expiry()).min().unwrap_or(FOREVER)
    }
}

/// A spin of the leader.
#[derive(Debug, Default)]
struct Spell {
    /// When it ends; nothing before it began.
    until: Option<u64>,
    permit: Option<SpinPermit>,
}

impl Spell {
    fn goes_on(&mut self, spin: &mut SpinBudget, now: u64) -> bool {
        let until = *self.until.get_or_insert_with(|| {
            let budget = spin.next_ns();
            if budget == 0 || budget == FOREVER {
                return if budget == 0 { 0 } else { FOREVER };
            }
            self.permit = SpinPermit::get();
            if self.permit.is_some() { now.saturating_add(budget) } else { 0 }
        });
        now < until
    }

    fn end(&mut self, spin: &mut SpinBudget, paid: bool) {
        match self.until.take() {
            Some(until) if until > 0 && paid => spin.paid(),
            Some(until) if until > 0 => spin.in_vain(),
            _ => {}
        }
        self.permit = None;
    }
}

fn disarm(channel: &Channel) {
    channel.unpark();
    channel.unwant(crate::layout::Ring::Urgent);
    channel.unwant(crate::layout::Ring::Ordinary);
}

/// Whether answers that waited for room have it by now.
fn has_room(member: &Member) -> bool {
    let Member::Incoming(incoming) = member else { return false };
    incoming.wants().is_some_and(|(ring, count)| incoming.channel.taken_by_peer(ring) >= count)
}

fn left(until: u64) -> Option<Duration> {
    (until != FOREVER).then(|| Duration::from_nanos(until.saturating_sub(clock::now_ns())))
}
