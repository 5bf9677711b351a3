//! What may be told of the sessions of encrypted channels.

#![allow(unsafe_code)] // exports

use std::{ffi::c_int, mem::size_of};

use ipc_core::{EndStats, ServiceId, SessionStats, Status, session::Pattern};

use crate::{
    boundary::guard,
    error::{Failure, IPC_OK},
    runtime,
    types::service_id_t,
};

/// Larger than this is no size, but garbage.
const LARGEST: usize = 4096;

/// Both ends knew the other's key.
pub const IPC_PATTERN_KK: u32 = 1;
/// Neither did.
pub const IPC_PATTERN_XX: u32 = 2;
/// Who opened the channel did.
pub const IPC_PATTERN_IK: u32 = 3;

/// What an end of an encrypted channel tells of its session; never a key. Start from
/// IPC_SESSION_INIT: size says which members there are.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// sizeof(ipc_session_t): tells versions of this struct apart.
    pub size: u32,
    /// How the two ends proved who they are: IPC_PATTERN_KK, IPC_PATTERN_XX or IPC_PATTERN_IK.
    pub pattern: u32,
    /// Who is at the other end: its instance, or its anonymous id.
    pub peer: service_id_t,
    /// Its process.
    pub peer_pid: u32,
    /// The channel.
    pub channel: u64,
    /// When the handshake was done: CLOCK_MONOTONIC in ns, as the timestamp of messages.
    pub since_ns: u64,
    /// Messages sent on the channel, and messages received.
    pub messages_sent: u64,
    /// The same, received.
    pub messages_received: u64,
    /// How often this end has changed the keys that it seals with.
    pub rekeys: u64,
    /// Records that did not open at this end, and were dropped.
    pub refused: u64,
    /// Names the session, the same at both ends, and in the session_key of a message's
    /// security_context_t.
    pub fingerprint: [u32; 8],
}

/// Tells what may be told of the session of this process's encrypted channel to a service, or from
/// a client: id is an instance, a name, or the anonymous id of a caller. Of several channels the
/// one whose session is the youngest. Set session->size, as IPC_SESSION_INIT does.
///
/// IPC_EINVAL: session is NULL, its size is none, or id is 0. IPC_ENOENT: no open encrypted channel
/// has to do with id.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_get_session(id: service_id_t, session: *mut Session) -> c_int {
    guard(|| {
        if session.is_null() || id == 0 {
            return Err(Status::INVALID.into());
        }
        // SAFETY: not NULL; its size is there to be read by clause 1 of the boundary, whatever
        // else is.
        let size = unsafe { (&raw const (*session).size).read_unaligned() } as usize;
        if !(size_of::<Session>()..=LARGEST).contains(&size) {
            return Err(Status::INVALID.into());
        }
        let told = of(ServiceId::new(id))?;
        // SAFETY: writable for `size` bytes by clause 1, of which these are the first.
        unsafe { session.write_unaligned(told) };
        Ok(IPC_OK)
    })
}

fn of(id: ServiceId) -> Result<Session, Failure> {
    let ends = runtime::current()?.node.sessions();
    let concerned = ends.iter().filter(|end| end.concerns(id));
    let sessions = concerned.filter_map(|end| Some((end, end.session?)));
    let youngest = sessions.max_by_key(|(_, session)| session.since_ns);
    youngest.map(|(end, session)| told(end, &session)).ok_or(Status::NOT_FOUND.into())
}

fn told(end: &EndStats, session: &SessionStats) -> Session {
    Session {
        size: size_of::<Session>() as u32,
        pattern: match session.pattern {
            Pattern::Kk => IPC_PATTERN_KK,
            Pattern::Xx => IPC_PATTERN_XX,
            Pattern::Ik => IPC_PATTERN_IK,
        },
        peer: end.peer.get(),
        peer_pid: end.peer_pid,
        channel: end.channel,
        since_ns: session.since_ns,
        messages_sent: end.stats.messages_sent,
        messages_received: end.stats.messages_received,
        rekeys: session.rekeys,
        refused: session.refused,
        fingerprint: words(&session.fingerprint),
    }
}

/// A fingerprint in the words of C: its bytes in their order.
pub(crate) fn words(fingerprint: &[u8; 32]) -> [u32; 8] {
    let (chunks, _) = fingerprint.as_chunks::<4>();
    std::array::from_fn(|word| u32::from_ne_bytes(chunks[word]))
}

#[cfg(target_pointer_width = "64")]
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Session>() == 96);
    assert!(offset_of!(Session, channel) == 16);
    assert!(offset_of!(Session, fingerprint) == 64);
};
