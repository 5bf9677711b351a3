//! Instances that somebody hears nothing of: what the runtime finds out by itself, and what becomes
//! of them.
//!
//! What callers say only makes it look. A process that `/proc` shows as stopped hangs; so does one
//! whose loop does not answer for longer than its health check allows, or whose handlers run for
//! longer than that. One that was not configured is given a second for the former, and any time for
//! the latter: it may be at work outside its handlers.
//!
//! ```text
//!   Suspect, Detect ─▶ look into /proc ─ stopped ───────────────▶ hangs
//!                        │  ▲    └── runs ─▶ Probe ─ Pulse ─────▶ is well
//!                        │  └── each timeout ──┘ └── silence ───▶ hangs
//!                        └── dead ─────────────────────────────▶ crashed
//! ```

use std::collections::{HashMap, VecDeque};

use ipc::{
    Failure, FailureKind, ServiceId, Status,
    control::{Cause, Reply},
};

use super::{Broker, Effect, Hand, LOOK_NS, Token, Turn, ends::Ends};
use crate::broker::Peer;

/// Instances that are looked into at a time, and who may wait for one of them.
const MOST_SUSPECTS: usize = 1024;
const MOST_ASKING: usize = 64;
/// Failures that are remembered.
const MOST_FAILED: usize = 256;
/// How long a loop may be silent whose health check nobody configured, in ns.
const STILL_NS: u64 = 1_000_000_000;
/// How long one that hangs, and is not stopped, may take to let go, in ns.
const SHORT_NS: u64 = 50_000_000;
/// How long nobody is suspected when there is nobody else, in ns.
const ALONE_NS: u64 = 100_000_000;

/// What `/proc` shows of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// It runs, sleeps, or cannot be seen.
    Runs,
    /// It was stopped by a signal, or by a debugger.
    Stopped,
    /// It has ended, or is being torn down.
    Dead,
}

/// Those that are looked into, and those that have failed.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    pub(super) open: HashMap<ServiceId, Suspect>,
    pub(super) failed: VecDeque<Failed>,
    /// How supervised processes ended.
    pub(super) ends: Ends,
    number: u32,
}

/// One that is looked into.
#[derive(Debug)]
pub(super) struct Suspect {
    /// The name that it serves, if that is to change hands.
    name: Option<ServiceId>,
    begun_ns: u64,
    next_ns: u64,
    timeout_ns: u64,
    silence_ns: u64,
    /// How long handlers may run; 0 for any time.
    busy_us: u64,
    /// Of the question that its loop was asked; 0 before.
    number: u32,
    /// Whether its handlers run for too long, by its own word.
    is_over: bool,
    pub(super) asking: Vec<(Token, u32)>,
}

/// One that has failed.
#[derive(Debug)]
pub(super) struct Failed {
    name: ServiceId,
    pub(super) failure: Failure,
    /// Its process, and when that started; zeros where nothing more will be heard of it.
    pub(super) process: (u32, u64),
    /// Whether the supervisor will tell how that ended.
    pub(super) is_awaited: bool,
    /// Who waits until that was looked at, or told.
    pub(super) asking: Vec<(Token, u32)>,
}

