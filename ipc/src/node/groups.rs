//! What a node hears of the groups that it serves in, or calls.

use std::{
    sync::{Arc, PoisonError, Weak},
    time::Duration,
};

use super::{
    Node, PATIENCE,
    core::{Core, lock},
    refused,
};
use crate::{
    ServiceId,
    client::ClientState,
    control::{Change, FailoverPlan, Failure, Group, Reply, Request, Standing},
    error::{NodeError, Status},
};

/// How long a change of hands may take: who serves has two seconds to let go.
const HANDS: Duration = Duration::from_secs(10);

/// Names whose groups are remembered for clients that are about to be made.
const MOST_GROUPS: usize = 1024;

impl Node {
    /// Has another instance serve a name in place of who does, and waits until it does. `service`
    /// is the name, or the instance that serves it; `backup` the instance that is to serve, or
    /// nothing for the next in the order.
    ///
    /// Who serves finishes what it has taken, and takes nothing more; the rest goes to the next.
    /// No caller hears of it. One that does not let go within two seconds is passed over: it may
    /// go on, and its epoch is past.
    ///
    /// ```no_run
    /// # fn of(node: &ipc::Node) -> Result<(), ipc::NodeError> {
    /// node.trigger_failover(node.discover("store")?, None)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `NOT_FOUND` when nobody serves the name, or nobody stands by;
    /// `EXISTS` while it changes hands already; `ALREADY` when that instance does not serve;
    /// `ACCESS` to who is no member of the group, and may give no orders; `PEER_DIED` when the
    /// backup ended meanwhile.
    pub fn trigger_failover(
        &self,
        service: ServiceId,
        backup: Option<ServiceId>,
    ) -> Result<(), NodeError> {
        let backup = backup.unwrap_or(ServiceId::NONE);
        let request = Request::Trigger { failed: service, backup };
        match self.shared.core.request(&request, &[], Some(HANDS))?.0 {
            Reply::Done => Ok(()),
            reply => Err(refused(&reply)),
        }
    }

    /// Says who is to serve a name, in which order, and when who serves is passed over. It holds
    /// until it is said otherwise, beyond restarts of the runtime. Where it says that another one
    /// is the primary, the name changes hands, in order; this does not wait for it.
    ///
    /// ```no_run
    /// # fn of(node: &ipc::Node) -> Result<(), ipc::NodeError> {
    /// use ipc::{FailoverPlan, FailoverStrategy, HealthCheck};
    ///
    /// node.configure_failover(&FailoverPlan {
    ///     service: node.discover("store")?,
    ///     strategy: FailoverStrategy::RoundRobin,
    ///     health: HealthCheck { busy_ms: 2000, ..HealthCheck::default() },
    ///     order: Vec::new(),
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `NOT_FOUND` when nobody serves the name, or an instance in the
    /// order is not of it; `INVALID` when a number is out of its range, the order has more than
    /// [`MOST_MEMBERS`](crate::control::MOST_MEMBERS), or one twice; `ACCESS` to who is no member
    /// of the group, and may give no orders; `EXISTS` when the node file configures the name.
    pub fn configure_failover(&self, plan: &FailoverPlan) -> Result<(), NodeError> {
        if !plan.health.is_valid() || plan.order.len() > crate::control::MOST_MEMBERS {
            return Err(NodeError::Refused(Status::INVALID));
        }
        let request = Request::Configure(plan.clone());
        match self.shared.core.request(&request, &[], Some(PATIENCE))?.0 {
            Reply::Done => Ok(()),
            reply => Err(refused(&reply)),
        }
    }

