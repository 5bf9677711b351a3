//! A client of a name with standbys: channels to them, opened ahead, and the change from one to
//! the next.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use super::{CallOptions, Client, ClientState, attend, join};
use crate::{
    ServiceId,
    channel::Fate,
    clock,
    control::{Group, HealthCheck},
    error::CallError,
    failover::{
        course,
        detector::{Advice, Detector},
        replay::Repeat,
    },
    frame::Label,
    life::Life,
    link::{FOREVER, Limit, Link, Parcel, Sink},
    node::Core,
    server::Server,
    socket::Transport,
    sync::{AtomicBool, AtomicU32, Ordering},
    table::{Outcome, Waiter},
};

/// Channels to standbys that are opened ahead of need.
const MOST_AHEAD: usize = 2;
/// Attempts to find out who serves, when none that was opened ahead is of use, and between them.
const ATTEMPTS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(5);
/// How long the kernel may take to mark all lanes of one who died, while others use the processor.
const MARKING: Duration = Duration::from_millis(20);

/// A request that may be repeated goes to so many more, though each may have carried it out: one
/// that kills whoever takes it would end all of a group otherwise.
#[cfg(feature = "rpc")]
const MOST_REPEATS: u32 = 2;

/// What is known of a request, and what is left to be tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Repeats {
    left: u32,
    /// Whether one who is gone may have carried it out.
    pub(crate) is_taken: bool,
}

impl Repeats {
    /// Of a request that may not be repeated, as far as its caller knows.
    pub(crate) const NONE: Repeats = Repeats { left: 0, is_taken: false };

    #[cfg(feature = "rpc")]
    pub(crate) fn of(is_repeatable: bool) -> Repeats {
        Repeats { left: if is_repeatable { MOST_REPEATS } else { 0 }, is_taken: false }
    }

    /// Notes that who had the request is gone; tells whether it may be sent again.
    pub(crate) fn go_on(&mut self, taken: bool) -> bool {
        if !taken {
            return true;
        }
        self.is_taken = true;
        let is_left = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_left
    }
}

/// What a client knows of those who serve its name.
#[derive(Debug)]
pub(crate) struct Relay {
    core: Weak<Core>,
    /// Whether the name has, or had, standbys.
    on: AtomicBool,
    /// What all members of the group registered with: whether what was taken may be sent again.
    flags: AtomicU32,
    ahead: Mutex<Ahead>,
    /// Watches over who serves, while somebody waits.
    detector: Mutex<Detector>,
}

#[derive(Debug, Default)]
struct Ahead {
    group: Option<Group>,
    links: Vec<Arc<Link>>,
    /// Members of the group that the kernel says are dead.
    dead: Vec<ServiceId>,
    /// The latest epoch at which the name was served, as far as is known. Who serves at an older
    /// one was passed over.
    served_at: u64,
}

impl Ahead {
    /// Lets go of the channels that have ended.
    fn sort_out(&mut self) {
        for link in std::mem::take(&mut self.links) {
            if link.channel.check_life() == Fate::Open {
                self.links.push(link);
            } else {
                self.bury(&link);
            }
        }
    }

    /// Notes whose lane it is that the kernel marked, if it did.
    fn bury(&mut self, link: &Link) {
        let instance = link.channel.introduction.dest;
        if link.channel.peer_life() == Life::Died && !self.dead.contains(&instance) {
            self.dead.push(instance);
        }
    }
}

impl Relay {
    pub(super) fn new(core: &Arc<Core>) -> Relay {
        Relay {
            core: Arc::downgrade(core),
            on: AtomicBool::new(false),
            flags: AtomicU32::new(0),
            ahead: Mutex::default(),
            detector: Mutex::new(Detector::new(HealthCheck::default())),
        }
    }

