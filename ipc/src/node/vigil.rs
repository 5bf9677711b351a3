//! Standing by: who serves is watched by the words that the kernel marks when it dies, and
//! channels are opened ahead of need.
//!
//! Two threads of a node, made when it first stands by for a name, or first calls one that has
//! standbys. One sleeps on the life words of all that come before; it opens nothing and asks
//! nobody, so nothing is in its way. The other opens what the first watches.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use super::core::{Core, lock};
use crate::{
    Geometry, ServiceId,
    channel::Fate,
    client::ClientState,
    control::Group,
    failover::{
        post::Post,
        rule::{self, Epochs, Evidence},
    },
    link::Link,
    sync::{AtomicBool, AtomicU32, Ordering},
    wait::futex,
};

/// Life words that one thread sleeps on: the system call takes 128. Beyond, it looks now and then.
const MOST_WORDS: usize = 120;
/// How often then, and where life words cannot be slept on together.
const LOOK: Duration = Duration::from_millis(1);
/// Between attempts to open a channel.
const RETRY: Duration = Duration::from_millis(100);
/// Those before an instance that it watches; one that stands further behind waits for the runtime.
const MOST_BEFORE: usize = 16;
const STACK: usize = 128 * 1024;

/// What the two threads share with the node.
#[derive(Debug, Default)]
pub(super) struct Vigil {
    standing: Mutex<HashMap<ServiceId, Standing>>,
    /// Clients for whom channels are to be opened.
    clients: Mutex<Vec<Weak<ClientState>>>,
    /// Count up when there is news for the one who watches, and for the one who opens.
    watch: AtomicU32,
    open: AtomicU32,
    begun: AtomicBool,
}

/// An instance of this node, and those before it.
#[derive(Debug)]
struct Standing {
    post: Arc<Post>,
    epochs: Epochs,
    ordered: bool,
    before: Vec<Before>,
}

#[derive(Debug)]
struct Before {
    instance: ServiceId,
    link: Option<Arc<Link>>,
    evidence: Evidence,
}

impl Core {
    /// Hears of the group of a name that an instance of this node serves, or stands by for.
    pub(super) fn stand_by(self: &Arc<Self>, instance: ServiceId, post: Arc<Post>, group: &Group) {
        let Some(rank) = group.members.iter().position(|id| *id == instance) else { return };
        let is_watched = {
            let mut standing = lock(&self.vigil.standing);
            let known = standing.remove(&instance);
            let mut old = known.map(|it| it.before).unwrap_or_default();
            let told = group.members[..rank].iter().map(|&before| {
                let place = old.iter().position(|it| it.instance == before);
                place.map_or_else(|| Before::unknown(before), |place| old.swap_remove(place))
            });
            let mut before: Vec<Before> = told.collect();
            // A runtime that has just begun may not have heard of all: who is not heard of and
            // lives counts as before.
            old.retain(|it| !group.members.contains(&it.instance) && it.lives());
            before.extend(old);
            let seen = 0;
            let epochs = Epochs { told: group.epoch, limit: group.limit, seen };
            let ordered = group.ordered && before.len() <= MOST_BEFORE;
            let is_watched = !before.is_empty();
            standing.insert(instance, Standing { post, epochs, ordered, before });
            standing.retain(|id, it| *id == instance || Arc::strong_count(&it.post) > 1);
            is_watched
        };
        if is_watched {
            self.begin_vigil();
            bump(&self.vigil.open);
            bump(&self.vigil.watch);
        }
    }

    /// Has channels opened for a client.
    pub(crate) fn send_for(self: &Arc<Self>, state: &Arc<ClientState>) {
        lock(&self.vigil.clients).push(Arc::downgrade(state));
        self.begin_vigil();
        bump(&self.vigil.open);
    }

    /// A peer's process ended, or the node is closed: has the threads look.
    pub(super) fn alarm(&self) {
        if self.vigil.begun.load(Ordering::Acquire) {
            bump(&self.vigil.watch);
            bump(&self.vigil.open);
        }
    }

    fn begin_vigil(self: &Arc<Self>) {
        if self.vigil.begun.swap(true, Ordering::AcqRel) {
            return;
        }
        for (name, run) in [("ipc-vigil", watch as fn(&Weak<Core>)), ("ipc-ahead", open)] {
            let core = Arc::downgrade(self);
            let thread = std::thread::Builder::new().name(name.into()).stack_size(STACK);
            // Without it names are given by the runtime, and channels opened when they are needed.
            let _ = thread.spawn(move || run(&core));
        }
    }

