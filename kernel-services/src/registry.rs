//! Who serves what: nodes, names, and the ordered groups of instances behind a name. Pure.
//!
//! A name leads to a group: the first registered serves, the others stand by in order, which is
//! that of their instances' ids, also when they register again after a restart. Names,
//! instances and nodes take their ids from one counter, so an id says by itself what it is.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ipc::{
    ServiceId, Status,
    control::{Entry, SERVICE_DEDUP, SERVICE_EXCLUSIVE, SERVICE_IDEMPOTENT, page_fits},
};

use crate::ids::Ids;

/// Nodes at a time.
pub(crate) const NODES: usize = 4096;
/// Names that one node serves at a time.
pub(crate) const NAMES_PER_NODE: usize = 1024;
/// Instances at a time.
pub(crate) const INSTANCES: usize = 16_384;
/// Names whose ids are remembered. Beyond, the name that nobody has served for longest loses its
/// id for a new one.
const NAMES: usize = 65_536;
/// Ids that names hold besides their own.
const FORMER_IDS: usize = 65_536;
/// More entries than any page holds.
const PAGE: usize = 160;
const FLAGS: u32 = SERVICE_IDEMPOTENT | SERVICE_EXCLUSIVE | SERVICE_DEDUP;

/// All that is known of who serves what.
#[derive(Debug)]
pub(crate) struct Registry {
    ids: Ids,
    nodes: HashMap<ServiceId, Node>,
    instances: BTreeMap<ServiceId, Instance>,
    names: HashMap<ServiceId, Name>,
    by_text: HashMap<Arc<str>, ServiceId>,
    /// Ids that a name held under an earlier run, where it has got a new one meanwhile.
    former: HashMap<ServiceId, ServiceId>,
    /// Counts departures, to order the names that nobody serves.
    departures: u64,
}

#[derive(Debug)]
struct Node {
    pid: u32,
    uid: u32,
    /// In the order of registration.
    instances: Vec<ServiceId>,
}

/// One registration: a node serves a name.
#[derive(Debug)]
pub(crate) struct Instance {
    /// Who serves.
    pub(crate) node: ServiceId,
    /// The name's id.
    pub(crate) name: ServiceId,
    pub(crate) flags: u32,
    channels: u32,
}

#[derive(Debug)]
struct Name {
    text: Arc<str>,
    /// Instances by rank.
    group: Vec<ServiceId>,
    unserved_since: u64,
}

/// Ids held before a restart of the runtime; `NONE` where there were none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Claims {
    pub(crate) instance: ServiceId,
    pub(crate) name: ServiceId,
}

/// The two ids of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registered {
    pub(crate) instance: ServiceId,
    pub(crate) name: ServiceId,
}

impl Registry {
    pub(crate) fn new(ids: Ids) -> Registry {
        Registry {
            ids,
            nodes: HashMap::new(),
            instances: BTreeMap::new(),
            names: HashMap::new(),
            by_text: HashMap::new(),
            former: HashMap::new(),
            departures: 0,
        }
    }

    /// Gives a number that no other run or use has: ids serve as such beyond services.
    pub(crate) fn unique(&mut self) -> Result<u32, Status> {
        self.ids.fresh().map(ServiceId::get)
    }

    /// Admits a node and gives it its anonymous id.
    ///
    /// # Errors
    /// `QUOTA` when there are too many; what [`Ids::fresh`] says.
    pub(crate) fn enter(&mut self, pid: u32, uid: u32) -> Result<ServiceId, Status> {
        if self.nodes.len() >= NODES {
            return Err(Status::QUOTA);
        }
        let id = self.ids.fresh()?;
        self.nodes.insert(id, Node { pid, uid, instances: Vec::new() });
        Ok(id)
    }

    /// Removes a node and all that it served; gives the instances that ended, and their names.
    pub(crate) fn leave(&mut self, node: ServiceId) -> Vec<(ServiceId, ServiceId)> {
        let Some(left) = self.nodes.remove(&node) else { return Vec::new() };
        let named = |&id: &ServiceId| self.instances.get(&id).map(|it| (id, it.name));
        let ended: Vec<_> = left.instances.iter().filter_map(named).collect();
        for &(instance, _) in &ended {
            self.remove(instance);
        }
        ended
    }

    /// Gives the instances of a name, by rank.
    pub(crate) fn group(&self, name: ServiceId) -> &[ServiceId] {
        self.names.get(&name).map_or(&[], |it| &it.group)
    }

    /// Has an instance be the first of its group.
    pub(crate) fn put_first(&mut self, instance: ServiceId) {
        let name = self.instances.get(&instance).map(|it| it.name);
        if let Some(name) = name.and_then(|name| self.names.get_mut(&name))
            && let Some(rank) = name.group.iter().position(|&it| it == instance)
        {
            name.group[..=rank].rotate_right(1);
        }
    }

