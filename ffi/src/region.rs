//! Shared regions: made, granted, mapped, published and awaited.

#![allow(unsafe_code)] // exports

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::{c_int, c_void},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipc_core::{Pages, Region, RegionAccess, RegionOptions, ServiceId, Status, WaitHandler};

use crate::{
    boundary::{self, UserData, guard},
    error::{Failure, IPC_OK},
    message::run_callback,
    runtime,
    service::limit,
    types::{
        IPC_ANY_NUMA_NODE, IPC_PAGES_ADVISED, IPC_PAGES_HUGE, IPC_PAGES_SMALL,
        IPC_REGION_HUGE_PAGES, RegionHandler, service_id_t, shared_region_id_t,
    },
};

/// Regions that are watched at a time: each has a thread.
const MOST_WATCHED: usize = 64;

/// The regions that C has made or mapped, by id.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    all: Mutex<HashMap<u64, Region>>,
    watched: Mutex<HashMap<u64, WaitHandler>>,
}

impl Regions {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Region>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<u64, WaitHandler>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what is mapped here, and gives what there is then.
    fn keep(&self, map: impl Fn() -> Result<Region, Failure>) -> Result<Region, Failure> {
        loop {
            // Without the lock: this waits for the runtime's answer.
            let fresh = map()?;
            match self.lock().entry(fresh.id()) {
                // Another thread was quicker; its address is the one that C has.
                Entry::Occupied(first) => return Ok(first.get().clone()),
                // It was another thread's, too, which has unmapped it meanwhile.
                Entry::Vacant(_) if fresh.is_closed() => {}
                Entry::Vacant(place) => return Ok(place.insert(fresh).clone()),
            }
        }
    }

    /// Closes a region for all threads: those that are at it keep its memory a moment longer.
    fn unmap(&self, id: shared_region_id_t) -> Result<(), Failure> {
        let mut all = self.lock();
        let region = all.remove(&id).ok_or(Status::NOT_FOUND)?;
        // Under the lock: nobody can find it here and not see that it is closed.
        region.close();
        drop(all);
        drop(region);
        Ok(())
    }

    pub(crate) fn clear(&self) {
        let watched = std::mem::take(&mut *self.watched());
        drop(watched);
        let all = std::mem::take(&mut *self.lock());
        // Without the lock: the last of each unmaps it.
        drop(all);
    }
}

/// Gives a region that this process made or mapped.
fn known(id: shared_region_id_t) -> Result<Region, Failure> {
    let runtime = runtime::current()?;
    let region = runtime.regions.lock().get(&id).cloned();
    region.ok_or_else(|| Status::NOT_FOUND.into())
}

/// Makes size bytes of shared memory, all zero, which this process owns, and sets *id to their id,
/// which is never used again. Others map them once they are granted them. They are this process's
/// until it calls ipc_unmap_shared_region or ends; those who have mapped them keep them.
///
/// IPC_EINVAL: a NULL, or size is 0 or over 16 GiB. IPC_EQUOTA: more than this process may have.
/// IPC_ESYS: the system has no memory left. IPC_ENORUNTIME: ipcd is gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_create_shared_region(
    size: usize,
    id: *mut shared_region_id_t,
) -> c_int {
    // SAFETY: the caller's promises are the same.
    unsafe { ipc_create_shared_region_ex(size, 0, IPC_ANY_NUMA_NODE, id) }
}

/// As ipc_create_shared_region. With IPC_REGION_HUGE_PAGES in flags its pages are huge where the
/// kernel has some to give. Its memory lies on numa_node, unless that is IPC_ANY_NUMA_NODE.
///
/// IPC_EINVAL: also for an unknown flag, and a NUMA node that is not online.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_create_shared_region_ex(
    size: usize,
    flags: u32,
    numa_node: u32,
    id: *mut shared_region_id_t,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let id = unsafe { boundary::out(id)? };
        if flags & !IPC_REGION_HUGE_PAGES != 0 {
            return Err(Status::INVALID.into());
        }
        let runtime = runtime::current()?;
        let options = RegionOptions {
            huge_pages: flags & IPC_REGION_HUGE_PAGES != 0,
            numa_node: (numa_node != IPC_ANY_NUMA_NODE).then_some(numa_node),
        };
        let region = runtime.node.create_region(size as u64, &options)?;
        id.set(region.id());
        runtime.regions.lock().insert(region.id(), region);
        Ok(IPC_OK)
    })
}