impl Suspects {
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        self.open.values().map(|it| it.next_ns).min()
    }

    /// Whether somebody's suspicion of this instance is looked into.
    pub(super) fn acts_on(&self, instance: ServiceId) -> bool {
        self.open.get(&instance).is_some_and(|it| it.name.is_some())
    }

    /// Remembers one more, and forgets another where there are too many: rather one of which
    /// nobody waits to be told. Gives who waited to be told of what is forgotten, and what they
    /// are to be told.
    #[must_use]
    fn remember(
        &mut self,
        name: ServiceId,
        failure: Failure,
        process: (u32, u64),
    ) -> Vec<((Token, u32), Reply)> {
        let older = self.failed.iter().position(|it| it.failure.instance == failure.instance);
        let is_full = self.failed.len() >= MOST_FAILED;
        let idle = || self.failed.iter().position(|it| it.asking.is_empty()).unwrap_or(0);
        // Of the same instance this is later news. Of another there will be none.
        let (place, reply) = match older {
            Some(place) => (Some(place), Reply::Failure(failure)),
            None => (is_full.then(idle), Reply::Refused(Status::FULL)),
        };
        let forgotten = place.and_then(|place| self.failed.remove(place));
        let (is_awaited, asking) = (false, Vec::new());
        self.failed.push_back(Failed { name, failure, process, is_awaited, asking });
        let asking = forgotten.map(|it| it.asking).unwrap_or_default();
        asking.into_iter().map(|asked| (asked, reply.clone())).collect()
    }
}

impl Broker {
    /// Remembers that an instance has failed; see [`Suspects::remember`].
    fn remember(
        &mut self,
        name: ServiceId,
        failure: Failure,
        process: (u32, u64),
        turn: &mut Turn,
    ) {
        for (asked, reply) in self.groups.suspects.remember(name, failure, process) {
            self.answer_hand(Some(asked), reply, turn);
        }
    }

    /// A caller hears nothing of an instance. It counts only if it has a channel there; and then
    /// for no more than that the runtime looks.
    pub(in crate::broker) fn suspect(
        &mut self,
        from: Token,
        instance: ServiceId,
        mark: u32,
        turn: &mut Turn,
    ) {
        let Some(name) = self.registry.instance(instance).map(|it| it.name) else { return };
        let Some(state) = self.groups.names.get(&name) else { return };
        // One that was told to serve may not have got round to say so.
        let is_now = mark == 0 || state.served_at as u32 == mark;
        let serves = state.serving == Some(instance) && is_now;
        let is_quiet = turn.now_ns < state.quiet_until_ns || state.hand.is_some();
        if !serves || is_quiet || self.groups.suspects.acts_on(instance) {
            return;
        }
        let Some(to) = self.token_of(instance) else { return };
        if self.registry.group(name).len() < 2 || !self.channels.is_between(from, to) {
            return;
        }
        if let Some(state) = self.groups.names.get_mut(&name) {
            state.suspicions += 1;
        }
        self.look_into(instance, name, Some(name), None, turn);
    }

    /// Somebody asks whether an instance has failed.
    pub(in crate::broker) fn detect(
        &mut self,
        asked: (Token, u32),
        service: ServiceId,
        turn: &mut Turn,
    ) -> Result<Option<Reply>, Status> {
        // Of a name that one who serves it, not who is next.
        let serving = self.registry.resolve(service).filter(|it| *it != service).map(|it| {
            let name = self.registry.instance(it).map(|it| it.name);
            name.and_then(|name| self.groups.names.get(&name)?.serving).unwrap_or(it)
        });
        if let Some(instance) = serving.or_else(|| self.registry.resolve(service)) {
            let name = self.registry.instance(instance).ok_or(Status::NOT_FOUND)?.name;
            return self.ask_about(asked, instance, name, turn).map(|()| None);
        }
        let is_meant = |it: &&mut Failed| it.failure.instance == service || it.name == service;
        let failed = self.groups.suspects.failed.iter_mut().rev().find(is_meant);
        let failed = failed.ok_or(Status::NOT_FOUND)?;
        let is_lost = failed.failure.kind == FailureKind::Unreachable;
        if !is_lost && !failed.is_awaited {
            return Ok(Some(Reply::Failure(failed.failure)));
        }
        if failed.asking.len() >= MOST_ASKING {
            return Err(Status::FULL);
        }
        failed.asking.push(asked);
        if !is_lost {
            return Ok(None);
        }
        // Its connection was lost; by now its process may be seen to have ended.
        let (instance, (pid, started)) = (failed.failure.instance, failed.process);
        turn.out.push(Effect::LookInto { instance, processes: vec![(instance, pid, started)] });
        Ok(None)
    }

