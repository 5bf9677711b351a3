//! Bulk memory: loans in any order, live and stale, and payloads that are read in parts.

#![allow(unsafe_code)] // calls into C

use std::{
    cell::RefCell,
    ffi::{c_int, c_void},
    ptr,
};

use super::abi::{
    self, EALREADY, EAUTH, EFULL, EINVAL, EMSGSIZE, ENOENT, EPEERDIED, ETIMEDOUT, Message,
};

unsafe extern "C" {
    fn ipc_loan(dest: u32, size: usize, data: *mut *mut c_void) -> c_int;
    safe fn ipc_return_loan(data: *mut c_void) -> c_int;
    fn ipc_call_loaned(
        dest: u32,
        data: *mut c_void,
        response: *mut *mut c_void,
        size: *mut usize,
        timeout_ms: u32,
    ) -> c_int;
    safe fn ipc_send_loaned(dest: u32, data: *mut c_void, timeout_ms: u32) -> c_int;
    fn ipc_reply_loan(request: *const Message, size: usize, data: *mut *mut c_void) -> c_int;
    safe fn ipc_reply_loaned(request: *const Message, data: *mut c_void) -> c_int;
    fn ipc_message_read(
        message: *const Message,
        offset: usize,
        buffer: *mut c_void,
        size: usize,
        copied: *mut usize,
    ) -> c_int;
    fn ipc_free(response: *mut c_void);
}

thread_local! {
    /// Every loan that ever was in this input.
    static LOANS: RefCell<Vec<*mut c_void>> = const { RefCell::new(Vec::new()) };
}

/// What an action needs.
#[derive(Clone, Copy)]
pub(crate) struct Choice {
    pub(crate) what: u8,
    pub(crate) dest: u32,
    pub(crate) size: usize,
    pub(crate) timeout_ms: u32,
    pub(crate) message: *const Message,
}

/// Forgets what was lent.
pub(crate) fn begin() {
    LOANS.with(|loans| loans.borrow_mut().clear());
}

pub(crate) fn act(choice: Choice) {
    let Choice { what, dest, size, timeout_ms, message } = choice;
    match what % 7 {
        0 | 1 => {
            let mut data = ptr::null_mut();
            // SAFETY: a place for a pointer; any pointer may be tried as a message.
            let number = unsafe {
                if what.is_multiple_of(7) {
                    ipc_loan(dest, size, &raw mut data)
                } else {
                    ipc_reply_loan(message, size, &raw mut data)
                }
            };
            let known = [EINVAL, EFULL, EMSGSIZE, ENOENT, EPEERDIED, EAUTH, ETIMEDOUT];
            if abi::documented("ipc_loan", number, &known) == 0 {
                // SAFETY: lent, so many bytes of it, says the header.
                unsafe { data.cast::<u8>().write_bytes(what, size) };
                LOANS.with(|loans| loans.borrow_mut().push(data));
            } else {
                assert!(data.is_null(), "written after {number}");
            }
        }
        2 => {
            abi::documented("ipc_return_loan", ipc_return_loan(pick(what)), &[EINVAL]);
        }
        3 => {
            let (mut response, mut length) = (ptr::null_mut(), 0);
            // SAFETY: places for what the header says.
            let number = unsafe {
                let places = (&raw mut response, &raw mut length);
                ipc_call_loaned(dest, pick(what), places.0, places.1, timeout_ms)
            };
            if abi::documented_of_call("ipc_call_loaned", number) == 0 {
                // SAFETY: given by the call, once.
                unsafe { ipc_free(response) };
            }
        }
        4 => {
            let number = ipc_send_loaned(dest, pick(what), timeout_ms);
            abi::documented("ipc_send_loaned", number, &abi::UNSENT);
        }
        5 => {
            let number = ipc_reply_loaned(message, pick(what));
            abi::documented("ipc_reply_loaned", number, &[EINVAL, EALREADY, EPEERDIED]);
        }
        _ => {
            let mut buffer = vec![0_u8; size % 4096];
            let mut copied = usize::MAX;
            // SAFETY: so many bytes, and a place for the count; any pointer may be tried.
            let number = unsafe {
                let to = buffer.as_mut_ptr().cast();
                ipc_message_read(message, size, to, buffer.len(), &raw mut copied)
            };
            if abi::documented("ipc_message_read", number, &[EINVAL]) == 0 {
                assert!(copied <= buffer.len());
            }
        }
    }
}

/// A loan, or what was one, or none.
fn pick(what: u8) -> *mut c_void {
    LOANS.with(|loans| {
        let loans = loans.borrow();
        let index = usize::from(what / 7);
        loans.get(index % (loans.len() + 1)).copied().unwrap_or(ptr::dangling_mut::<u64>().cast())
    })
}
