//! Regions of a node: made, mapped, granted, and told to a runtime that knows nothing of them.

use std::{
    os::fd::AsFd,
    sync::{Arc, Weak},
};

use super::{Core, Node, PATIENCE, core::lock, peers::End, refused};
use crate::{
    Region, RegionError, RegionOptions, ServiceId,
    control::{
        Reply, Request, TICKET_BYTES,
        closer::Stranger,
        regions::{Access, RegionEntry, RegionReply, RegionRequest},
    },
    error::{NodeError, Status},
    region::{Held, Parts, Unentered},
};

/// Regions that one look at all of them may find: more than any runtime keeps.
const MOST: usize = 128 * 1024;

impl Node {
    /// Makes a region of `size` bytes, all zero and all allocated, which this process owns. It is
    /// charged to this process's user, and service, until nobody has it mapped any more.
    ///
    /// # Errors
    /// [`NodeError::Config`] for a size of 0 or over 16 GiB, or a NUMA node that is not online;
    /// [`NodeError::System`] when memory or descriptors run out; [`NodeError::Refused`] with
    /// `QUOTA` when they would be more than this process may have; [`NodeError::Forked`]; those of
    /// a lost runtime.
    pub fn create_region(&self, size: u64, options: &RegionOptions) -> Result<Region, RegionError> {
        self.check_region()?;
        let held = self.shared.core.create_region(size, options)?;
        Ok(Region { held, node: Arc::clone(&self.shared) })
    }

    /// Maps a region that its owner granted to this process, or gives the one that is mapped
    /// already. Writable if it was granted so.
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `NOT_FOUND` for no region, `PEER_DIED` when its owner is gone,
    /// `QUOTA`; [`NodeError::Forbidden`] when it is not granted, or the rules do not allow it;
    /// [`NodeError::Lane`] when its memory is none that can be trusted; [`NodeError::Forked`];
    /// those of a lost runtime.
    pub fn map_region(&self, id: u64) -> Result<Region, RegionError> {
        self.check_region()?;
        let held = self.shared.core.map_region(id)?;
        Ok(Region { held, node: Arc::clone(&self.shared) })
    }

    /// Lists all regions of the runtime, by id. For operators' programs.
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `ACCESS` in a supervised service; those of a lost runtime.
    pub fn regions(&self) -> Result<Vec<RegionEntry>, NodeError> {
        let mut entries = Vec::new();
        let mut after = 0;
        for _ in 0..MOST {
            let request = Request::Region(RegionRequest::List { after });
            match self.shared.core.request(&request, &[], Some(PATIENCE))?.0 {
                Reply::Region(RegionReply::Entry(entry)) if entry.region > after => {
                    after = entry.region;
                    entries.push(entry);
                }
                Reply::Done => break,
                reply => return Err(refused(&reply)),
            }
        }
        Ok(entries)
    }

    fn check_region(&self) -> Result<(), NodeError> {
        if self.is_forked() { Err(NodeError::Forked) } else { Ok(()) }
    }
}

impl Core {
    pub(crate) fn create_region(
        self: &Arc<Self>,
        size: u64,
        options: &RegionOptions,
    ) -> Result<Arc<Held>, NodeError> {
        let made = Unentered::create(size, options)?;
        let request = RegionRequest::Create { size, claim: 0, ticket: [0; TICKET_BYTES] };
        let request = Request::Region(request);
        match self.request(&request, &[made.fd.as_fd()], Some(PATIENCE))?.0 {
            Reply::Region(RegionReply::Created { region, ticket }) => {
                Ok(self.note_region(made.enter(region, ticket, self.parts())))
            }
            reply => Err(refused(&reply)),
        }
    }

    fn map_region(self: &Arc<Self>, id: u64) -> Result<Arc<Held>, NodeError> {
        let known = |it: &Weak<Held>| it.upgrade().filter(|held| held.is_held());
        if let Some(held) = lock(&self.regions).get(&id).and_then(|all| all.iter().find_map(known))
        {
            return Ok(held);
        }
        let request = Request::Region(RegionRequest::Map { region: id });
        let asked = self.request(&request, &[], Some(PATIENCE));
        let (reply, fds) = asked.map_err(|error| match error {
            NodeError::Refused(Status::ACCESS) => NodeError::Forbidden,
            error => error,
        })?;
        let Reply::Region(RegionReply::Mapped { region, size, writable, owner, owner_pid, .. }) =
            reply
        else {
            return Err(refused(&reply));
        };
        let mapped = self.take_region(region, size, (writable, owner, owner_pid), fds);
        if mapped.is_err() {
            // The runtime counts it from its answer on.
            self.say_unmapped(region);
        }
        mapped
    }

