//! Suspicion: what a node tells of others, and how it answers when it is suspected itself.

use std::sync::{Arc, Weak};

use super::{
    core::{Core, lock},
    peers::End,
};
use crate::{ServiceId, channel::Fate, clock, control::Request};

/// A question of the runtime whether an instance's loop comes round.
#[derive(Debug)]
pub(crate) struct Probe {
    core: Weak<Core>,
    instance: ServiceId,
    number: u32,
}

impl Probe {
    /// Answers it. The loop's work.
    pub(crate) fn answer(self) {
        if let Some(core) = self.core.upgrade() {
            core.say_pulse(self.instance, self.number, 0);
        }
    }
}

impl Core {
    /// Tells the runtime that nothing is heard of who serves.
    pub(crate) fn suspect(&self, instance: ServiceId, mark: u32) {
        // Where it cannot be told now, it is again.
        let _ = self.tell_now(&Request::Suspect { instance, mark });
    }

    /// The runtime asks whether an instance's loop comes round. If handlers run the warden says so
    /// by itself; in any case the loop is to answer.
    pub(super) fn probed(self: &Arc<Self>, instance: ServiceId, number: u32) {
        let hub = lock(&self.registered)
            .iter()
            .find(|it| it.current == instance)
            .and_then(|it| it.hub.upgrade());
        let Some(hub) = hub else { return };
        if let Some(since) = self.busy_since() {
            let busy_us = (clock::now_ns().saturating_sub(since) / 1000).max(1);
            self.say_pulse(instance, number, busy_us);
        }
        hub.probe(Probe { core: Arc::downgrade(self), instance, number });
    }

    /// Since when a handler of this node runs: the one that began first.
    fn busy_since(&self) -> Option<u64> {
        let ends = self.peers.ends();
        let busy = ends.iter().filter_map(|end| match end {
            End::Incoming(incoming) => incoming.upgrade(),
            End::Link(_) | End::Region(_) => None,
        });
        let open = busy.filter(|it| it.channel.fate() == Fate::Open);
        open.map(|it| it.channel.busy_since()).filter(|since| *since != 0).min()
    }

    fn say_pulse(&self, instance: ServiceId, number: u32, busy_us: u64) {
        let _ = self.tell_now(&Request::Pulse { instance, number, busy_us });
    }
}
