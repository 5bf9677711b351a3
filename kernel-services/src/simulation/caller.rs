//! A process that calls the name: what a client does, around the decisions of the real [`Keeper`].

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    rc::Rc,
};

use ipc::{
    ServiceId,
    control::{Group, Reply, Request, SERVICE_IDEMPOTENT},
    simulation::{self, Advice, Ended, Fortune, Keeper, Late, Watcher},
};

use super::{
    chance::Chance,
    lane::{Lane, Message, Outcome, Ring, wish},
    net::Net,
    record::Record,
};

/// Standbys to which channels are opened ahead.
const MOST_AHEAD: usize = 2;
/// Requests outstanding.
const MOST_CALLS: usize = 6;

/// A channel that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// To whoever serves the name, to go on with.
    Name,
    Ahead(ServiceId),
}

/// A request that was sent, and not ended.
#[derive(Clone, Debug)]
struct Call {
    message: Message,
    /// Whether a thread holds it, and sends it again by itself.
    by_thread: bool,
    /// By which channel it went last, and its place there.
    lane: Rc<Lane>,
    position: Option<u64>,
}

/// A message that is being sent, and how many frames of it are.
#[derive(Clone, Debug)]
struct Sending {
    message: Message,
    by_thread: bool,
    /// Whether it is a call that was begun on another channel.
    again: bool,
    frames: usize,
}

#[derive(Debug)]
pub(super) struct Caller {
    process: usize,
    number: u32,
    name: ServiceId,
    current: Option<Rc<Lane>>,
    ahead: Vec<Rc<Lane>>,
    group: Option<Group>,
    dead: HashSet<ServiceId>,
    /// All that it heard of, by name.
    groups: HashMap<ServiceId, Group>,
    flags: u32,
    /// The latest epoch at which the name was served, as far as it knows.
    served_at: u64,
    watcher: Watcher,
    /// Since when it waits, and how many answers it has had.
    since_ns: u64,
    heard: u64,
    pub(super) is_frozen: bool,
    keeper: Keeper,
    calls: BTreeMap<u64, Call>,
    sending: Option<Sending>,
    /// Frames of the first late message that are sent.
    late_frames: usize,
    messages: HashMap<u64, Message>,
    opening: HashMap<u32, Purpose>,
    next_id: u64,
    last_sequence: u32,
}

impl Caller {
    pub(super) fn new(net: &mut Net, number: u32) -> Caller {
        Caller {
            process: net.enter(),
            number,
            name: ServiceId::NONE,
            current: None,
            ahead: Vec::new(),
            group: None,
            dead: HashSet::new(),
            groups: HashMap::new(),
            flags: 0,
            served_at: 0,
            watcher: Watcher::default(),
            since_ns: 0,
            heard: 0,
            is_frozen: false,
            keeper: Keeper::default(),
            calls: BTreeMap::new(),
            sending: None,
            late_frames: 0,
            messages: HashMap::new(),
            opening: HashMap::new(),
            next_id: 1,
            last_sequence: 0,
        }
    }

    /// It has found the name.
    pub(super) fn find(&mut self, name: ServiceId) {
        if self.name == ServiceId::NONE {
            self.name = name;
        }
    }

    /// How it stands, for who looks at a history.
    pub(super) fn sketch(&self) -> String {
        let lanes = self.current.iter().chain(&self.ahead);
        let lanes: Vec<_> = lanes.map(|lane| lane.sketch()).collect();
        let Caller { process, name, group, opening, sending, .. } = self;
        let (late, calls) = (self.keeper.late(), self.calls.keys());
        format!(
            "{process} of {name}: {lanes:#?} {group:?} {opening:?} {sending:?} {late:?} {calls:?}"
        )
    }

    /// Whether it knows whom to call, and who stands by.
    pub(super) fn is_ready(&self) -> bool {
        self.current.is_some() && !self.ahead.is_empty()
    }

    /// Whether nothing of it is under way.
    pub(super) fn is_idle(&self) -> bool {
        let waits = self.keeper.late().is_some() || self.sending.is_some();
        self.calls.is_empty() && !waits && self.current.as_ref().is_none_or(|it| it.is_empty())
    }

