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
    client::ClientState,
    control::Group,
    failover::post::Post,
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
const STACK: usize = 128 * 1024;

/// What the two threads share with the node.
#[derive(Debug, Default)]
pub(super) struct Vigil {
    standing: Mutex<HashMap<ServiceId, Arc<Post>>>,
    /// Clients for whom channels are to be opened.
    clients: Mutex<Vec<Weak<ClientState>>>,
    /// Count up when there is news for the one who watches, and for the one who opens.
    watch: AtomicU32,
    open: AtomicU32,
    begun: AtomicBool,
}

impl Core {
    /// Hears of the group of a name that an instance of this node serves, or stands by for.
    pub(super) fn stand_by(self: &Arc<Self>, instance: ServiceId, post: Arc<Post>, group: &Group) {
        let Some(rank) = group.members.iter().position(|id| *id == instance) else { return };
        post.stand_by(group, rank);
        let is_watched = rank > 0;
        {
            let mut standing = lock(&self.vigil.standing);
            standing.insert(instance, post);
            standing.retain(|id, it| *id == instance || Arc::strong_count(it) > 1);
        }
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

    /// Takes the names whose time it is, and tells the runtime. Returns what to sleep on.
    fn keep_vigil(&self) -> Vec<Arc<Link>> {
        let posts: Vec<_> = lock(&self.vigil.standing)
            .iter()
            .map(|(instance, post)| (*instance, Arc::clone(post)))
            .collect();
        let mut watched = Vec::new();
        for (instance, post) in posts {
            watched.extend(post.look());
            if let Some(epoch) = post.untold() {
                self.say_epoch(instance, epoch);
            }
        }
        watched
    }

    /// Opens a channel to each that is watched. Returns whether all are open.
    fn open_watched(self: &Arc<Self>) -> bool {
        let small = Geometry::new(*Geometry::CELLS.start(), *Geometry::SLAB.start());
        let Ok(geometry) = small else { return true };
        let posts: Vec<_> = lock(&self.vigil.standing).values().cloned().collect();
        let mut all = true;
        for post in posts {
            for before in post.wanted() {
                match self.open_watch(before, geometry) {
                    Ok(link) => {
                        post.watch(before, link);
                        bump(&self.vigil.watch);
                    }
                    Err(_) => all = false,
                }
            }
        }
        all
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