/// Sets *addr to where a region lies in this process, page-aligned, and maps it if it is not mapped
/// yet: one of its own, or one that its owner has granted to this process. The address is valid
/// until ipc_unmap_shared_region or ipc_shutdown. Only the owner may write there, unless it was
/// granted for writing. Others may be writing there at any time: copy what you check.
///
/// IPC_EINVAL: a NULL. IPC_ENOENT: no such region. IPC_EACCES: not granted, or the rules do not
/// allow it. IPC_EPEERDIED: its owner is gone. IPC_EQUOTA. IPC_ENORUNTIME: ipcd is gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_map_shared_region(
    id: shared_region_id_t,
    addr: *mut *mut c_void,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let addr = unsafe { boundary::out(addr)? };
        let runtime = runtime::current()?;
        let mapped = runtime.regions.lock().get(&id).cloned();
        let region = match mapped {
            Some(region) => region,
            None => runtime.regions.keep(|| Ok(runtime.node.map_region(id)?))?,
        };
        addr.set(region.address().as_ptr().cast());
        Ok(IPC_OK)
    })
}

/// Publishes what this process wrote to a region: its version grows by one, and whoever waits for
/// that wakes. Who has seen the new version sees all that was written before.
///
/// IPC_ENOENT: not a region that this process made or mapped. IPC_EACCES: it may only read it, or
/// may not have it any more.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_sync_shared_region(id: shared_region_id_t) -> c_int {
    guard(|| {
        known(id)?.sync()?;
        Ok(IPC_OK)
    })
}

/// Waits until the version of a region is another than seen, at most timeout_ms milliseconds (0
/// looks once, IPC_WAIT_FOREVER waits without limit), and sets *version to it. Versions count from
/// 0, when a region is made.
///
/// IPC_EINVAL: a NULL. IPC_ENOENT: as for ipc_sync_shared_region, also when another thread unmaps
/// it meanwhile. IPC_ETIMEDOUT. IPC_EPEERDIED: the owner is gone, and nothing will be published any
/// more; what is there stays readable. IPC_EACCES: the grant was taken back. IPC_ECANCELED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_wait_shared_region(
    id: shared_region_id_t,
    seen: u64,
    version: *mut u64,
    timeout_ms: u32,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let version = unsafe { boundary::out(version)? };
        let timeout: Option<Duration> = limit(timeout_ms);
        version.set(known(id)?.wait(seen, timeout)?);
        Ok(IPC_OK)
    })
}

/// Has new versions of a region handled by handler, inside ipc_poll and ipc_run, beginning with the
/// one that is there if it is another than seen. They make ipc_fd readable. Versions that come
/// while one is handled are one. A handler replaces the one before; NULL ends that. When the owner
/// is gone, or the grant was taken back, the handler is told so by its status, and not called
/// again. A thread waits on behalf of each region; at most 64 are watched.
///
/// IPC_ENOENT: this process has not mapped it. IPC_EQUOTA: 64 are watched. IPC_ESYS: there is no
/// thread to be had.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_watch_shared_region(
    id: shared_region_id_t,
    seen: u64,
    handler: RegionHandler,
    user_data: *mut c_void,
) -> c_int {
    guard(|| {
        let region = known(id)?;
        let runtime = runtime::current()?;
        let before = runtime.regions.watched().remove(&id);
        // Without the lock: it takes a lock of the loop's.
        drop(before);
        let Some(function) = handler else { return Ok(IPC_OK) };
        if runtime.regions.watched().len() >= MOST_WATCHED {
            return Err(Status::QUOTA.into());
        }
        let user_data = UserData(user_data);
        let handling = runtime.server.handle_versions(&region, seen, move |version| {
            let user_data = user_data;
            let (status, version) = match version {
                Ok(version) => (IPC_OK, version),
                Err(error) => (error.status().code(), 0),
            };
            run_callback(|| {
                // SAFETY: C gave this function for this purpose.
                unsafe { function(id, status, version, user_data.0) }
            });
        })?;
        runtime.regions.watched().insert(id, handling);
        Ok(IPC_OK)
    })
}