    /// Does one thing of what it could do now; `sends` is whether it begins anything.
    pub(super) fn act(
        &mut self,
        net: &mut Net,
        record: &mut Record,
        sends: bool,
        chance: &mut Chance,
    ) {
        if !net.is_tied(self.process) {
            net.dial(self.process);
        }
        match chance.below(7) {
            0 => self.hear(net, record),
            1 => self.open_ahead(net),
            2 => self.succeed(net, record),
            3 => self.take_answer(record),
            4 => self.watch(net, record),
            5 if sends && self.sending.is_none() => self.begin(record, chance),
            _ => self.push(record),
        }
    }

    fn hear(&mut self, net: &mut Net, record: &mut Record) {
        let Some(down) = net.hear(self.process) else { return };
        match down.reply {
            Reply::Welcome { .. } => {
                self.opening.clear();
                // What an earlier run told may not be so any more, and this one tells it again.
                self.groups.clear();
                self.group = None;
                let mine = self.current.iter().chain(&self.ahead).filter(|it| it.is_open());
                let told: Vec<_> = mine.filter_map(|lane| lane.told_opener.get()).collect();
                for introduction in told {
                    net.say(self.process, 0, Request::Holds { serves: false, introduction });
                }
            }
            Reply::Group(group) => {
                self.groups.insert(group.name, group);
                self.hear_groups();
            }
            Reply::Connected(introduction) => {
                let purpose = self.opening.remove(&down.sequence);
                let (Some(purpose), Some(lane)) = (purpose, down.lane) else { return };
                lane.told_opener.set(Some(*introduction));
                match purpose {
                    Purpose::Ahead(_) => self.ahead.push(lane),
                    // It was passed over, and has yet to hear so.
                    Purpose::Name if simulation::is_past(lane.mark.get(), self.served_at) => {}
                    Purpose::Name => {
                        lane.required.set(self.served_at);
                        // Later than what was told of groups without it.
                        self.groups.retain(|_, it| it.members.contains(&introduction.dest));
                        self.group = None;
                        self.adopt(lane, record);
                    }
                }
            }
            Reply::Refused(_) => {
                self.opening.remove(&down.sequence);
            }
            _ => {}
        }
    }

    /// Hears of the group that serves the name, which may have got another id meanwhile.
    fn hear_groups(&mut self) {
        let told = self.current.as_ref().and_then(|lane| lane.told_opener.get());
        let is_of = |group: &&Group| {
            let by_channel = told
                .is_some_and(|it| group.name == it.dest_name || group.members.contains(&it.dest));
            group.name == self.name || by_channel
        };
        let latest = self.groups.values().filter(is_of).max_by_key(|group| group.epoch);
        if let Some(group) = latest.cloned() {
            self.hear_group(group);
        }
    }

    fn hear_group(&mut self, group: Group) {
        self.flags = group.flags;
        self.watcher.adopt(group.health);
        self.served_at = self.served_at.max(group.served_at);
        if let Some(lane) = self.current.as_ref().filter(|it| it.is_open())
            && let Some(told) = lane.told_opener.get()
            && simulation::supersedes(
                &group,
                |id| self.dead.contains(&id),
                told.dest,
                lane.mark.get(),
            )
        {
            lane.closed.set(true);
        }
        self.group = Some(group);
    }

    fn open(&mut self, net: &mut Net, purpose: Purpose) {
        if self.name == ServiceId::NONE || self.opening.values().any(|it| *it == purpose) {
            return;
        }
        self.last_sequence += 1;
        self.opening.insert(self.last_sequence, purpose);
        let dest = match purpose {
            Purpose::Name => self.name,
            Purpose::Ahead(instance) => instance,
        };
        net.connect(self.process, self.last_sequence, dest);
    }

    /// Lets go of the channels that have ended.
    fn sort_out(&mut self) {
        let died = self.ahead.iter().filter(|lane| lane.died.get());
        self.dead.extend(died.filter_map(|lane| Some(lane.told_opener.get()?.dest)));
        self.ahead.retain(|lane| lane.is_open());
    }

    fn open_ahead(&mut self, net: &mut Net) {
        self.sort_out();
        let dest = |lane: &Rc<Lane>| lane.told_opener.get().map(|it| it.dest);
        let current = self.current.as_ref().and_then(dest);
        let members = self.group.iter().flat_map(|group| group.members.clone());
        let wanted = members.filter(|id| Some(*id) != current).take(MOST_AHEAD);
        let missing = wanted.filter(|id| !self.ahead.iter().any(|it| dest(it) == Some(*id)));
        for instance in missing.collect::<Vec<_>>() {
            self.open(net, Purpose::Ahead(instance));
        }
    }

