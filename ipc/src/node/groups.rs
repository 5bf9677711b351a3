//! What a node hears of the groups that it serves in, or calls.

use std::sync::{Arc, PoisonError, Weak};

use super::core::{Core, lock};
use crate::{
    ServiceId,
    client::ClientState,
    control::{Group, Request},
};

/// Names whose groups are remembered for clients that are about to be made.
const MOST_GROUPS: usize = 1024;

impl Core {
    /// The runtime tells of a group. The warden's work.
    pub(super) fn hear_group(self: &Arc<Self>, group: Group) {
        {
            let mut groups = lock(&self.groups);
            if groups.len() >= MOST_GROUPS && !groups.contains_key(&group.name) {
                groups.clear();
            }
            groups.insert(group.name, group.clone());
        }
        let own: Vec<_> = lock(&self.registered)
            .iter()
            .filter(|it| it.name_id == group.name)
            .map(|it| (it.current, Arc::clone(&it.post)))
            .collect();
        for (instance, post) in own {
            self.stand_by(instance, post, &group);
        }
        let state = lock(&self.clients).get(&group.name).and_then(Weak::upgrade);
        if let Some(state) = state {
            self.tell(&state, &group);
        }
    }

    /// A client was made: tells it what is known of its name.
    pub(crate) fn introduce(self: &Arc<Self>, state: &Arc<ClientState>) {
        let group = lock(&self.groups).get(&state.dest()).cloned();
        if let Some(group) = group {
            self.tell(state, &group);
        }
    }

    fn tell(self: &Arc<Self>, state: &Arc<ClientState>, group: &Group) {
        if state.hear(group) {
            self.send_for(state);
        }
    }

    /// The runtime has an instance serve its name.
    pub(super) fn promote(&self, instance: ServiceId, epoch: u64) {
        if let Some(post) = self.post_of(instance)
            && post.take(epoch)
        {
            self.say_epoch(instance, epoch);
        }
    }

    /// Tells the runtime that an instance serves, or stands by (0).
    pub(super) fn say_epoch(&self, instance: ServiceId, epoch: u64) {
        // A runtime that is gone is told when it is back.
        let _ = self.tell_now(&Request::Promoted { instance, epoch });
    }

    fn post_of(&self, instance: ServiceId) -> Option<Arc<crate::failover::post::Post>> {
        let registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        registered.iter().find(|it| it.current == instance).map(|it| Arc::clone(&it.post))
    }

    /// The runtime has an instance let go of its name. It answers when nothing is being handled.
    pub(super) fn yield_name(self: &Arc<Self>, instance: ServiceId) {
        let Some(post) = self.post_of(instance) else { return };
        let core = Arc::downgrade(self);
        let leaving = std::thread::Builder::new().name("ipc-yield".into()).spawn(move || {
            post.leave();
            if let Some(core) = core.upgrade() {
                core.say_epoch(instance, 0);
            }
        });
        // Without a thread it goes on serving, and the runtime gives up waiting.
        drop(leaving);
    }
}
