//! A process that serves the name, or stands by for it: what a node does, around the decisions of
//! the real [`Standby`].

use std::{
    collections::HashMap,
    rc::{Rc, Weak},
};

use ipc::{
    Priority, ServiceId, Status,
    control::{Introduction, Reply, Request, SERVICE_DEDUP, SERVICE_IDEMPOTENT, Ticket},
    once::{Gate, Limits, RequestKey},
    simulation::Standby,
};

use super::{
    NAME,
    chance::Chance,
    gate::Words,
    lane::{Lane, Message, Outcome, wish},
    net::Net,
    record::{Kind, Record},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Running,
    Frozen,
    /// It does nothing more; the kernel has its lanes still to mark, and the rest to tear down.
    Killed,
    Gone,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) process: usize,
    pub(super) life: Life,
    instance: ServiceId,
    name: ServiceId,
    ticket: Ticket,
    /// Where it stands, as `Post` has it.
    pub(super) epoch: u64,
    untold: u64,
    standing: Option<Standby<Lane>>,
    lanes: Vec<Rc<Lane>>,
    watching: Vec<Weak<Lane>>,
    opening: HashMap<u32, ServiceId>,
    last_sequence: u32,
    /// What it has taken, and whether it has acted on it.
    at_work: Option<Work>,
    is_leaving: bool,
    /// What the runtime asked its loop; 0 for nothing.
    probed: u32,
    /// What it wrote down of what it answered, when it served last.
    pub(super) log: Option<Log>,
}

/// A gate, and its memory: a new one each time that the name comes to this process.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) epoch: u64,
    pub(super) words: Words,
    gate: Gate<Words>,
}

#[derive(Debug)]
struct Work {
    lane: Rc<Lane>,
    message: Message,
    epoch: u64,
    outcome: Option<Outcome>,
}

impl Member {
    pub(super) fn new(net: &mut Net) -> Member {
        Member {
            process: net.enter(),
            life: Life::Running,
            instance: ServiceId::NONE,
            name: ServiceId::NONE,
            ticket: [0; 32],
            epoch: 0,
            untold: 0,
            standing: None,
            lanes: Vec::new(),
            watching: Vec::new(),
            opening: HashMap::new(),
            last_sequence: 0,
            at_work: None,
            is_leaving: false,
            probed: 0,
            log: None,
        }
    }

    pub(super) fn name(&self) -> ServiceId {
        self.name
    }

    /// How it stands, for who looks at a history.
    pub(super) fn sketch(&self) -> String {
        let Member { process, life, instance, epoch, is_leaving, standing, .. } = self;
        format!("{process}: {life:?} {instance} epoch {epoch} leaves {is_leaving} {standing:?}")
    }

    /// The epoch at which it took what it works on.
    pub(super) fn works_at(&self) -> u64 {
        self.at_work.as_ref().map_or(self.epoch, |work| work.epoch)
    }

    pub(super) fn is_registered(&self) -> bool {
        self.instance != ServiceId::NONE
    }

    pub(super) fn is_alive(&self) -> bool {
        matches!(self.life, Life::Running | Life::Frozen)
    }