    fn ask_about(
        &mut self,
        asked: (Token, u32),
        instance: ServiceId,
        name: ServiceId,
        turn: &mut Turn,
    ) -> Result<(), Status> {
        let is_full = self.groups.suspects.open.len() >= MOST_SUSPECTS;
        match self.groups.suspects.open.get_mut(&instance) {
            Some(suspect) if suspect.asking.len() >= MOST_ASKING => return Err(Status::FULL),
            Some(suspect) => suspect.asking.push(asked),
            None if is_full => return Err(Status::FULL),
            None => self.look_into(instance, name, None, Some(asked), turn),
        }
        Ok(())
    }

    fn look_into(
        &mut self,
        instance: ServiceId,
        name: ServiceId,
        acts: Option<ServiceId>,
        asked: Option<(Token, u32)>,
        turn: &mut Turn,
    ) {
        let plan = self.plan(name);
        let health = plan.map(|plan| plan.health).unwrap_or_default();
        let ns = |ms: u32| u64::from(ms) * 1_000_000;
        let silence_ns = plan.map_or(STILL_NS, |plan| ns(plan.health.silence_ms()));
        let suspects = &mut self.groups.suspects;
        if let Some(open) = suspects.open.get_mut(&instance) {
            open.name = open.name.or(acts);
            return;
        }
        if suspects.open.len() >= MOST_SUSPECTS {
            return;
        }
        let suspect = Suspect {
            name: acts,
            begun_ns: turn.now_ns,
            next_ns: turn.now_ns,
            timeout_ns: ns(health.timeout_ms),
            silence_ns,
            busy_us: u64::from(health.busy_ms) * 1000,
            number: 0,
            is_over: false,
            asking: asked.into_iter().collect(),
        };
        suspects.open.insert(instance, suspect);
        self.look_at_suspects(turn);
    }

    /// Looks again at those whose time it is.
    pub(in crate::broker) fn look_at_suspects(&mut self, turn: &mut Turn) {
        let due = self.groups.suspects.open.iter_mut().filter(|(_, it)| it.next_ns <= turn.now_ns);
        let due: Vec<_> = due
            .map(|(&instance, it)| {
                it.next_ns = turn.now_ns + it.timeout_ns;
                (instance, it.name)
            })
            .collect();
        for (instance, name) in due {
            // Who may be next is looked at as well.
            let others = name.map(|name| self.registry.group(name)).unwrap_or_default();
            let others = others.iter().copied().filter(|it| *it != instance);
            let all = std::iter::once(instance).chain(others);
            let process = |it: ServiceId| {
                let session = self.sessions.get(&self.token_of(it)?)?;
                Some((it, session.peer.pid, session.peer.start_time))
            };
            let processes = all.filter_map(process).collect();
            turn.out.push(Effect::LookInto { instance, processes });
        }
    }

    /// What came of such a look.
    pub(in crate::broker) fn looked_into(
        &mut self,
        instance: ServiceId,
        found: &[(ServiceId, Sight)],
        turn: &mut Turn,
    ) {
        let sight = found.iter().find(|(it, _)| *it == instance).map(|(_, sight)| *sight);
        let Some(suspect) = self.groups.suspects.open.get_mut(&instance) else {
            return self.examine_dead(instance, sight, turn);
        };
        let silent_ns = turn.now_ns.saturating_sub(suspect.begun_ns);
        let is_late = suspect.number != 0 && silent_ns >= suspect.silence_ns;
        match sight {
            Some(Sight::Stopped) => self.condemn(instance, true, found, turn),
            Some(Sight::Runs) if suspect.is_over || is_late => {
                self.condemn(instance, false, found, turn);
            }
            Some(Sight::Runs) if suspect.number == 0 => self.probe(instance, turn),
            Some(Sight::Runs) => {}
            // How it ended is told soon, and whoever asked is told then.
            Some(Sight::Dead) if self.is_awaited(instance) => {}
            // Its standbys know it already, or its connection tells.
            Some(Sight::Dead) | None => {
                self.close_suspect(instance, FailureKind::Crashed, turn);
            }
        }
    }

