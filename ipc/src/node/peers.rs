//! The processes that a node has channels with, and what ends when one of them does.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Mutex, Weak},
};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::core::lock;
use crate::{
    ServiceId, channel::Fate, control::Introduction, link::Link, region::Held, server::Incoming,
};

/// One end of a channel, for who watches over the other.
#[derive(Clone, Debug)]
pub(super) enum End {
    Link(Weak<Link>),
    Incoming(Weak<Incoming>),
    /// A region of the other process.
    Region(Weak<Held>),
}

impl End {
    /// Ends the channel if it still is; returns whether it was.
    pub(super) fn end(&self, fate: Fate) -> bool {
        match self {
            End::Link(link) => link.upgrade().map(|link| {
                link.channel.end(fate);
                link.wake_all();
                link.bereaved();
            }),
            End::Incoming(incoming) => incoming.upgrade().map(|incoming| {
                incoming.channel.end(fate);
                incoming.summon();
            }),
            End::Region(held) => held.upgrade().map(|held| held.end(fate)),
        }
        .is_some()
    }

    fn exists(&self) -> bool {
        match self {
            End::Link(link) => link.strong_count() > 0,
            End::Incoming(incoming) => incoming.strong_count() > 0,
            End::Region(held) => held.strong_count() > 0,
        }
    }

    pub(super) fn serves(&self, instance: ServiceId) -> bool {
        matches!(self, End::Incoming(_)) && self.is(|introduction| introduction.dest == instance)
    }

    /// What the end was told when it was introduced, and whether it serves; nothing where the
    /// channel has ended.
    pub(super) fn introduction(&self) -> Option<(bool, Introduction)> {
        let (serves, introduction, fate) = match self {
            End::Link(link) => {
                let link = link.upgrade()?;
                (false, link.channel.introduction, link.channel.fate())
            }
            End::Incoming(incoming) => {
                let incoming = incoming.upgrade()?;
                (true, incoming.channel.introduction, incoming.channel.fate())
            }
            End::Region(_) => return None,
        };
        (fate == Fate::Open).then_some((serves, introduction))
    }

    fn is_of(&self, channel: u64) -> bool {
        self.is(|introduction| introduction.channel == channel)
    }

    fn is(&self, what: impl Fn(&Introduction) -> bool) -> bool {
        match self {
            End::Link(link) => link.upgrade().is_some_and(|it| what(&it.channel.introduction)),
            End::Incoming(incoming) => {
                incoming.upgrade().is_some_and(|it| what(&it.channel.introduction))
            }
            End::Region(_) => false,
        }
    }
}

/// A process that we have channels with.
#[derive(Debug, Default)]
struct PeerProcess {
    pidfd: Option<OwnedFd>,
    ends: Vec<End>,
}

/// The peers' processes by their ids.
#[derive(Debug, Default)]
pub(super) struct Peers {
    processes: Mutex<HashMap<u32, PeerProcess>>,
}

impl Peers {
    /// Watches over a peer's process: one descriptor for all channels with it.
    pub(super) fn watch(&self, epoll: &Epoll, pid: u32, pidfd: Option<OwnedFd>, end: End) {
        let mut peers = lock(&self.processes);
        peers.retain(|of, peer| {
            peer.ends.retain(End::exists);
            *of == pid || !peer.ends.is_empty()
        });
        let peer = peers.entry(pid).or_default();
        // Processes of foreign pid namespaces are all 0: one's end says nothing of the others.
        // Life words and hang-ups tell of these.
        if pid != 0
            && peer.pidfd.is_none()
            && let Some(pidfd) = pidfd
        {
            let once = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
            let event = EpollEvent::new(once, u64::from(pid));
            if epoll.add(&pidfd, event).is_ok() {
                peer.pidfd = Some(pidfd);
            }
        }
        peer.ends.push(end);
    }

    /// A peer's process ended: so do the channels with it.
    pub(super) fn bury(&self, pid: u32) {
        let peer = lock(&self.processes).remove(&pid);
        for end in peer.into_iter().flat_map(|peer| peer.ends) {
            end.end(Fate::Died);
        }
    }

    /// A channel is not allowed any more.
    pub(super) fn revoke(&self, channel: u64) {
        for end in self.ends().iter().filter(|end| end.is_of(channel)) {
            end.end(Fate::Closed);
        }
    }

    pub(super) fn ends(&self) -> Vec<End> {
        lock(&self.processes).values().flat_map(|peer| peer.ends.iter().cloned()).collect()
    }
}