    /// Finds out whether an instance has failed: the runtime looks at its process, and has its
    /// loop answer. `service` is a name, which stands for who serves it, or an instance; one that
    /// is gone is remembered, for a while. Returns when it is known, which for one that is silent
    /// takes as long as its health check allows.
    ///
    /// ```no_run
    /// # fn of(node: &ipc::Node) -> Result<(), ipc::NodeError> {
    /// let failure = node.detect_failure(node.discover("store")?)?;
    /// println!("{:?} {}", failure.kind, failure.instance);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `NOT_FOUND` when nothing is known of it; `FULL` when too many
    /// ask at a time.
    pub fn detect_failure(&self, service: ServiceId) -> Result<Failure, NodeError> {
        match self.shared.core.request(&Request::Detect { service }, &[], Some(HANDS))?.0 {
            Reply::Failure(failure) => Ok(failure),
            reply => Err(refused(&reply)),
        }
    }

    /// Tells how a name is configured, and how it stands.
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `NOT_FOUND` when nobody serves it.
    pub fn failover_standing(&self, service: ServiceId) -> Result<Standing, NodeError> {
        match self.shared.core.request(&Request::Standing { service }, &[], Some(PATIENCE))?.0 {
            Reply::Standing(standing) => Ok(standing),
            reply => Err(refused(&reply)),
        }
    }

    /// Lists the changes of hands that the runtime remembers: the last 256 of this run, from the
    /// oldest.
    ///
    /// # Errors
    /// Those of a lost runtime.
    pub fn failovers(&self) -> Result<Vec<Change>, NodeError> {
        let (mut all, mut after) = (Vec::new(), 0);
        loop {
            let request = Request::History { after };
            match self.shared.core.request(&request, &[], Some(PATIENCE))?.0 {
                Reply::Changes { changes, next } => {
                    all.extend(changes);
                    if next == 0 {
                        return Ok(all);
                    }
                    after = next;
                }
                reply => return Err(refused(&reply)),
            }
        }
    }
}

impl Core {
    /// The runtime tells of a group. The warden's work.
    pub(super) fn hear_group(self: &Arc<Self>, group: &Group) {
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
            self.stand_by(instance, post, group);
        }
        // A name may have got another id since a client was made, in a later run of the runtime.
        let clients: Vec<_> = lock(&self.clients).values().filter_map(Weak::upgrade).collect();
        for state in clients.iter().filter(|it| it.is_of(group)) {
            self.tell(state, group);
        }
    }

    /// A client was made, or goes by another channel: tells it what is known of its name.
    pub(crate) fn introduce(self: &Arc<Self>, state: &Arc<ClientState>) {
        let group = {
            let groups = lock(&self.groups);
            let all = groups.values().filter(|it| state.is_of(it));
            all.max_by_key(|it| it.epoch).cloned()
        };
        if let Some(group) = group {
            self.tell(state, &group);
        }
    }

    /// What an earlier run of the runtime told may not be so any more: this one tells it again.
    pub(super) fn forget_groups(&self) {
        lock(&self.groups).clear();
        let clients: Vec<_> = lock(&self.clients).values().filter_map(Weak::upgrade).collect();
        for state in clients {
            state.forget_group();
        }
    }

    /// The runtime led to an instance just now, which is news beside groups of its name that do
    /// not have it.
    pub(crate) fn outdate_groups(&self, instance: ServiceId, name: ServiceId) {
        lock(&self.groups).retain(|_, it| it.name != name || it.members.contains(&instance));
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
        post.void();
        // The runtime may change its mind before that is done.
        let epoch = post.epoch();
        if epoch == 0 {
            return self.say_epoch(instance, 0);
        }
        let registered = lock(&self.registered).iter().find(|it| it.current == instance).cloned();
        let core = Arc::downgrade(self);
        let leaving = std::thread::Builder::new().name("ipc-yield".into()).spawn(move || {
            let has_left = post.leave(epoch);
            if let Some(registered) = registered.filter(|_| has_left) {
                registered.tell_demoted(epoch);
            }
            if let Some(core) = core.upgrade().filter(|_| has_left) {
                core.say_epoch(instance, 0);
            }
        });
        // Without a thread it goes on serving, and the runtime gives up waiting.
        drop(leaving);
    }
}