    /// Has an instance's loop say that it comes round.
    fn probe(&mut self, instance: ServiceId, turn: &mut Turn) {
        let suspects = &mut self.groups.suspects;
        suspects.number = suspects.number.wrapping_add(1).max(1);
        let number = suspects.number;
        if let Some(suspect) = suspects.open.get_mut(&instance) {
            suspect.number = number;
        }
        if let Some(to) = self.token_of(instance) {
            let reply = Reply::Probe { instance, number };
            turn.out.push(Effect::Send { to, sequence: 0, reply });
        }
    }

    /// An instance says that its loop comes round, or that its handlers run.
    pub(in crate::broker) fn pulse(
        &mut self,
        from: Token,
        instance: ServiceId,
        number: u32,
        busy_us: u64,
        turn: &mut Turn,
    ) {
        let is_own = self.token_of(instance) == Some(from);
        let Some(suspect) = self.groups.suspects.open.get_mut(&instance) else { return };
        if !is_own || suspect.number != number {
            return;
        }
        if busy_us > 0 && suspect.busy_us > 0 && busy_us >= suspect.busy_us {
            // Unless another thread comes round until the next look.
            suspect.is_over = true;
        } else {
            self.close_suspect(instance, FailureKind::None, turn);
        }
    }

    /// It is known how an instance is: whoever asked is told.
    pub(super) fn close_suspect(
        &mut self,
        instance: ServiceId,
        kind: FailureKind,
        turn: &mut Turn,
    ) {
        let Some(suspect) = self.groups.suspects.open.remove(&instance) else { return };
        let name = self.registry.instance(instance).map(|it| it.name);
        let state = name.and_then(|name| self.groups.names.get_mut(&name));
        let mut epoch = 0;
        if let Some(state) = state {
            epoch = if state.serving == Some(instance) { state.served_at } else { 0 };
            if kind == FailureKind::None {
                state.quiet_until_ns = turn.now_ns + suspect.timeout_ns;
            }
        }
        let is_well = kind == FailureKind::None;
        let failure = Failure {
            kind,
            instance,
            epoch,
            detected_at_ns: if is_well { 0 } else { turn.now_ns },
            last_seen_ns: if is_well { turn.now_ns } else { suspect.begun_ns },
            end: self.end_of(instance).filter(|_| kind == FailureKind::Crashed),
        };
        if let Some(name) = name.filter(|_| !is_well) {
            self.remember(name, failure, (0, 0), turn);
        }
        for asked in suspect.asking {
            self.answer_hand(Some(asked), Reply::Failure(failure), turn);
        }
    }

    /// One hangs: its name goes to another, at once if it is stopped, or else when it has let go,
    /// for which it has little time.
    fn condemn(
        &mut self,
        instance: ServiceId,
        at_once: bool,
        found: &[(ServiceId, Sight)],
        turn: &mut Turn,
    ) {
        let Some(suspect) = self.groups.suspects.open.get(&instance) else { return };
        let (name, begun_ns) = (suspect.name, suspect.begun_ns);
        self.close_suspect(instance, FailureKind::Hung, turn);
        let Some(name) = name else { return };
        let unfit: Vec<_> =
            found.iter().filter(|(_, it)| *it != Sight::Runs).map(|(it, _)| *it).collect();
        let heir = self.choose(name, Some(instance), &unfit);
        let Some(state) = self.groups.names.get_mut(&name) else { return };
        let Some(to) = heir.filter(|_| state.serving == Some(instance) && state.hand.is_none())
        else {
            state.quiet_until_ns = turn.now_ns + ALONE_NS;
            return;
        };
        state.hung.push(instance);
        let is_killed = self.fence(instance, turn);
        let patience_ns = match (is_killed, at_once) {
            // Its standby sees it dead, and goes by itself.
            (true, _) => LOOK_NS,
            (false, true) => 0,
            (false, false) => SHORT_NS,
        };
        let detected = turn.now_ns.saturating_sub(begun_ns) / 1000;
        let hand = Hand {
            from: instance,
            to,
            begun_ns: turn.now_ns,
            until_ns: turn.now_ns + patience_ns,
            cause: Cause::Hung,
            detected_us: u32::try_from(detected).unwrap_or(u32::MAX).max(1),
            asked: None,
        };
        self.begin_hand(name, hand, turn);
        self.end_hands(turn);
    }