    /// Has an instance be the last of its group.
    pub(crate) fn put_last(&mut self, instance: ServiceId) {
        let name = self.instances.get(&instance).map(|it| it.name);
        if let Some(name) = name.and_then(|name| self.names.get_mut(&name))
            && let Some(rank) = name.group.iter().position(|&it| it == instance)
        {
            name.group[rank..].rotate_left(1);
        }
    }

    /// Brings the group of a name into the order of these ranks; those alike stay as they were.
    pub(crate) fn sort(&mut self, name: ServiceId, ranks: &[(usize, ServiceId)]) {
        let rank = |instance: &ServiceId| {
            ranks.iter().find(|(_, it)| it == instance).map_or(usize::MAX, |(rank, _)| *rank)
        };
        if let Some(name) = self.names.get_mut(&name) {
            name.group.sort_by_key(rank);
        }
    }

    /// Puts a node into the group that serves a name: at its end, or where it was under an earlier
    /// run.
    ///
    /// # Errors
    /// `INVALID` for unknown flags or nodes; `EXISTS` when the node serves the name already, or
    /// anybody does and either side is exclusive; `QUOTA`; what [`Ids::fresh`] says.
    pub(crate) fn register(
        &mut self,
        node: ServiceId,
        text: &str,
        flags: u32,
        claims: Claims,
    ) -> Result<Registered, Status> {
        let served = self.nodes.get(&node).ok_or(Status::INVALID)?.instances.len();
        if flags & !FLAGS != 0 {
            return Err(Status::INVALID);
        }
        let known = self.by_text.get(text).copied();
        if known.is_some_and(|name| !self.may_join(node, name, flags)) {
            return Err(Status::EXISTS);
        }
        if served >= NAMES_PER_NODE || self.instances.len() >= INSTANCES {
            return Err(Status::QUOTA);
        }
        // Ids come before any change, since they can fail.
        let name = match known {
            Some(name) => name,
            None => self.claimed_or_fresh(claims.name)?,
        };
        let instance = self.claimed_or_fresh(claims.instance)?;
        if known.is_none() {
            self.remember_name(name, text);
        } else {
            self.remember_former(claims.name, name);
        }
        if let Some(group) = self.names.get_mut(&name) {
            // By age, which is the order of the ids: who returns after a restart of the runtime
            // has the place that it had, whoever returned before it.
            let older = group.group.iter().rposition(|&other| other < instance);
            group.group.insert(older.map_or(0, |older| older + 1), instance);
        }
        if let Some(holder) = self.nodes.get_mut(&node) {
            holder.instances.push(instance);
        }
        self.instances.insert(instance, Instance { node, name, flags, channels: 0 });
        Ok(Registered { instance, name })
    }

    /// Ends an instance of a node.
    ///
    /// # Errors
    /// `NOT_FOUND` when the node has no such instance.
    pub(crate) fn unregister(
        &mut self,
        node: ServiceId,
        instance: ServiceId,
    ) -> Result<(), Status> {
        if self.instances.get(&instance).is_none_or(|it| it.node != node) {
            return Err(Status::NOT_FOUND);
        }
        if let Some(holder) = self.nodes.get_mut(&node) {
            holder.instances.retain(|&it| it != instance);
        }
        self.remove(instance);
        Ok(())
    }

    /// Gives the id of a name that somebody serves.
    pub(crate) fn discover(&self, text: &str) -> Option<ServiceId> {
        let id = *self.by_text.get(text)?;
        self.names.get(&id).filter(|name| !name.group.is_empty()).map(|_| id)
    }

    /// Gives the instance that an id leads to: itself, or the first of a name's group.
    pub(crate) fn resolve(&self, dest: ServiceId) -> Option<ServiceId> {
        if self.instances.contains_key(&dest) {
            return Some(dest);
        }
        let name = self.former.get(&dest).unwrap_or(&dest);
        self.names.get(name)?.group.first().copied()
    }

    pub(crate) fn instance(&self, id: ServiceId) -> Option<&Instance> {
        self.instances.get(&id)
    }

    /// Says as whom a node appears to others: its first instance and that one's name, or its
    /// anonymous id and none.
    pub(crate) fn appearance(&self, node: ServiceId) -> (ServiceId, ServiceId) {
        let first = self.nodes.get(&node).and_then(|it| it.instances.first());
        match first.and_then(|&id| self.instances.get(&id).map(|it| (id, it.name))) {
            Some(appearance) => appearance,
            None => (node, ServiceId::NONE),
        }
    }

    /// Gives the name that an id is of, or that an instance serves.
    pub(crate) fn name_behind(&self, id: ServiceId) -> Option<&Arc<str>> {
        let name = match self.instances.get(&id) {
            Some(instance) => &instance.name,
            None => self.former.get(&id).unwrap_or(&id),
        };
        self.names.get(name).map(|name| &name.text)
    }

    /// Gives the node that an id is of, or leads to.
    pub(crate) fn node_behind(&self, id: ServiceId) -> Option<ServiceId> {
        if self.nodes.contains_key(&id) {
            return Some(id);
        }
        self.resolve(id).and_then(|it| self.instances.get(&it)).map(|it| it.node)
    }

