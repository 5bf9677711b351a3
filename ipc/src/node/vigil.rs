//! Standing by: who serves is watched by the words that the kernel marks when it dies, and
//! channels are opened ahead of need.
//!
//! Two threads of a node. One lives while the node stands by for a name: it sleeps on the life
//! words of all that come before; it opens nothing and asks nobody, so nothing is in its way. The
//! other lives while there are channels to open.

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
    failpoint::shared,
    link::Link,
    slice,
    sync::{AtomicU32, Ordering},
    wait::futex,
};

/// Life words that one thread sleeps on: the system call takes 128. Beyond, it looks now and then.
const MOST_WORDS: usize = 120;
/// How often then, where life words cannot be slept on together, and while a message has no room.
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
    /// Which of the two there are.
    running: Mutex<[bool; 2]>,
}

/// The threads.
#[derive(Clone, Copy, Debug)]
enum Duty {
    Watch,
    Open,
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
            bump(&self.vigil.open);
            bump(&self.vigil.watch);
            self.begin(Duty::Open);
            self.begin(Duty::Watch);
        }
    }

    /// Has channels opened for a client. It may be in a hurry: the warden makes the thread.
    pub(crate) fn send_for(&self, state: &Arc<ClientState>) {
        lock(&self.vigil.clients).push(Arc::downgrade(state));
        bump(&self.vigil.open);
        self.kick();
    }

    /// Has somebody open what is wanted. The warden's work.
    pub(super) fn open_wanted(self: &Arc<Self>) {
        if !lock(&self.vigil.clients).is_empty() {
            self.begin(Duty::Open);
        }
    }

    /// A peer's process ended, or the node is closed: has the threads look.
    pub(super) fn alarm(&self) {
        bump(&self.vigil.watch);
        bump(&self.vigil.open);
    }

    /// Makes a thread, unless there is one.
    fn begin(self: &Arc<Self>, duty: Duty) {
        let mut running = lock(&self.vigil.running);
        if std::mem::replace(&mut running[duty as usize], true) {
            return;
        }
        let (name, run): (&str, fn(&Weak<Core>)) = match duty {
            Duty::Watch => ("ipc-vigil", watch),
            Duty::Open => ("ipc-ahead", open),
        };
        let core = Arc::downgrade(self);
        let thread = std::thread::Builder::new().name(name.into()).stack_size(STACK);
        // Without it names are given by the runtime, and channels opened when they are needed.
        running[duty as usize] = thread.spawn(move || run(&core)).is_ok();
    }

    /// Ends a thread that has nothing to do, unless there is news since it looked.
    fn may_end(&self, duty: Duty, news: u32) -> bool {
        let mut running = lock(&self.vigil.running);
        let word = match duty {
            Duty::Watch => &self.vigil.watch,
            Duty::Open => &self.vigil.open,
        };
        let ends = word.load(Ordering::SeqCst) == news;
        running[duty as usize] = !ends;
        ends
    }

    /// Takes the names whose time it is, and tells the runtime. Returns what to sleep on.
    fn keep_vigil(&self) -> Vec<Arc<Link>> {
        // Those that are served no more belong to nobody else.
        lock(&self.vigil.standing).retain(|_, it| Arc::strong_count(it) > 1);
        let posts: Vec<_> = lock(&self.vigil.standing)
            .iter()
            .map(|(instance, post)| (*instance, Arc::clone(post)))
            .collect();
        let mut watched = Vec::new();
        for (instance, post) in posts {
            watched.extend(post.look());
            if let Some(epoch) = post.untold() {
                shared!(PromotionTold, self.say_epoch(instance, epoch));
            }
        }
        watched
    }

    /// Whether an instance of this node stands by for another, which may not be watched yet.
    fn stands_by(&self) -> bool {
        lock(&self.vigil.standing).values().any(|post| post.stands_by())
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
    // It is woken where who dies is torn down. Refused, it waits for its turn.
    let _ = slice::wake_promptly();
    loop {
        let Some(node) = core.upgrade() else { return };
        if node.is_closed() {
            return;
        }
        let news = node.vigil.watch.load(Ordering::SeqCst);
        let watched = node.keep_vigil();
        if watched.is_empty() && !node.stands_by() && node.may_end(Duty::Watch, news) {
            return;
        }
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
        if node.is_closed() {
            return;
        }
        let news = node.vigil.open.load(Ordering::SeqCst);
        let mut all = node.open_watched();
        let mut owes = false;
        let clients = std::mem::take(&mut *lock(&node.vigil.clients));
        // Before anything is opened, which may take its time.
        let clients = clients.into_iter().filter_map(|state| {
            let client = state.upgrade()?;
            client.console();
            let has_caught_up = client.catch_up();
            owes |= !has_caught_up;
            Some((state, client, has_caught_up))
        });
        for (state, client, has_caught_up) in clients.collect::<Vec<_>>() {
            if !client.open_ahead(&node) || !has_caught_up {
                all = false;
                lock(&node.vigil.clients).push(state);
            }
        }
        if all && node.may_end(Duty::Open, news) {
            return;
        }
        let word = futex::Word { at: &node.vigil.open, value: news, shared: false };
        futex::wait(word, Some(if owes { LOOK } else { RETRY }));
    }
}

fn bump(word: &AtomicU32) {
    word.fetch_add(1, Ordering::SeqCst);
    futex::wake(word, false, i32::MAX);
}