    fn detector(&self) -> MutexGuard<'_, Detector> {
        self.detector.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Ahead> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientState {
    /// Whether this group serves what the client calls.
    pub(crate) fn is_of(&self, group: &Group) -> bool {
        let link = self.link.load();
        let introduction = &link.channel.introduction;
        // Who is called by its own id is called wherever it stands.
        self.dest == group.name
            || introduction.dest != self.dest
                && (introduction.dest_name == group.name
                    || group.members.contains(&introduction.dest))
    }

    /// Whether what the service had taken may be sent to the next.
    pub(crate) fn repeat(&self) -> Repeat {
        Repeat::of(self.relay.flags.load(Ordering::Relaxed))
    }

    /// Hears of the group that serves the name. Returns whether channels are to be opened ahead.
    pub(crate) fn hear(self: &Arc<Self>, group: &Group) -> bool {
        let link = self.link.load_full();
        if link.channel.peer().transport == Transport::Socket {
            // What is needed to go on elsewhere stands in memory that the two would share.
            return false;
        }
        {
            let mut ahead = self.relay.lock();
            ahead.dead.retain(|id| group.members.contains(id));
            ahead.group = Some(group.clone());
            ahead.served_at = ahead.served_at.max(group.served_at);
        }
        self.relay.flags.store(group.flags, Ordering::Relaxed);
        self.relay.detector().adopt(group.health);
        if group.members.len() > 1 && !self.relay.on.swap(true, Ordering::AcqRel) {
            link.begin_relay(self);
        } else if self.relay.on.load(Ordering::Relaxed) {
            link.set_interval(self.interval_ns());
        }
        self.review(&link);
        self.wanted().is_some()
    }

    /// Leaves a channel to one in whose place another serves by now.
    fn review(&self, link: &Link) {
        let (instance, mark) = (link.channel.introduction.dest, link.channel.peer_mark());
        let (is_over, is_gone) = {
            let ahead = self.relay.lock();
            let is_dead = |id| ahead.dead.contains(&id);
            let group = ahead.group.as_ref();
            (
                group.is_some_and(|group| course::supersedes(group, is_dead, instance, mark)),
                group.is_some_and(|group| !group.members.contains(&instance)),
            )
        };
        if is_over && self.relay.on.load(Ordering::Relaxed) {
            if is_gone {
                await_mark(link);
            }
            // Who died is known by that: the next in order need not have said that it serves.
            link.channel.check_life();
            link.supersede();
        }
    }

    /// After how long who waits looks after who serves, in ns.
    pub(crate) fn interval_ns(&self) -> u64 {
        self.relay.detector().interval_ns()
    }

    /// Looks after who serves on a channel, at that epoch, for one who waits `(now, since)`. What
    /// is to be done is done; returns when to look again.
    pub(crate) fn look_after(&self, link: &Link, mark: u32, (now, since): (u64, u64)) -> u64 {
        let advice = self.relay.detector().look(now, since, link.channel.heard());
        match advice {
            Advice::Wait(_) => {}
            Advice::Ask(_) => link.ask(),
            Advice::Suspect(_) => {
                let instance = link.channel.introduction.dest;
                if let Some(core) = self.relay.core.upgrade() {
                    core.suspect(instance, mark);
                }
            }
        }
        advice.until_ns()
    }

    /// Whether that instance is the one that serves, by the runtime's word.
    pub(crate) fn is_told(&self, instance: ServiceId) -> bool {
        let ahead = self.relay.lock();
        ahead
            .group
            .as_ref()
            .is_some_and(|group| group.served_at > 0 && group.members.first() == Some(&instance))
    }

    /// Who serves has answered such a look.
    pub(crate) fn hear_pulse(&self, now: u64) {
        self.relay.detector().answered(now);
    }

    /// What was told of the group may not be so any more.
    pub(crate) fn forget_group(&self) {
        self.relay.lock().group = None;
    }

    /// The next member of the group to which a channel is to be opened ahead.
    fn wanted(&self) -> Option<ServiceId> {
        if !self.relay.on.load(Ordering::Relaxed) {
            return None;
        }
        let current = self.link.load().channel.introduction.dest;
        let mut ahead = self.relay.lock();
        ahead.sort_out();
        let Ahead { group, links, .. } = &*ahead;
        let standbys = group.iter().flat_map(|group| &group.members);
        let mut standbys = standbys.copied().filter(|id| *id != current).take(MOST_AHEAD);
        let is_open =
            |id: &ServiceId| links.iter().any(|link| link.channel.introduction.dest == *id);
        standbys.find(|id| !is_open(id))
    }

    /// Opens channels to the first standbys. Returns whether all are open.
    pub(crate) fn open_ahead(&self, core: &Arc<Core>) -> bool {
        while let Some(instance) = self.wanted() {
            let current = self.link.load_full();
            let Ok(link) = core.open_beside(instance, &current) else { return false };
            let mut ahead = self.relay.lock();
            // The client may have gone there meanwhile, by another channel.
            if self.link.load().channel.introduction.dest != instance {
                ahead.links.push(link);
            }
        }
        true
    }

    /// Gives the channel that takes the place of one that has ended; waits for it, but does not
    /// begin to after that time.
    pub(crate) fn succeed(self: &Arc<Self>, until: u64) -> Option<Arc<Link>> {
        let _one = self.reopening.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.link.load_full();
        if current.channel.check_life() == Fate::Open {
            return Some(current);
        }
        let next = self.find(&current, until)?;
        Some(self.adopt(&current, next))
    }

    /// The same, where there is one already.
    pub(crate) fn succeed_at_once(self: &Arc<Self>) -> Option<Arc<Link>> {
        if !self.relay.on.load(Ordering::Relaxed) {
            return None;
        }
        let _one = self.reopening.try_lock().ok()?;
        let current = self.link.load_full();
        if current.channel.check_life() == Fate::Open {
            return Some(current);
        }
        let next = self.pick(&current)?;
        Some(self.adopt(&current, next))
    }

    /// Has what went by a channel that ended go on elsewhere, and waits for nothing.
    pub(crate) fn bereave(self: &Arc<Self>) {
        if self.succeed_at_once().is_none()
            && let Some(core) = self.relay.core.upgrade()
        {
            core.send_for(self);
        }
    }

    /// The same, for who may wait: nobody is left to wait for where that fails.
    pub(crate) fn console(self: &Arc<Self>) {
        let current = self.link.load_full();
        if current.channel.check_life() != Fate::Open && self.succeed(FOREVER).is_none() {
            current.fail_calls();
            current.wake_all();
        }
    }

    /// Sends what went over from a channel before and found no room, as long as that takes little
    /// time. Returns whether nothing of it is left.
    pub(crate) fn catch_up(&self) -> bool {
        self.link.load_full().catch_up(FOREVER)
    }

    /// One of those opened ahead: who serves, or who is next to.
    fn pick(&self, current: &Link) -> Option<Arc<Link>> {
        let mut ahead = self.relay.lock();
        ahead.bury(current);
        ahead.sort_out();
        ahead.served_at = course::later(ahead.served_at, current.channel.peer_mark());
        let open = ahead.links.iter().map(|link| &link.channel);
        let open = open.map(|channel| (channel.introduction.dest, channel.peer_mark()));
        let is_dead = |id| ahead.dead.contains(&id);
        let chosen = course::next(ahead.group.as_ref()?, ahead.served_at, is_dead, open)?;
        let link = ahead.links.swap_remove(chosen);
        link.channel.require(ahead.served_at).then_some(link)
    }

    /// One of those opened ahead, or else whoever serves by the runtime's word.
    fn find(&self, current: &Link, until: u64) -> Option<Arc<Link>> {
        for _ in 0..ATTEMPTS {
            // Meanwhile another channel may have been opened, one more death been seen, or the next
            // have begun to serve. The runtime may be gone.
            if let Some(link) = self.pick(current) {
                return Some(link);
            }
            let core = self.relay.core.upgrade().filter(|core| !core.is_closed())?;
            match core.open_beside(self.dest, current) {
                // It was passed over, and has yet to hear so.
                Ok(link) if !self.may_serve(&link) => {
                    drop(link);
                    if clock::now_ns() >= until {
                        return None;
                    }
                    std::thread::sleep(PAUSE);
                }
                Ok(link) => {
                    let introduction = &link.channel.introduction;
                    core.outdate_groups(introduction.dest, introduction.dest_name);
                    let mut ahead = self.relay.lock();
                    ahead.group =
                        ahead.group.take().filter(|it| it.members.contains(&introduction.dest));
                    drop(ahead);
                    return Some(link);
                }
                Err(_) if clock::now_ns() < until => std::thread::sleep(PAUSE),
                Err(_) => return None,
            }
        }
        None
    }

    /// Whether who is at the other end of a channel stands by, or serves at an epoch that is not
    /// past; and will take nothing at another.
    fn may_serve(&self, link: &Link) -> bool {
        link.channel.require(self.relay.lock().served_at)
    }

    /// Closes channels to one instance that were opened ahead.
    fn let_go(&self, instance: ServiceId) {
        let mut ahead = self.relay.lock();
        let (ours, others) = std::mem::take(&mut ahead.links)
            .into_iter()
            .partition(|link| link.channel.introduction.dest == instance);
        ahead.links = others;
        drop(ahead);
        let _closed: Vec<Arc<Link>> = ours;
    }

    fn adopt(self: &Arc<Self>, current: &Link, next: Arc<Link>) -> Arc<Link> {
        self.relay.detector().restart();
        current.hand_over(&next, self);
        self.link.store(Arc::clone(&next));
        // One that was opened ahead, and did not say in time that it serves.
        self.let_go(next.channel.introduction.dest);
        current.wake_all();
        if let Some(core) = self.relay.core.upgrade() {
            // The name may have another id since the runtime began once more.
            core.introduce(self);
            core.send_for(self);
        }
        // What was heard while it was opened was said of the one before.
        self.review(&next);
        next
    }
}

/// Waits for the kernel to mark the end of one that is in its group no more. It marks lanes one
/// after another, and wakes who watches each: the next may serve, and the runtime tell of it,
/// before the last is marked. Until then it looks as if it lived, and might act on what it took.
fn await_mark(link: &Link) {
    let until = clock::now_ns() + MARKING.as_nanos() as u64;
    while link.channel.peer_life() == Life::Alive && clock::now_ns() < until {
        std::thread::sleep(MARKING / 100);
    }
}

impl Client {
    /// Whether the name has standbys.
    #[inline]
    pub(crate) fn is_relayed(&self) -> bool {
        self.state.relay.on.load(Ordering::Relaxed)
    }

