//! Reliable queues without anybody who serves them: names that no queue has, and queues that
//! nobody has opened.

#![allow(unsafe_code)] // calls into C

use std::{
    ffi::{CString, c_char, c_int, c_void},
    ptr,
};

use ipc_capi::queue::QueueDelivery;

use super::abi::{self, EINVAL, ENOENT, Lent};

unsafe extern "C" {
    fn ipc_queue_open(name: *const c_char, flags: u32, queue: *mut u64) -> c_int;
    fn ipc_queue_send(
        queue: u64,
        data: *const c_void,
        size: usize,
        priority: u32,
        timeout_ms: u32,
        message_id: *mut u64,
    ) -> c_int;
    fn ipc_queue_receive(
        queue: u64,
        data: *mut *mut c_void,
        size: *mut usize,
        delivery: *mut QueueDelivery,
        timeout_ms: u32,
    ) -> c_int;
    fn ipc_queue_ack(queue: u64, delivery: *const QueueDelivery) -> c_int;
    fn ipc_queue_nack(queue: u64, delivery: *const QueueDelivery, delay_ms: u32) -> c_int;
    fn ipc_queue_extend(queue: u64, delivery: *const QueueDelivery, lease_ms: u32) -> c_int;
    safe fn ipc_queue_handle(
        queue: u64,
        handler: Option<
            extern "C" fn(u64, c_int, *const c_void, usize, *const QueueDelivery, *mut c_void),
        >,
        user_data: *mut c_void,
    ) -> c_int;
    safe fn ipc_queue_close(queue: u64) -> c_int;
}

/// What an action needs.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) what: u8,
    pub(crate) number: u32,
    pub(crate) data: Lent,
}

pub(crate) fn act(choice: &Choice) {
    let Choice { what, number, data } = choice;
    let queue = u64::from(*number);
    let mut id = 7_u64;
    // SAFETY: a struct of numbers.
    let mut delivery: QueueDelivery = unsafe { std::mem::zeroed() };
    let delivery_place = if what & 8 == 0 { &raw mut delivery } else { ptr::null_mut() };
    let id_place = if what & 16 == 0 { &raw mut id } else { ptr::null_mut() };
    let known = [EINVAL, ENOENT];
    // SAFETY: every pointer is NULL or to what is here, as long as it says.
    unsafe {
        match what % 7 {
            0 => {
                // Of a queue that may be, the service would be waited for.
                let name = CString::new(format!("/{number}")).unwrap_or_default();
                let name = if what & 32 == 0 { name.as_ptr() } else { ptr::null() };
                let opened = ipc_queue_open(name, number % 3, id_place);
                assert!(opened < 0, "there is no such name");
                abi::documented("ipc_queue_open", opened, &[EINVAL]);
            }
            1 => {
                let (bytes, size) = data.parts();
                let sent = ipc_queue_send(queue, bytes, size, *number, *number, id_place);
                abi::documented("ipc_queue_send", sent, &[EINVAL, ENOENT, abi::EMSGSIZE]);
            }
            2 => {
                let (mut bytes, mut size) = (ptr::null_mut(), 0);
                let place = &raw mut bytes;
                let got = ipc_queue_receive(queue, place, &raw mut size, delivery_place, *number);
                abi::documented("ipc_queue_receive", got, &known);
                assert!(bytes.is_null() && size == 0, "written after {got}");
            }
            3 => {
                abi::documented("ipc_queue_ack", ipc_queue_ack(queue, delivery_place), &known);
            }
            4 => {
                let number = ipc_queue_nack(queue, delivery_place, *number);
                abi::documented("ipc_queue_nack", number, &known);
            }
            5 => {
                let number = ipc_queue_extend(queue, delivery_place, *number);
                abi::documented("ipc_queue_extend", number, &known);
            }
            _ if what & 32 == 0 => {
                let handler = (what & 8 == 0).then_some(hear as extern "C" fn(_, _, _, _, _, _));
                let number = ipc_queue_handle(queue, handler, ptr::null_mut());
                abi::documented("ipc_queue_handle", number, &[ENOENT]);
            }
            _ => {
                abi::documented("ipc_queue_close", ipc_queue_close(queue), &[ENOENT]);
            }
        }
    }
    assert_eq!(id, 7, "written, and nothing was done");
}

extern "C" fn hear(
    _: u64,
    _: c_int,
    _: *const c_void,
    _: usize,
    _: *const QueueDelivery,
    _: *mut c_void,
) {
    unreachable!("there is no queue to hear of");
}