    fn take_region(
        self: &Arc<Self>,
        id: u64,
        size: u64,
        (writable, owner, owner_pid): (bool, ServiceId, u32),
        fds: Vec<Stranger>,
    ) -> Result<Arc<Held>, NodeError> {
        let mut fds = fds.into_iter().map(Stranger::vouched);
        let fd = fds.next().ok_or(NodeError::Malformed("a region without its memory"))?;
        let pidfd = fds.next();
        let is_watched = pidfd.is_some() && owner_pid != 0;
        let held = Held::map(id, fd, size, (writable, owner, is_watched), self.parts())?;
        let held = self.note_region(held);
        let end = End::Region(Arc::downgrade(&held));
        self.peers.watch(&self.epoll, owner_pid, pidfd, end);
        Ok(held)
    }

    fn parts(self: &Arc<Self>) -> Parts {
        Parts {
            spin: self.config.spin,
            interrupter: Arc::clone(&self.interrupter),
            core: Arc::downgrade(self),
        }
    }

    fn note_region(&self, held: Held) -> Arc<Held> {
        let held = Arc::new(held);
        lock(&self.regions).entry(held.id).or_default().push(Arc::downgrade(&held));
        held
    }

    /// Grants a region of this node, or takes a grant back.
    pub(crate) fn grant(
        &self,
        held: &Held,
        to: ServiceId,
        access: Access,
    ) -> Result<(), NodeError> {
        let fds = [held.memory()];
        let fds = if access == Access::None { &fds[..0] } else { &fds[..] };
        let request = Request::Region(RegionRequest::Grant { region: held.id, to, access });
        match self.request(&request, fds, Some(PATIENCE))?.0 {
            Reply::Done => Ok(()),
            reply => Err(refused(&reply)),
        }
    }

    /// Tells the runtime that a region is not mapped any more, without waiting.
    pub(crate) fn say_unmapped(&self, region: u64) {
        {
            let mut regions = lock(&self.regions);
            if let Some(all) = regions.get_mut(&region) {
                all.retain(|it| it.strong_count() > 0);
                if all.is_empty() {
                    regions.remove(&region);
                }
            }
        }
        self.tell_later(Request::Region(RegionRequest::Unmap { region }));
    }

    /// The runtime says that nothing comes of a region any more. The warden's work.
    pub(super) fn region_ended(&self, region: u64, revoked: bool) {
        let held = lock(&self.regions).get(&region).cloned().unwrap_or_default();
        for held in held.iter().filter_map(Weak::upgrade) {
            held.hear_ended(revoked);
        }
    }

    pub(super) fn has_regions(&self) -> bool {
        !lock(&self.regions).is_empty()
    }

    /// Tells a runtime that knows nothing of it which regions this node has. What it cannot be told
    /// now it is told when it is reached again.
    pub(super) fn tell_regions(&self) {
        let all: Vec<_> =
            lock(&self.regions).values().flatten().filter_map(Weak::upgrade).collect();
        for held in all.iter().filter(|held| held.is_held()) {
            let region = held.id;
            let tell = |sequence, request| {
                self.post(sequence, &Request::Region(request), &[held.memory()])
            };
            let told = if let Some((ticket, granted)) = held.own() {
                let claim = RegionRequest::Create { size: held.size(), claim: region, ticket };
                let grants = granted.into_iter().map(|(to, access)| RegionRequest::Grant {
                    region,
                    to,
                    access,
                });
                let mut all = [claim].into_iter().chain(grants);
                all.try_for_each(|request| tell(self.next_sequence(), request))
            } else {
                tell(0, RegionRequest::Map { region })
            };
            if told.is_err() {
                return;
            }
        }
    }
}