/// Lets a service map a region of this process: an instance, or whoever serves a name. The first
/// grant decides for good: with writable, everybody to whom it is granted may write it, and what
/// stands in it is arbitrary bytes; without, the kernel lets nobody but this process write.
///
/// IPC_EINVAL: service is 0, or the region is granted for the other use. IPC_ENOENT: not a region
/// that this process made, or nobody's id. IPC_EACCES: another process made it. IPC_EQUOTA: too
/// many grants. IPC_ENORUNTIME: ipcd is gone.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_grant_shared_region(
    id: shared_region_id_t,
    service: service_id_t,
    writable: bool,
) -> c_int {
    guard(|| {
        if service == 0 {
            return Err(Status::INVALID.into());
        }
        let access = if writable { RegionAccess::Write } else { RegionAccess::Read };
        known(id)?.grant(ServiceId::new(service), access)?;
        Ok(IPC_OK)
    })
}

/// Takes a grant back. Whoever mapped the region by it cannot map it again, and its waits end with
/// IPC_EACCES. What it has mapped cannot be taken from it: make another region for what is secret.
///
/// IPC_EINVAL: service is 0. IPC_ENOENT, IPC_EACCES: as for ipc_grant_shared_region.
/// IPC_ENORUNTIME: ipcd is gone.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_revoke_shared_region(id: shared_region_id_t, service: service_id_t) -> c_int {
    guard(|| {
        if service == 0 {
            return Err(Status::INVALID.into());
        }
        known(id)?.revoke(ServiceId::new(service))?;
        Ok(IPC_OK)
    })
}

/// Unmaps a region; its address is not valid any more. Waits of other threads for it end with
/// IPC_ENOENT. Who made it lets go of it for good, and those who have mapped it are told that
/// nothing will be published any more. Its memory is freed when nobody has it mapped.
///
/// IPC_ENOENT: not a region that this process made or mapped.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_unmap_shared_region(id: shared_region_id_t) -> c_int {
    guard(|| {
        let runtime = runtime::current()?;
        let watched = runtime.regions.watched().remove(&id);
        drop(watched);
        runtime.regions.unmap(id)?;
        Ok(IPC_OK)
    })
}

/// Makes a region of the same bytes, pages and NUMA node as one that this process made, with the
/// same grants, on other memory, and sets *fresh to its id. Who had a grant of the one before that
/// was taken back sees nothing of the new one. Nobody may write to the one before meanwhile. It
/// stays until ipc_unmap_shared_region.
///
/// IPC_EINVAL: a NULL. IPC_ENOENT: not a region that this process made or mapped. IPC_EACCES:
/// another process made it. IPC_EQUOTA: both are more than this process may have. IPC_ESYS: the
/// system has no memory left. IPC_ENORUNTIME: ipcd is gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_rotate_shared_region(
    id: shared_region_id_t,
    fresh: *mut shared_region_id_t,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let fresh = unsafe { boundary::out(fresh)? };
        let runtime = runtime::current()?;
        let region = known(id)?.rotate()?;
        fresh.set(region.id());
        runtime.regions.lock().insert(region.id(), region);
        Ok(IPC_OK)
    })
}

/// Sets *pages to what kind of pages a region has that this process made or mapped:
/// IPC_PAGES_SMALL, IPC_PAGES_ADVISED or IPC_PAGES_HUGE; of another process's, as that one says.
///
/// IPC_EINVAL: a NULL. IPC_ENOENT: not such a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_region_pages(id: shared_region_id_t, pages: *mut u32) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let pages = unsafe { boundary::out(pages)? };
        pages.set(match known(id)?.pages() {
            Pages::Small => IPC_PAGES_SMALL,
            Pages::Advised => IPC_PAGES_ADVISED,
            Pages::Huge => IPC_PAGES_HUGE,
        });
        Ok(IPC_OK)
    })
}

/// Sets *size to the bytes of a region that this process made or mapped.
///
/// IPC_EINVAL: a NULL. IPC_ENOENT: not such a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_region_size(id: shared_region_id_t, size: *mut usize) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let size = unsafe { boundary::out(size)? };
        size.set(known(id)?.size());
        Ok(IPC_OK)
    })
}