    /// Takes the names whose time it is. Returns what to sleep on.
    fn keep_vigil(&self) -> Vec<Arc<Link>> {
        let mut watched = Vec::new();
        let mut taken = Vec::new();
        for (instance, it) in lock(&self.vigil.standing).iter_mut() {
            if it.post.epoch() != 0 || !it.ordered {
                continue;
            }
            let Standing { before, epochs, .. } = it;
            for one in before.iter_mut() {
                one.look(epochs);
                watched.extend(one.link.clone().filter(|_| one.evidence == Evidence::Unknown));
            }
            let evidence: Vec<_> = before.iter().map(|one| one.evidence).collect();
            if let Some(epoch) = rule::promotes(&evidence, *epochs)
                && it.post.take(epoch)
            {
                taken.push((*instance, epoch));
            }
        }
        for (instance, epoch) in taken {
            self.say_epoch(instance, epoch);
        }
        watched
    }

    /// Opens a channel to each that is watched. Returns whether all are open.
    fn open_watched(self: &Arc<Self>) -> bool {
        let small = Geometry::new(*Geometry::CELLS.start(), *Geometry::SLAB.start());
        let Ok(geometry) = small else { return true };
        let wanted: Vec<(ServiceId, ServiceId)> = lock(&self.vigil.standing)
            .iter()
            .flat_map(|(id, it)| {
                it.before.iter().filter(|one| one.wants()).map(|one| (*id, one.instance))
            })
            .collect();
        let mut all = true;
        for (instance, before) in wanted {
            let Ok(link) = self.open_watch(before, geometry) else {
                all = false;
                continue;
            };
            if let Some(standing) = lock(&self.vigil.standing).get_mut(&instance)
                && let Some(one) = standing.before.iter_mut().find(|one| one.instance == before)
            {
                one.link = Some(link);
                bump(&self.vigil.watch);
            }
        }
        all
    }
}

impl Before {
    fn unknown(instance: ServiceId) -> Before {
        Before { instance, link: None, evidence: Evidence::Unknown }
    }

    fn wants(&self) -> bool {
        self.evidence == Evidence::Unknown && self.link.is_none()
    }

    fn lives(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.channel.check_life() == Fate::Open)
    }

    /// Reads what the kernel says of it, and the epoch at which it served.
    fn look(&mut self, epochs: &mut Epochs) {
        let Some(link) = &self.link else { return };
        let mark = link.channel.peer_mark();
        if mark != 0 {
            epochs.seen = epochs.seen.max(rule::whole(mark, epochs.told));
        }
        match link.channel.check_life() {
            Fate::Open => {}
            Fate::Died => self.evidence = Evidence::Dead,
            // It closed this channel, which says nothing of the others.
            Fate::Closed | Fate::Poisoned(_) => self.link = None,
        }
    }
}

/// Watches, until the node is gone.
fn watch(core: &Weak<Core>) {
    loop {
        let Some(node) = core.upgrade() else { return };
        if node.closed.load(Ordering::SeqCst) {
            return;
        }
        let news = node.vigil.watch.load(Ordering::SeqCst);
        let watched = node.keep_vigil();
        let lives = watched.iter().take(MOST_WORDS).map(|link| link.channel.life_word());
        let Some(mut words) = lives.collect::<Option<Vec<_>>>() else { continue };
        words.insert(0, futex::Word { at: &node.vigil.watch, value: news, shared: false });
        let looks = watched.len() > MOST_WORDS || !futex::has_waitv();
        futex::wait_many(&words, looks.then_some(LOOK));
    }
}

/// Opens what is wanted, until the node is gone.
fn open(core: &Weak<Core>) {
    loop {
        let Some(node) = core.upgrade() else { return };
        if node.closed.load(Ordering::SeqCst) {
            return;
        }
        let news = node.vigil.open.load(Ordering::SeqCst);
        let mut all = node.open_watched();
        let clients = std::mem::take(&mut *lock(&node.vigil.clients));
        for state in clients {
            let Some(client) = state.upgrade() else { continue };
            client.console();
            if !client.open_ahead(&node) {
                all = false;
                lock(&node.vigil.clients).push(state);
            }
        }
        let word = futex::Word { at: &node.vigil.open, value: news, shared: false };
        futex::wait(word, (!all).then_some(RETRY));
    }
}

fn bump(word: &AtomicU32) {
    word.fetch_add(1, Ordering::SeqCst);
    futex::wake(word, false, i32::MAX);
}