    /// While it waits: asks after who serves, and tells the runtime of whom it hears nothing.
    fn watch(&mut self, net: &mut Net, record: &mut Record) {
        let Some(lane) = self.current.clone().filter(|lane| lane.is_open()) else { return };
        if lane.pulse.take() {
            self.watcher.answered(net.now_ns);
        }
        let has_standbys = self.group.as_ref().is_some_and(|group| group.members.len() > 1);
        if self.calls.is_empty() || !has_standbys {
            self.since_ns = net.now_ns;
            return;
        }
        let count = self.heard + lane.taken().iter().sum::<u64>();
        match self.watcher.look(net.now_ns, self.since_ns, count) {
            Advice::Wait => {}
            Advice::Ask => lane.asked.set(true),
            Advice::Suspect => {
                record.tally.suspicions += 1;
                let instance = lane.told_opener.get().map_or(ServiceId::NONE, |it| it.dest);
                net.say(self.process, 0, Request::Suspect { instance, mark: lane.mark.get() });
            }
        }
    }

    /// Its process dies: what it sent goes on, and nobody hears of the end.
    pub(super) fn die(self, net: &mut Net, record: &mut Record) {
        record.say(|| format!("caller {} is killed", self.number));
        record.left(self.number);
        net.killed[self.process] = true;
        net.hang_up(self.process);
    }

    /// Goes to another channel, if the one that it has is no more.
    fn succeed(&mut self, net: &mut Net, record: &mut Record) {
        let Some(current) = self.current.clone() else { return self.open(net, Purpose::Name) };
        if current.is_open() {
            return self.move_threads(record);
        }
        let dest = |lane: &Rc<Lane>| lane.told_opener.get().map_or(ServiceId::NONE, |it| it.dest);
        self.sort_out();
        if current.died.get() {
            self.dead.insert(dest(&current));
        }
        self.served_at = simulation::later(self.served_at, current.mark.get());
        let open = self.ahead.iter().map(|lane| (dest(lane), lane.mark.get()));
        let is_dead = |id| self.dead.contains(&id);
        let group = self.group.as_ref();
        let chosen =
            group.and_then(|group| simulation::next_channel(group, self.served_at, is_dead, open));
        match chosen {
            Some(index) => {
                let heir = self.ahead.swap_remove(index);
                heir.required.set(self.served_at);
                self.adopt(heir, record);
            }
            None => self.open(net, Purpose::Name),
        }
    }

    /// Has all go by another channel from here on.
    fn adopt(&mut self, next: Rc<Lane>, record: &mut Record) {
        let Some(current) = self.current.clone() else {
            self.current = Some(next);
            return self.hear_groups();
        };
        if current.is_open() {
            // Somebody was faster.
            next.closed.set(true);
            return;
        }
        record.tally.handovers += 1;
        self.watcher.restart();
        while self.take_one(&current, record) {}
        let ended = self.ended(&current);
        if ended.lives && ended.flags & SERVICE_IDEMPOTENT == 0 {
            // What lies in its rings it may take, or never take.
            let rings = current.rings.borrow();
            rings.iter().flat_map(Ring::waiting).for_each(|message| record.left_open(message));
        }
        let mut doubtful = Vec::new();
        let calls = &self.calls;
        self.keeper.reconsider(ended, |id| calls.contains_key(&id), |id| doubtful.push(id));
        for id in doubtful {
            self.end(id, &current, Outcome::Maybe, record);
        }
        self.late_frames = 0;
        if let Some(sending) = &mut self.sending {
            sending.frames = 0;
        }
        self.current = Some(next);
        self.hear_groups();
    }

    /// What is known of a channel that nothing goes by any more.
    fn ended(&self, lane: &Lane) -> Ended {
        lane.wish.set(wish::NOTHING);
        let lives = !lane.died.get() && lane.mark.get() != 0;
        Ended { taken: lane.taken(), lives, flags: self.flags }
    }

    /// A thread whose request went by a channel that is no more sends it again, if it may.
    fn move_threads(&mut self, record: &mut Record) {
        let Some(current) = self.current.clone() else { return };
        if self.sending.is_some() {
            return;
        }
        let left = |call: &&Call| call.by_thread && !Rc::ptr_eq(&call.lane, &current);
        let Some(call) = self.calls.values().find(left).cloned() else { return };
        let ended = self.ended(&call.lane);
        match simulation::judge(call.message.urgent, call.position, ended) {
            Fortune::Sent => {
                let message = call.message;
                self.sending = Some(Sending { message, by_thread: true, again: true, frames: 0 });
            }
            Fortune::Maybe | Fortune::Done => {
                self.end(call.message.id, &call.lane, Outcome::Maybe, record);
            }
        }
    }

