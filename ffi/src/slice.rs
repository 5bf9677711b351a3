//! Whose turn it is on a CPU.

#![allow(unsafe_code)] // exports

use std::ffi::c_int;

use crate::{boundary::guard, error::IPC_OK};

/// Has the calling thread run soon after it is woken, though another is busy on its CPU: asks the
/// kernel for slices of 100 us. Threads and processes that it starts afterwards inherit that; its
/// share of the CPU, its policy and its niceness stay as they are. For threads that sleep most of
/// the time and must answer at once: who calls a service with standbys, or stands by. Ask after
/// ipc_init, which starts threads that are better off without. Linux before 6.12 takes the wish and
/// does nothing; so does any for a thread of a real-time policy.
///
/// IPC_ESYS: a filter of system calls forbids it, and all is as before. The sandbox of ipcd allows
/// it.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_wake_promptly() -> c_int {
    guard(|| {
        ipc_core::wake_promptly()?;
        Ok(IPC_OK)
    })
}
