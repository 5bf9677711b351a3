//! What this process counts of its own traffic.

#![allow(unsafe_code)] // exports

use std::{ffi::c_int, mem::size_of};

use ipc_core::{EndStats, ServiceId, Spin, Stats, Status};

use crate::{
    boundary::guard,
    error::{Failure, IPC_OK},
    runtime,
    types::service_id_t,
};

/// Larger than this is no size, but garbage.
const LARGEST: usize = 4096;
/// The longest learned spin, in µs.
const LEARNED_US: u32 = 50;
/// Messages that a server takes from one channel before the others have their turn.
const BATCH: u32 = 64;

/// What a process counted. Start from IPC_STATS_INIT: size says which members there are.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CommunicationStats {
    /// sizeof(communication_stats_t): tells versions of this struct apart.
    pub size: u32,
    /// Requests, one-way messages and responses sent.
    pub messages_sent: u64,
    /// The same, received.
    pub messages_received: u64,
    /// Bytes of the payloads sent.
    pub bytes_sent: u64,
    /// Bytes of the payloads received.
    pub bytes_received: u64,
    /// Calls that ended with an error, and requests that were answered with one.
    pub errors: u64,
    /// Times that a message found no room, and waited for it or was given up.
    pub retries: u64,
    /// Messages given up: no room in time, expired before their turn, over a limit.
    pub drops: u64,
    /// Requests that wait for their turn here now.
    pub queue_depth: u32,
    /// Channels that are open.
    pub active_connections: u32,
    /// Errors over all messages that could have ended with one: 0 to 1.
    pub error_rate: f64,
    /// Half of all calls took less than so many ns. Of a process that only serves: of all handlers.
    /// Fast ones are sampled, one in 64; so few of them may count as none, which gives 0.
    pub latency_ns_p50: u64,
    /// 95 of 100 took less.
    pub latency_ns_p95: u64,
    /// 99 of 100 took less.
    pub latency_ns_p99: u64,
    /// Waits that went on beyond the first polls.
    pub spins: u64,
    /// Sleeps.
    pub parks: u64,
    /// How long a wait may spin, in µs, as ipc_init was told.
    pub spin_us: u32,
    /// Messages that are taken from one channel before the others have their turn.
    pub batch_size: u32,
}

/// Gives what this process counted on its channels to a service, or from it: id is an instance, a
/// name, or the anonymous id of a caller; 0 is all channels together, also those that are closed.
/// Set stats->size, as IPC_STATS_INIT does. Counters are exact, latencies within 25 %.
///
/// IPC_EINVAL: stats is NULL, or its size is none. IPC_ENOENT: no open channel has to do with id.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_get_stats(id: service_id_t, stats: *mut CommunicationStats) -> c_int {
    guard(|| {
        if stats.is_null() {
            return Err(Status::INVALID.into());
        }
        // SAFETY: not NULL; its size is there to be read by clause 1 of the boundary, whatever
        // else is.
        let size = unsafe { (&raw const (*stats).size).read_unaligned() } as usize;
        if !(size_of::<CommunicationStats>()..=LARGEST).contains(&size) {
            return Err(Status::INVALID.into());
        }
        let counted = of(id)?;
        // SAFETY: writable for `size` bytes by clause 1, of which these are the first.
        unsafe { stats.write_unaligned(counted) };
        Ok(IPC_OK)
    })
}

fn of(id: service_id_t) -> Result<CommunicationStats, Failure> {
    let runtime = runtime::current()?;
    let spin_us = match runtime.settings.spin {
        Spin::Never => 0,
        Spin::Always => u32::MAX,
        Spin::Learned => LEARNED_US,
        Spin::UpTo(limit) => u32::try_from(limit.as_micros()).unwrap_or(u32::MAX),
    };
    let mut ends = runtime.node.ends();
    if id != 0 {
        ends.retain(|end| end.concerns(ServiceId::new(id)));
        if ends.is_empty() {
            return Err(Status::NOT_FOUND.into());
        }
    }
    Ok(sum(&ends, spin_us))
}

fn sum(ends: &[EndStats], spin_us: u32) -> CommunicationStats {
    let of = |serves: bool| -> Stats {
        ends.iter().filter(|end| end.role.serves() == serves).map(|end| &end.stats).collect()
    };
    let (called, served) = (of(false), of(true));
    let latency = if called.exchanges > 0 { &called.latency } else { &served.latency };
    let all: Stats = [&called, &served].into_iter().collect();
    let open = ends.iter().filter(|end| !end.role.is_gone()).count();
    CommunicationStats {
        size: size_of::<CommunicationStats>() as u32,
        messages_sent: all.messages_sent,
        messages_received: all.messages_received,
        bytes_sent: all.bytes_sent,
        bytes_received: all.bytes_received,
        errors: all.errors,
        retries: all.full,
        drops: all.drops,
        queue_depth: u32::try_from(all.depth).unwrap_or(u32::MAX),
        active_connections: u32::try_from(open).unwrap_or(u32::MAX),
        error_rate: all.error_rate(),
        latency_ns_p50: latency.quantile(0.50),
        latency_ns_p95: latency.quantile(0.95),
        latency_ns_p99: latency.quantile(0.99),
        spins: all.spins,
        parks: all.parks,
        spin_us,
        batch_size: BATCH,
    }
}

#[cfg(target_pointer_width = "64")]
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<CommunicationStats>() == 128);
    assert!(offset_of!(CommunicationStats, messages_sent) == 8);
    assert!(offset_of!(CommunicationStats, queue_depth) == 64);
    assert!(offset_of!(CommunicationStats, error_rate) == 72);
    assert!(offset_of!(CommunicationStats, spins) == 104);
    assert!(offset_of!(CommunicationStats, spin_us) == 120);
};