    fn end(&mut self, id: u64, by: &Lane, outcome: Outcome, record: &mut Record) {
        let Some(call) = self.calls.remove(&id) else { return };
        if outcome == Outcome::Maybe && !by.died.get() {
            record.left_open(&call.message);
        }
        record.ended(&call.message, outcome);
    }

    fn take_answer(&mut self, record: &mut Record) {
        if let Some(current) = self.current.clone() {
            self.take_one(&current, record);
        }
    }

    fn take_one(&mut self, lane: &Rc<Lane>, record: &mut Record) -> bool {
        let Some((id, outcome)) = lane.answers.borrow_mut().pop_front() else { return false };
        self.heard += 1;
        if let Some(call) = self.calls.get(&id) {
            if !Rc::ptr_eq(&call.lane, lane) {
                record.fault(format!("request {id} is answered where it was not sent last"));
            }
            if outcome == Outcome::Maybe {
                record.left_open(&call.message);
            }
            self.end(id, lane, outcome, record);
        }
        true
    }

    /// Begins to send something.
    fn begin(&mut self, record: &mut Record, chance: &mut Chance) {
        if self.calls.len() >= MOST_CALLS || self.current.is_none() {
            return;
        }
        // Before the first word of a standby nothing is kept, and nothing goes on.
        if self.group.as_ref().is_none_or(|group| group.members.len() < 2) && self.keeper.is_empty()
        {
            return;
        }
        let (urgent, wants_answer) = (chance.one_in(4), !chance.one_in(3));
        // A thread has one call at a time, and its own order.
        let by_thread =
            wants_answer && chance.one_in(3) && !self.calls.values().any(|call| call.by_thread);
        let caller = self.number * 4 + u32::from(urgent) + 2 * u32::from(by_thread);
        let number = record.sent(caller, wants_answer);
        let id = self.next_id;
        self.next_id += 1;
        let frames = if chance.one_in(4) { 1 + chance.below(3) } else { 1 };
        let message = Message { id, caller, number, urgent, wants_answer, frames };
        self.sending = Some(Sending { message, by_thread, again: false, frames: 0 });
    }

    /// Sends a frame: of what waits to be sent again, before anything new.
    fn push(&mut self, record: &mut Record) {
        let Some(lane) = self.current.clone() else { return };
        if !lane.is_open() {
            return;
        }
        if let Some(late) = self.keeper.late() {
            return self.push_late(&lane, late);
        }
        let Some(mut sending) = self.sending.take() else { return };
        let message = sending.message;
        if sending.again && !self.calls.contains_key(&message.id) {
            return;
        }
        if let Some(call) = self.calls.get_mut(&message.id) {
            (call.lane, call.position) = (Rc::clone(&lane), None);
        } else if message.wants_answer {
            let by_thread = sending.by_thread;
            let call = Call { message, by_thread, lane: Rc::clone(&lane), position: None };
            self.calls.insert(message.id, call);
        }
        let Some(position) = lane.push(message, sending.frames) else {
            self.sending = Some(sending);
            return;
        };
        sending.frames += 1;
        if sending.frames < message.frames {
            self.sending = Some(sending);
        } else if sending.by_thread {
            if let Some(call) = self.calls.get_mut(&message.id) {
                call.position = Some(position);
            }
        } else {
            self.messages.insert(message.id, message);
            let (calls, which) = (&self.calls, Late { id: message.id, urgent: message.urgent });
            let is_live = |id| calls.contains_key(&id);
            self.keeper.keep((which, position), message.wants_answer, lane.taken(), is_live);
        }
        let _ = record;
    }

    fn push_late(&mut self, lane: &Rc<Lane>, again: Late) {
        let message = self.messages[&again.id];
        if let Some(call) = self.calls.get_mut(&again.id) {
            call.lane = Rc::clone(lane);
        }
        if let Some(position) = lane.push(message, self.late_frames) {
            self.late_frames += 1;
            if self.late_frames == message.frames {
                self.late_frames = 0;
                self.keeper.sent(position);
            }
        }
    }
}