    /// Gives the epoch at which who is called serves the name: its low half, as it says it by its
    /// lane. 0 when it stands by, and is called by its own id.
    pub fn epoch(&self) -> u64 {
        u64::from(self.state.link.load().channel.peer_mark())
    }

    /// Does again what failed since the channel had ended, by the one that takes its place.
    #[cold]
    pub(super) fn again<R>(
        &self,
        limit: Limit,
        mut repeats: Repeats,
        mut act: impl FnMut(&Arc<Link>) -> Result<R, CallError>,
    ) -> Result<R, CallError> {
        let until = limit.at();
        loop {
            match self.link().and_then(|link| act(&link)) {
                Err(CallError::PeerDied { taken })
                    if repeats.go_on(taken) && clock::now_ns() < until => {}
                Err(CallError::PeerDied { taken }) => {
                    return Err(CallError::PeerDied { taken: taken || repeats.is_taken });
                }
                result => return result,
            }
        }
    }

    /// As [`call_into_vec`](Client::call_into_vec); a repeatable request goes to whoever serves
    /// next, too, when it may have been carried out, whatever the service says of all of them.
    #[inline]
    pub(crate) fn call_repeatable(
        &self,
        payload: &[u8],
        response: &mut Vec<u8>,
        options: CallOptions,
        repeats: Repeats,
    ) -> Result<(), CallError> {
        let parcel = Parcel::Bytes(payload);
        self.fetch(parcel, options, repeats, &mut Sink::Vector(response))
            .inspect_err(|_| response.clear())
    }

    /// Sends a request whose outcome a function gets, by whichever channel.
    #[cold]
    pub(super) fn call_relayed(
        &self,
        server: &Server,
        (label, limit): (Label, Limit),
        payload: &[u8],
        done: impl FnOnce(Outcome) + Send + 'static,
    ) -> Result<u64, CallError> {
        let done = Arc::new(Mutex::new(Some(done)));
        self.again(limit, Repeats::NONE, |link| {
            join(link, server)?;
            let done = Arc::clone(&done);
            let waiter = Waiter::Callback(Box::new(move |outcome| {
                let done = done.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(done) = done {
                    done(outcome);
                }
            }));
            let id = link.request(label, Parcel::Bytes(payload), limit, waiter)?;
            attend(link, server);
            Ok(id)
        })
    }
}
