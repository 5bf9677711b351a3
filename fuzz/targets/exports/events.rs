//! Events: published, subscribed to, handled and counted with any arguments.

#![allow(unsafe_code)] // calls into C

use std::{
    ffi::{c_int, c_void},
    ptr,
};

use super::abi::{
    self, EACCES, ECANCELED, EEXIST, EINVAL, EMSGSIZE, ENOENT, ENORUNTIME, EQUOTA, ESYS, ETIMEDOUT,
    Lent,
};

type Handler = extern "C" fn(u32, *const c_void, usize, *mut c_void);

unsafe extern "C" {
    fn ipc_broadcast_event(kind: u32, data: *const c_void, size: usize) -> c_int;
    safe fn ipc_subscribe_event(kind: u32, handler: Option<Handler>) -> c_int;
    safe fn ipc_subscribe_event_ex(
        kind: u32,
        handler: Option<Handler>,
        user_data: *mut c_void,
    ) -> c_int;
    safe fn ipc_unsubscribe_event(kind: u32) -> c_int;
    fn ipc_event_losses(kind: u32, lost: *mut u64) -> c_int;
}

/// What asking the runtime may come to.
const ASKED: [c_int; 8] = [EINVAL, EACCES, EEXIST, EQUOTA, ENORUNTIME, ETIMEDOUT, ECANCELED, ESYS];

/// Looks at all that it is lent, so that a sanitizer does.
extern "C" fn look(kind: u32, data: *const c_void, size: usize, _: *mut c_void) {
    assert!(kind != 0 && !data.is_null());
    // SAFETY: lent until this returns.
    let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), size) };
    std::hint::black_box(bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte)));
    if size == 3 {
        abi::documented("ipc_unsubscribe_event", ipc_unsubscribe_event(kind), &[ENOENT]);
    }
}

/// Calls one of the functions, about one of a few types.
pub(crate) fn act(what: u8, data: &Lent) {
    let kind = u32::from(what >> 2 & 3);
    let handler = (what & 16 == 0).then_some(look as Handler);
    match what & 3 {
        0 => {
            let (data, size) = data.parts();
            // SAFETY: lent as the header asks, or refused unread.
            let number = unsafe { ipc_broadcast_event(kind, data, size) };
            let known = [&ASKED[..], &[EMSGSIZE]].concat();
            abi::documented("ipc_broadcast_event", number, &known);
        }
        1 if what & 32 == 0 => {
            let number = ipc_subscribe_event(kind, handler);
            abi::documented("ipc_subscribe_event", number, &ASKED);
        }
        1 => {
            let number = ipc_subscribe_event_ex(kind, handler, ptr::without_provenance_mut(5));
            abi::documented("ipc_subscribe_event_ex", number, &ASKED);
        }
        2 => {
            abi::documented("ipc_unsubscribe_event", ipc_unsubscribe_event(kind), &[ENOENT]);
        }
        _ => {
            let mut lost = 4711;
            let place = if what & 32 == 0 { &raw mut lost } else { ptr::null_mut() };
            // SAFETY: a place or NULL.
            let number = unsafe { ipc_event_losses(kind, place) };
            abi::documented("ipc_event_losses", number, &[EINVAL, ENOENT]);
            assert!(number == 0 || lost == 4711, "written after {number}");
        }
    }
}