    /// Gives all ids by which a node can be meant: its own, its instances', and those of the names
    /// that they serve.
    pub(crate) fn ids_of(&self, node: ServiceId) -> Vec<ServiceId> {
        let instances = self.nodes.get(&node).map_or(&[][..], |it| &it.instances);
        let names = instances.iter().filter_map(|id| self.instances.get(id)).map(|it| it.name);
        [node].into_iter().chain(instances.iter().copied()).chain(names).collect()
    }

    /// Lists the instances of a node, with their names.
    pub(crate) fn served_by_node(&self, node: ServiceId) -> Vec<(ServiceId, Arc<str>)> {
        let instances = self.nodes.get(&node).map_or(&[][..], |it| &it.instances);
        let named = |&id: &ServiceId| Some((id, Arc::clone(self.name_behind(id)?)));
        instances.iter().filter_map(named).collect()
    }

    /// Lists all instances, with what serves them and what they are called.
    pub(crate) fn all(&self) -> impl Iterator<Item = (ServiceId, &Instance, &Arc<str>)> {
        let named = |(&id, it)| Some((id, it, self.name_behind(id)?));
        self.instances.iter().filter_map(named)
    }

    /// Counts a channel introduced to an instance.
    pub(crate) fn count_channel(&mut self, instance: ServiceId) {
        if let Some(instance) = self.instances.get_mut(&instance) {
            instance.channels = instance.channels.saturating_add(1);
        }
    }

    /// Gives the instances above `after`, as many as fit a packet, and where the next page begins
    /// (0: nowhere).
    pub(crate) fn list(&self, after: u32) -> (Vec<Entry>, u32) {
        let rest = self.instances.range(ServiceId::new(after.saturating_add(1))..);
        let mut entries: Vec<Entry> =
            rest.take(PAGE).filter_map(|(&id, instance)| self.entry(id, instance)).collect();
        let fits = page_fits(&entries);
        let more = fits < entries.len();
        entries.truncate(fits);
        let next = entries.last().filter(|_| more).map_or(0, |entry| entry.instance.get());
        (entries, next)
    }

    pub(crate) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn services(&self) -> usize {
        self.instances.len()
    }

    fn entry(&self, id: ServiceId, instance: &Instance) -> Option<Entry> {
        let node = self.nodes.get(&instance.node)?;
        let name = self.names.get(&instance.name)?;
        let rank = name.group.iter().position(|&it| it == id)?;
        Some(Entry {
            instance: id,
            name_id: instance.name,
            pid: node.pid,
            uid: node.uid,
            rank: rank as u32,
            flags: instance.flags,
            channels: instance.channels,
            name: name.text.to_string(),
        })
    }

    fn may_join(&self, node: ServiceId, name: ServiceId, flags: u32) -> bool {
        let Some(name) = self.names.get(&name) else { return true };
        let mut group = name.group.iter().filter_map(|id| self.instances.get(id));
        group.all(|other| other.node != node && (other.flags | flags) & SERVICE_EXCLUSIVE == 0)
    }

    fn claimed_or_fresh(&mut self, claim: ServiceId) -> Result<ServiceId, Status> {
        if !self.in_use(claim) && self.ids.claim(claim) { Ok(claim) } else { self.ids.fresh() }
    }

    fn in_use(&self, id: ServiceId) -> bool {
        self.instances.contains_key(&id)
            || self.names.contains_key(&id)
            || self.former.contains_key(&id)
            || self.nodes.contains_key(&id)
    }

    fn remember_name(&mut self, id: ServiceId, text: &str) {
        if self.names.len() >= NAMES {
            self.forget_a_name();
        }
        let text: Arc<str> = text.into();
        self.by_text.insert(Arc::clone(&text), id);
        self.names.insert(id, Name { text, group: Vec::new(), unserved_since: 0 });
    }

    /// Lets an id that clients may still hold lead to the name, though a newcomer registered the
    /// name first and it has another id now.
    fn remember_former(&mut self, claim: ServiceId, name: ServiceId) {
        let room = self.former.len() < FORMER_IDS;
        if room && claim != name && !self.in_use(claim) && self.ids.claim(claim) {
            self.former.insert(claim, name);
        }
    }

    /// There is always one to forget, since names that are served are at most `INSTANCES`.
    fn forget_a_name(&mut self) {
        let unserved = self.names.iter().filter(|(_, name)| name.group.is_empty());
        let oldest = unserved.min_by_key(|(_, name)| name.unserved_since).map(|(&id, _)| id);
        if let Some(name) = oldest.and_then(|id| self.names.remove(&id)) {
            self.by_text.remove(&name.text);
        }
        self.former.retain(|_, id| oldest != Some(*id));
    }

    fn remove(&mut self, instance: ServiceId) {
        let Some(removed) = self.instances.remove(&instance) else { return };
        self.departures += 1;
        if let Some(name) = self.names.get_mut(&removed.name) {
            name.group.retain(|&it| it != instance);
            name.unserved_since = self.departures;
        }
    }
}

#[cfg(test)]
mod tests;