    /// An instance is gone with its connection: whether its process died is seen when somebody
    /// asks.
    pub(in crate::broker) fn note_gone(
        &mut self,
        instance: ServiceId,
        name: ServiceId,
        peer: &Peer,
        turn: &mut Turn,
    ) {
        let state = self.groups.names.get(&name).filter(|it| it.serving == Some(instance));
        let epoch = state.map_or(0, |it| it.served_at);
        let process = (peer.pid, peer.start_time);
        let suspects = &mut self.groups.suspects;
        let (has_ended, end) = (suspects.ends.has(process), suspects.ends.of(process));
        let kind = if has_ended { FailureKind::Crashed } else { FailureKind::Unreachable };
        let now_ns = turn.now_ns;
        let (detected_at_ns, last_seen_ns) = (now_ns, now_ns);
        let failure = Failure { kind, instance, epoch, detected_at_ns, last_seen_ns, end };
        let asking = suspects.open.remove(&instance).map(|it| it.asking).unwrap_or_default();
        self.remember(name, failure, process, turn);
        let is_awaited = peer.unit.is_some() && !has_ended;
        if !is_awaited || asking.is_empty() {
            for asked in asking {
                self.answer_hand(Some(asked), Reply::Failure(failure), turn);
            }
        } else if let Some(failed) = self.groups.suspects.failed.back_mut() {
            failed.asking = asking;
            let processes = vec![(instance, process.0, process.1)];
            turn.out.push(Effect::LookInto { instance, processes });
        }
        if let Some(failed) = self.groups.suspects.failed.back_mut() {
            failed.is_awaited = is_awaited;
        }
    }

    /// An instance was let go of in order.
    pub(in crate::broker) fn note_left(
        &mut self,
        instance: ServiceId,
        name: ServiceId,
        process: (u32, u64),
        turn: &mut Turn,
    ) {
        let now_ns = turn.now_ns;
        let failure = Failure {
            kind: FailureKind::Stopped,
            instance,
            epoch: 0,
            detected_at_ns: now_ns,
            last_seen_ns: now_ns,
            end: None,
        };
        self.remember(name, failure, process, turn);
        if let Some(suspect) = self.groups.suspects.open.remove(&instance) {
            for asked in suspect.asking {
                self.answer_hand(Some(asked), Reply::Failure(failure), turn);
            }
        }
    }

    /// One that is gone was looked at: who asks of it is told what became of it.
    fn examine_dead(&mut self, instance: ServiceId, sight: Option<Sight>, turn: &mut Turn) {
        let mut failed = self.groups.suspects.failed.iter_mut();
        let Some(failed) = failed.find(|it| it.failure.instance == instance) else { return };
        let failure = &mut failed.failure;
        if failure.kind == FailureKind::Unreachable && sight == Some(Sight::Dead) {
            failure.kind = FailureKind::Crashed;
        }
        if failed.is_awaited && sight == Some(Sight::Dead) {
            return;
        }
        let reply = Reply::Failure(*failure);
        for asked in std::mem::take(&mut failed.asking) {
            self.answer_hand(Some(asked), reply.clone(), turn);
        }
    }
}