    /// Whether nothing of it is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.life != Life::Running || self.at_work.is_none()
    }

    /// It is killed, and does nothing more.
    pub(super) fn kill(&mut self, net: &mut Net) {
        self.life = Life::Killed;
        if let Some(log) = &self.log {
            log.words.die();
        }
        net.killed[self.process] = true;
    }

    /// The kernel marks one of its lanes, or, when all are, tears down the rest.
    pub(super) fn fall_apart(&mut self, net: &mut Net, chance: &mut Chance) {
        let unmarked: Vec<_> = self.lanes.iter().filter(|lane| !lane.died.get()).collect();
        if unmarked.is_empty() {
            self.life = Life::Gone;
            self.standing = None;
            return net.hang_up(self.process);
        }
        unmarked[chance.below(unmarked.len())].died.set(true);
    }

    /// Does one thing of what it could do now.
    pub(super) fn act(
        &mut self,
        net: &mut Net,
        record: &mut Record,
        fate: (Option<&Words>, bool),
        chance: &mut Chance,
    ) {
        if !net.is_tied(self.process) {
            net.dial(self.process);
        }
        match chance.below(8) {
            0 | 1 => self.hear(net, record),
            2 => self.keep_vigil(net, record),
            3 => {
                self.come_round(net);
                self.leave(net);
            }
            4 | 5 if self.at_work.is_none() => self.take_frame(net, record, chance),
            _ => self.work(net, record, fate, chance),
        }
    }

    fn hear(&mut self, net: &mut Net, record: &mut Record) {
        let Some(down) = net.hear(self.process) else { return };
        match down.reply {
            Reply::Welcome { .. } => {
                // Offers and answers of the connection before never come.
                self.opening.clear();
                let register = Request::Register {
                    flags: match record.kind {
                        Kind::Plain => 0,
                        Kind::Idempotent => SERVICE_IDEMPOTENT,
                        Kind::Gated => SERVICE_DEDUP,
                    },
                    claim_instance: self.instance.get(),
                    claim_name: self.name.get(),
                    ticket: self.ticket,
                    name: NAME.to_owned(),
                };
                net.say(self.process, 1, register);
            }
            Reply::Registered { instance, name, ticket } => {
                (self.instance, self.name, self.ticket) = (instance, name, ticket);
                if self.epoch != 0 {
                    self.say_epoch(net, self.epoch);
                }
                for (serves, lane) in self.ends() {
                    net.say(self.process, 0, Request::Holds { serves, introduction: lane });
                }
            }
            Reply::Group(group) => {
                let rank = group.members.iter().position(|id| *id == self.instance);
                if let Some(rank) = rank {
                    self.standing = Some(Standby::new(&group, rank, self.standing.take()));
                }
            }
            Reply::Promote { instance, epoch }
                if instance == self.instance && self.take(epoch, record) =>
            {
                self.say_epoch(net, epoch);
            }
            Reply::Yield { instance } if instance == self.instance => {
                record.say(|| format!("{} is to let go", self.process));
                self.standing.iter_mut().for_each(Standby::void);
                if std::mem::take(&mut self.epoch) == 0 {
                    return self.say_epoch(net, 0);
                }
                self.lanes.iter().for_each(|lane| lane.held.set(true));
                self.is_leaving = true;
            }
            Reply::Probe { instance, number } if instance == self.instance => {
                self.probed = number;
            }
            Reply::Incoming(introduction) => self.join(net, *introduction, down.lane),
            Reply::Connected(introduction) => {
                self.opening.remove(&down.sequence);
                if let (Some(lane), Some(standing)) = (down.lane, &mut self.standing) {
                    lane.told_opener.set(Some(*introduction));
                    self.watching.retain(|it| it.strong_count() > 0);
                    self.watching.push(Rc::downgrade(&lane));
                    standing.watch(introduction.dest, lane);
                }
            }
            Reply::Refused(_) => {
                self.opening.remove(&down.sequence);
            }
            _ => {}
        }
    }

    fn ends(&self) -> Vec<(bool, Introduction)> {
        let told = |lane: &Rc<Lane>| lane.told_server.get().map(|it| (true, it));
        let open = self.lanes.iter().filter(|lane| lane.is_open()).filter_map(told);
        let watching = self.watching.iter().filter_map(Weak::upgrade).filter(|it| it.is_open());
        open.chain(watching.filter_map(|lane| lane.told_opener.get().map(|it| (false, it))))
            .collect()
    }

    fn join(&mut self, net: &mut Net, introduction: Introduction, lane: Option<Rc<Lane>>) {
        let Some(lane) = lane else { return };
        lane.server.set(self.process);
        lane.told_server.set(Some(introduction));
        stand(&lane, self.epoch);
        self.lanes.push(Rc::clone(&lane));
        let accept = Request::Accept { channel: introduction.channel, status: Status::OK };
        net.say_with(self.process, 0, accept, Some(lane));
    }

    fn say_epoch(&self, net: &mut Net, epoch: u64) {
        net.say(self.process, 0, Request::Promoted { instance: self.instance, epoch });
    }

    /// Serves from now on, unless it does at this epoch or a later one.
    fn take(&mut self, epoch: u64, record: &mut Record) -> bool {
        if self.epoch >= epoch {
            return false;
        }
        self.epoch = epoch;
        record.serves(self.process, epoch);
        self.lanes.iter().for_each(|lane| stand(lane, epoch));
        true
    }

    /// Its loop comes round, and answers whoever asks whether it does.
    fn come_round(&mut self, net: &mut Net) {
        for lane in self.lanes.iter().filter(|lane| lane.asked.take()) {
            lane.pulse.set(true);
        }
        let (instance, number) = (self.instance, std::mem::take(&mut self.probed));
        if number != 0 {
            net.say(self.process, 0, Request::Pulse { instance, number, busy_us: 0 });
        }
    }

    /// Finishes what it has taken, lets the name go, and says so.
    fn leave(&mut self, net: &mut Net) {
        if self.is_leaving && self.at_work.is_none() {
            self.is_leaving = false;
            if self.epoch != 0 {
                return;
            }
            for lane in &self.lanes {
                lane.held.set(true);
                lane.mark.set(0);
            }
            self.say_epoch(net, 0);
        }
    }

    /// Serves if it is due; another's turn tells the runtime.
    fn is_due(&mut self, net: &Net, record: &mut Record) -> bool {
        if self.epoch != 0 {
            return true;
        }
        // Its warden is awake before its vigil: it has heard what the runtime said.
        if net.has_news(self.process) {
            return false;
        }
        let Some(epoch) = self.standing.as_mut().and_then(Standby::decide) else { return false };
        self.untold = epoch;
        self.take(epoch, record)
    }

    fn keep_vigil(&mut self, net: &mut Net, record: &mut Record) {
        self.is_due(net, record);
        // What it has let go of meanwhile is no news.
        let untold = std::mem::take(&mut self.untold);
        if untold != 0 && untold == self.epoch {
            self.say_epoch(net, untold);
        }
        if self.epoch == 0
            && let Some(standing) = &self.standing
        {
            for instance in standing.wanted() {
                if !self.opening.values().any(|it| *it == instance) {
                    self.last_sequence += 1;
                    self.opening.insert(self.last_sequence, instance);
                    net.connect(self.process, self.last_sequence, instance);
                }
            }
        }
    }

    /// Takes a frame of some channel, unless it stands by.
    fn take_frame(&mut self, net: &Net, record: &mut Record, chance: &mut Chance) {
        if self.lanes.is_empty() {
            return;
        }
        for lane in &self.lanes {
            // Whoever opened it has dropped it.
            lane.closed.set(lane.closed.get() || Rc::strong_count(lane) == 1);
        }
        let (first, count) = (chance.below(self.lanes.len()), self.lanes.len());
        let has_news = |it: &usize| self.lanes[*it].closed.get() || !self.lanes[*it].is_empty();
        let ready = (0..count).map(|it| (first + it) % count).find(has_news);
        let Some(index) = ready else { return };
        let lane = Rc::clone(&self.lanes[index]);
        let is_held = lane.held.get() && (!self.is_due(net, record) || lane.held.get());
        let has_left = lane.wish.get() == wish::NOTHING;
        if lane.closed.get() && (is_held || has_left || lane.is_empty()) {
            self.lanes.swap_remove(index);
        } else if !is_held && let Some(message) = lane.take() {
            record.taken(self.process, &message);
            self.at_work = Some(Work { lane, message, epoch: self.epoch, outcome: None });
        }
    }

    /// Acts on what it took, or answers.
    fn work(
        &mut self,
        net: &mut Net,
        record: &mut Record,
        (predecessor, may_die): (Option<&Words>, bool),
        chance: &mut Chance,
    ) {
        let Some(mut work) = self.at_work.take() else { return };
        if let Some(outcome) = work.outcome {
            if work.message.wants_answer {
                work.lane.answers.borrow_mut().push_back((work.message.id, outcome));
            }
            return;
        }
        work.outcome = Some(match record.kind {
            Kind::Plain => record.effect(self.process, work.epoch, &work.message),
            Kind::Idempotent => {
                let outcome = record.effect(self.process, work.epoch, &work.message);
                if outcome == Outcome::Refused {
                    // Another serves, whom its caller is about to ask. To refuse would be to say
                    // that it was not done, and one before may have done it.
                    return;
                }
                outcome
            }
            Kind::Gated => {
                let dies = may_die && chance.one_in(24);
                let outcome = self.pass_gate(record, &work, predecessor, dies);
                if dies {
                    return self.kill(net);
                }
                outcome
            }
        });
        self.at_work = Some(work);
    }

    /// The same through a gate; `dies` is it before the gate is closed.
    fn pass_gate(
        &mut self,
        record: &mut Record,
        work: &Work,
        predecessor: Option<&Words>,
        dies: bool,
    ) -> Outcome {
        let (epoch, process) = (work.epoch, self.process);
        if self.log.as_ref().is_none_or(|log| log.epoch < epoch) {
            record.begins(epoch);
            let words = Words::new();
            let gate = Gate::with_log(Limits::default(), words.clone(), predecessor);
            self.log = Some(Log { epoch, words, gate: gate.expect("a log") });
        }
        let Some(Log { gate, words, .. }) = &self.log else { return Outcome::Refused };
        let Message { id, urgent, caller, .. } = work.message;
        let priority = if urgent { Priority::Critical } else { Priority::Normal };
        // The caller's process, as the kernel proves it, without the ring.
        let key = RequestKey::new(ServiceId::new(caller / 4 + 1), id, priority);
        let answer = gate.carry_out(key, || {
            let outcome = record.effect(process, work.epoch, &work.message);
            if dies {
                words.die();
            }
            if outcome == Outcome::Refused { Err(Status::STALE) } else { Ok(Vec::new()) }
        });
        match answer {
            Ok(_) => Outcome::Answered,
            Err(Status::MAYBE) => Outcome::Maybe,
            Err(_) => Outcome::Refused,
        }
    }
}

/// A channel of an instance that serves at this epoch, or stands by.
fn stand(lane: &Lane, epoch: u64) {
    lane.mark.set(epoch as u32);
    let is_wanted = lane.wish.get() != wish::NOTHING && epoch >= lane.required.get();
    lane.held.set(epoch == 0 || !is_wanted);
}
