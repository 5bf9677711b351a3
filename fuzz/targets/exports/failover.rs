//! Failover: configurations of any numbers, and questions about any id.

#![allow(unsafe_code)] // calls into C

use std::{
    ffi::{c_int, c_void},
    ptr,
};

use ipc_capi::types::{FailoverConfig, FailureInfo};

use super::abi::{
    self, EACCES, EALREADY, EEXIST, EFULL, EINVAL, ENOENT, ENORUNTIME, EPEERDIED, EQUOTA, ESYS,
    ETIMEDOUT,
};

unsafe extern "C" {
    fn ipc_configure_failover(service: u32, config: *mut FailoverConfig) -> c_int;
    fn ipc_detect_service_failure(service: u32, info: *mut FailureInfo) -> c_int;
    safe fn ipc_trigger_failover(failed: u32, backup: u32) -> c_int;
    safe fn ipc_on_demoted(handler: Option<Demoted>, user_data: *mut c_void) -> c_int;
    safe fn ipc_wake_promptly() -> c_int;
}

type Demoted = extern "C" fn(u32, u64, *mut c_void);

/// What an action needs.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) what: u8,
    pub(crate) ids: [u32; 2],
    /// The bytes of a configuration, as far as they go.
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn act(choice: &Choice) {
    let Choice { what, ids: [id, other], bytes } = choice;
    match what % 4 {
        0 | 1 => configure(*what, [*id, *other], bytes),
        2 => {
            // SAFETY: a struct of numbers.
            let mut info: FailureInfo = unsafe { std::mem::zeroed() };
            let place = if what & 4 == 0 { &raw mut info } else { ptr::null_mut() };
            // SAFETY: a place or NULL.
            let number = unsafe { ipc_detect_service_failure(*id, place) };
            let known = [EINVAL, ENOENT, EFULL, ENORUNTIME, EQUOTA, ETIMEDOUT];
            abi::documented("ipc_detect_service_failure", number, &known);
            assert!(number == 0 || info.instance == 0, "written after {number}");
        }
        3 if what & 0x80 != 0 => {
            abi::documented("ipc_wake_promptly", ipc_wake_promptly(), &[ESYS]);
        }
        _ if what & 4 != 0 => {
            let handler = (what & 8 == 0).then_some(demoted as Demoted);
            let number = ipc_on_demoted(handler, ptr::without_provenance_mut(5));
            abi::documented("ipc_on_demoted", number, &[]);
        }
        _ => {
            let number = ipc_trigger_failover(*id, *other);
            let known =
                [ENOENT, EALREADY, EEXIST, EACCES, EPEERDIED, ENORUNTIME, EQUOTA, ESYS, ETIMEDOUT];
            abi::documented("ipc_trigger_failover", number, &known);
        }
    }
}

/// Runs for an instance that has let go of its name.
extern "C" fn demoted(instance: u32, epoch: u64, user_data: *mut c_void) {
    assert!(instance != 0 && epoch != 0 && user_data.addr() == 5);
}

fn configure(what: u8, [service, primary]: [u32; 2], bytes: &[u8]) {
    // SAFETY: a struct of numbers and a pointer, which is NULL.
    let mut config: FailoverConfig = unsafe { std::mem::zeroed() };
    // What lies behind the pointer is as long as it says, up to what is looked at.
    let mut replicas = vec![primary; 64];
    let count = bytes.first().copied().unwrap_or_default();
    config.primary = primary;
    config.replicas = if what & 4 == 0 { replicas.as_mut_ptr() } else { ptr::null_mut() };
    config.replica_count = if count == 255 { u32::MAX } else { u32::from(count) % 65 };
    let mut numbers = bytes
        .get(1..)
        .unwrap_or_default()
        .chunks_exact(4)
        .map(|it| u32::from_le_bytes([it[0], it[1], it[2], it[3]]));
    let mut number = || numbers.next().unwrap_or_default();
    config.health_check.interval_ms = number();
    config.health_check.timeout_ms = number();
    config.health_check.failure_threshold = number();
    let strategy = number();
    let place = &raw mut config;
    // SAFETY: a field of a struct that is there; any number fits it.
    unsafe { (&raw mut (*place).strategy).cast::<u32>().write(strategy % 7) };
    let place = if what & 8 == 0 { place } else { ptr::null_mut() };
    // SAFETY: a configuration or NULL, whose pointer is NULL or to 64 ids; of more none is read.
    let number = unsafe { ipc_configure_failover(service, place) };
    let known = [EINVAL, ENOENT, EACCES, EEXIST, EQUOTA, ENORUNTIME];
    abi::documented("ipc_configure_failover", number, &known);
}
