//! Shared regions: made, granted, mapped, synced, awaited and let go, live and gone, in any order.

#![allow(unsafe_code)] // calls into C

use std::{
    cell::RefCell,
    ffi::{c_int, c_void},
    ptr,
};

use super::abi::{
    self, EACCES, ECANCELED, EEXIST, EINVAL, ENOENT, ENORUNTIME, EPEERDIED, EQUOTA, ETIMEDOUT,
};

unsafe extern "C" {
    fn ipc_create_shared_region_ex(size: usize, flags: u32, numa: u32, id: *mut u64) -> c_int;
    fn ipc_map_shared_region(id: u64, addr: *mut *mut c_void) -> c_int;
    safe fn ipc_sync_shared_region(id: u64) -> c_int;
    fn ipc_wait_shared_region(id: u64, seen: u64, version: *mut u64, timeout_ms: u32) -> c_int;
    safe fn ipc_grant_shared_region(id: u64, service: u32, writable: bool) -> c_int;
    safe fn ipc_revoke_shared_region(id: u64, service: u32) -> c_int;
    safe fn ipc_watch_shared_region(
        id: u64,
        seen: u64,
        handler: Option<extern "C" fn(u64, c_int, u64, *mut c_void)>,
        user_data: *mut c_void,
    ) -> c_int;
    safe fn ipc_unmap_shared_region(id: u64) -> c_int;
    fn ipc_region_size(id: u64, size: *mut usize) -> c_int;
    fn ipc_region_pages(id: u64, pages: *mut u32) -> c_int;
    fn ipc_rotate_shared_region(id: u64, fresh: *mut u64) -> c_int;
}

/// Regions of one input.
const MOST: usize = 8;

thread_local! {
    /// Every region that ever was in this input, and its size.
    static REGIONS: RefCell<Vec<(u64, usize)>> = const { RefCell::new(Vec::new()) };
}

/// What an action needs.
#[derive(Clone, Copy)]
pub(crate) struct Choice {
    pub(crate) what: u8,
    pub(crate) dest: u32,
    pub(crate) size: usize,
    pub(crate) timeout_ms: u32,
}

/// Lets go of what is left.
pub(crate) fn begin() {
    for (id, _) in REGIONS.with(RefCell::take) {
        ipc_unmap_shared_region(id);
    }
}

pub(crate) fn act(choice: Choice) {
    let Choice { what, dest, size, timeout_ms } = choice;
    let (id, known) = REGIONS.with(|regions| {
        let regions = regions.borrow();
        regions.get(usize::from(what >> 5)).copied().unwrap_or((u64::from(what), 0))
    });
    match what % 8 {
        0 => create(what, size),
        1 => {
            let mut place = ptr::null_mut();
            let out = if what & 8 == 0 { &raw mut place } else { ptr::null_mut() };
            // SAFETY: a place or NULL.
            let number = unsafe { ipc_map_shared_region(id, out) };
            let known_errors = [EINVAL, ENOENT, EACCES, EPEERDIED, EEXIST, EQUOTA, ENORUNTIME];
            if abi::documented("ipc_map_shared_region", number, &known_errors) < 0 {
                assert!(place.is_null(), "written after {number}");
            } else {
                // SAFETY: as long as this process made it, and mapped, for no other is there.
                unsafe { place.cast::<u8>().write_bytes(what, known) };
            }
        }
        2 => {
            abi::documented(
                "ipc_sync_shared_region",
                ipc_sync_shared_region(id),
                &[ENOENT, EACCES],
            );
        }
        3 => {
            let mut version = 7;
            let out = if what & 8 == 0 { &raw mut version } else { ptr::null_mut() };
            // SAFETY: a place or NULL.
            let number = unsafe { ipc_wait_shared_region(id, size as u64, out, timeout_ms.min(1)) };
            let errors = [EINVAL, ENOENT, ETIMEDOUT, EPEERDIED, EACCES, ECANCELED];
            if abi::documented("ipc_wait_shared_region", number, &errors) < 0 {
                assert_eq!(version, 7, "written after {number}");
            }
        }
        4 => {
            let number = ipc_grant_shared_region(id, dest, what & 8 == 0);
            let errors = [EINVAL, ENOENT, EACCES, EQUOTA, ENORUNTIME];
            abi::documented("ipc_grant_shared_region", number, &errors);
        }
        5 => {
            let number = ipc_revoke_shared_region(id, dest);
            let errors = [EINVAL, ENOENT, EACCES, ENORUNTIME];
            abi::documented("ipc_revoke_shared_region", number, &errors);
        }
        6 if what & 16 == 0 => {
            let handler = (what & 8 == 0).then_some(hear as extern "C" fn(_, _, _, _));
            let number = ipc_watch_shared_region(id, size as u64, handler, ptr::null_mut());
            abi::documented("ipc_watch_shared_region", number, &[ENOENT, EQUOTA]);
        }
        6 => {
            abi::documented("ipc_unmap_shared_region", ipc_unmap_shared_region(id), &[ENOENT]);
        }
        _ if what & 0x18 == 0x18 => rotate(id, known, dest),
        _ if what & 8 != 0 => {
            let mut pages = 9;
            // SAFETY: a place.
            let number = unsafe { ipc_region_pages(id, &raw mut pages) };
            let got = abi::documented("ipc_region_pages", number, &[ENOENT]) == 0;
            assert!(if got { pages <= 2 } else { pages == 9 }, "{pages} after {number}");
        }
        _ => {
            let mut told = 0;
            // SAFETY: a place.
            let number = unsafe { ipc_region_size(id, &raw mut told) };
            if abi::documented("ipc_region_size", number, &[ENOENT]) == 0 {
                assert_eq!(told, known);
            }
        }
    }
}

fn rotate(id: u64, size: usize, dest: u32) {
    if REGIONS.with(|regions| regions.borrow().len()) >= MOST {
        return;
    }
    let mut fresh = 0;
    let out = if dest.is_multiple_of(8) { ptr::null_mut() } else { &raw mut fresh };
    // SAFETY: a place or NULL.
    let number = unsafe { ipc_rotate_shared_region(id, out) };
    let errors = [EINVAL, ENOENT, EACCES, EQUOTA, ENORUNTIME];
    if abi::documented("ipc_rotate_shared_region", number, &errors) == 0 {
        REGIONS.with(|regions| regions.borrow_mut().push((fresh, size)));
    } else {
        assert_eq!(fresh, 0, "written after {number}");
    }
}

fn create(what: u8, size: usize) {
    if REGIONS.with(|regions| regions.borrow().len()) >= MOST {
        return;
    }
    let size = if what & 16 == 0 { size } else { usize::MAX - size };
    let mut id = 0;
    let out = if what & 8 == 0 { &raw mut id } else { ptr::null_mut() };
    // SAFETY: a place or NULL.
    let number = unsafe { ipc_create_shared_region_ex(size, u32::from(what >> 6), u32::MAX, out) };
    let errors = [EINVAL, EQUOTA, ENORUNTIME];
    if abi::documented("ipc_create_shared_region_ex", number, &errors) == 0 {
        REGIONS.with(|regions| regions.borrow_mut().push((id, size)));
    } else {
        assert_eq!(id, 0, "written after {number}");
    }
}

extern "C" fn hear(_: u64, status: c_int, version: u64, _: *mut c_void) {
    assert!(status == 0 || (status < 0 && version == 0), "{status} {version}");
}
