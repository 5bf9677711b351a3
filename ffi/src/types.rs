//! The types of `ipc.h`, byte for byte.

#![allow(unsafe_code)] // names the types of C functions

use std::ffi::{c_char, c_int, c_void};

use ipc_core::Priority;

use crate::enums;

/// Names a service: an instance, or the name that leads to whoever serves it. 0 is none, or any.
/// Ids are given by the runtime and never reused.
#[allow(non_camel_case_types)] // C's name, in Rust too: it is a plain number
pub type service_id_t = u32;

/// Names a shared region. Ids are given by the runtime and never reused.
#[allow(non_camel_case_types)]
pub type shared_region_id_t = u64;

/// Rights, one bit `1 << operation` each.
#[allow(non_camel_case_types)]
pub type permission_mask_t = u64;

/// Names what an event is about. 0 is no type.
#[allow(non_camel_case_types)]
pub type event_type_t = u32;

/// A [`MessageType`](enums::MessageType) as it crosses the boundary: a number.
/// cbindgen:ignore
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageType(u32);

impl MessageType {
    pub(crate) const REQUEST: MessageType = MessageType(enums::MessageType::MSG_REQUEST as u32);
    pub(crate) const RESPONSE: MessageType = MessageType(enums::MessageType::MSG_RESPONSE as u32);
    pub(crate) const EVENT: MessageType = MessageType(enums::MessageType::MSG_EVENT as u32);
}

/// A [`PriorityLevel`](enums::PriorityLevel) as it crosses the boundary: any number.
/// cbindgen:ignore
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PriorityLevel(u32);

impl PriorityLevel {
    /// Checks the number.
    pub(crate) fn priority(self) -> Option<Priority> {
        Priority::from_level(self.0)
    }
}

impl From<Priority> for PriorityLevel {
    fn from(priority: Priority) -> PriorityLevel {
        PriorityLevel(priority.level())
    }
}

/// An [`OperationType`](enums::OperationType) as it crosses the boundary: any number.
/// cbindgen:ignore
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationType(u32);

impl OperationType {
    /// Gives the number, which the runtime checks.
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// A [`FailoverStrategy`](enums::FailoverStrategy) as it crosses the boundary: any number.
/// cbindgen:ignore
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailoverStrategy(u32);

impl FailoverStrategy {
    #[cfg(test)]
    pub(crate) fn from_number(number: u32) -> FailoverStrategy {
        FailoverStrategy(number)
    }

    /// Gives the number, which is to be checked.
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// A [`FailureKind`](enums::FailureKind) as it crosses the boundary.
/// cbindgen:ignore
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureKind(u32);

impl From<ipc_core::FailureKind> for FailureKind {
    fn from(kind: ipc_core::FailureKind) -> FailureKind {
        FailureKind(kind as u32)
    }
}

/// When who serves a name is suspected; a member that is 0 is the default.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HealthCheckConfig {
    /// A caller that has heard nothing for so long asks whether anybody is there: up to 60000.
    /// Default 10.
    pub interval_ms: u32,
    /// How long an answer to that may take: up to 60000. Default 5.
    pub timeout_ms: u32,
    /// So many answers missed one after another are a suspicion: up to 100. Default 3. One whose
    /// loop runs, and does not answer ipcd for timeout_ms times that, is passed over, too.
    pub failure_threshold: u32,
}

/// Who is to serve a name, in which order, and when who does is passed over.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FailoverConfig {
    /// The instance that goes before the others; 0 for the order in which they came.
    pub primary: service_id_t,
    /// Those that come behind it, in their order; NULL for none.
    pub replicas: *mut service_id_t,
    /// How many these are: at most 63.
    pub replica_count: u32,
    /// Who is next.
    pub strategy: FailoverStrategy,
    /// When who serves is suspected.
    pub health_check: HealthCheckConfig,
}

/// What is known of an instance's failure.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FailureInfo {
    /// Whether it has failed.
    pub failed: bool,
    /// How.
    pub kind: FailureKind,
    /// Which instance it is.
    pub instance: service_id_t,
    /// The last epoch at which it served its name; 0 where it never did.
    pub epoch: u64,
    /// When ipcd knew of it: CLOCK_MONOTONIC in ns; 0 where it is well.
    pub detected_at_ns: u64,
    /// When ipcd last knew it to be well, in the same time.
    pub last_seen_ns: u64,
    /// The status with which its process exited, 0 to 255; -1 where it did not, or ipcd, which has
    /// not started it, does not know.
    pub exit_status: i32,
    /// The signal that ended its process; 0 for none, or where ipcd does not know.
    pub signal: i32,
}

/// An Ed25519 signature.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CryptoSignature {
    /// Its bytes.
    pub bytes: [u8; 64],
}

/// A key of ipc_encrypt_message. Draw it from the system's random numbers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct EncryptionKey {
    /// Its bytes.
    pub bytes: [u8; 32],
}

impl std::fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EncryptionKey")
    }
}

/// Says who sent a message, as far as the kernel and the session prove it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SecurityContext {
    /// User id of the sender's process, proved by the kernel.
    pub service_uid: u32,
    /// Fingerprint of the session's key; zero on an unencrypted channel. The key itself never
    /// leaves the library.
    pub session_key: [u32; 8],
    /// Zero where messages are not signed.
    pub signature: CryptoSignature,
    /// The sender's rights; zero where no token was presented.
    pub permissions: permission_mask_t,
    /// When these rights end, in seconds since 1970; 0 where no token was presented.
    pub expiry_time: u64,
}

/// A signed statement of what a service may do with another, until a time: see ipc_request_token.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AuthToken {
    /// 1.
    pub version: u32,
    /// Whom it is for.
    pub subject: service_id_t,
    /// With whom it counts.
    pub audience: service_id_t,
    /// What it permits, one bit `1 << operation` each.
    pub permissions: permission_mask_t,
    /// When it ends, in seconds since 1970.
    pub expiry_time: u64,
    /// Makes every token another one.
    pub nonce: [u8; 16],
    /// The runtime's, over all the rest.
    pub signature: CryptoSignature,
}

/// Says how a message came.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RoutingInfo {
    /// Low half of the channel's session; 0 where it is not known.
    pub route_id: u32,
    /// Processes between sender and receiver: 0, since they share memory.
    pub hop_count: u32,
    /// At which this instance served its name when it took the request, by which a store that hears
    /// of a later one can refuse it; 0 where it stood by, and in responses.
    pub epoch: u64,
    /// When the sender stops waiting: CLOCK_MONOTONIC in ns; 0 for never.
    pub deadline_ns: u64,
    /// Trace the message belongs to, a W3C trace-id; zero for none. Calls that its handler makes
    /// on the same thread belong to it, too.
    pub trace_id: [u8; 16],
    /// Span the message belongs to, of a request its handler's; zero for none.
    pub span_id: [u8; 8],
    /// 0 shared memory, 1 socket, 2 remote.
    pub transport: u32,
    /// Zero.
    pub flags: u32,
}

/// A message, as handlers and callbacks get it. It belongs to the library, and is valid until the
/// callback returns, or, after ipc_message_retain, until the matching ipc_message_release. Pass
/// on the pointer, never a copy of the struct.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// The same at both ends; never reused. Of a response: that of its request.
    pub message_id: u64,
    /// Who sent it: an instance's id, or the anonymous id of a process that serves nothing; of a
    /// response, the id that was called. Filled in by the receiving library, not by the sender.
    pub source_service_id: service_id_t,
    /// Which instance it was sent to.
    pub dest_service_id: service_id_t,
    /// MSG_REQUEST, MSG_RESPONSE, or MSG_EVENT for a one-way message.
    pub r#type: MessageType,
    /// As the sender chose it.
    pub priority: PriorityLevel,
    /// When it was received: CLOCK_MONOTONIC in ns.
    pub timestamp: u64,
    /// Bytes of the payload.
    pub payload_size: u32,
    /// The payload, in memory private to this process; never NULL.
    pub payload: *mut u8,
    /// Who sent it.
    pub security: SecurityContext,
    /// How it came.
    pub routing: RoutingInfo,
}

/// Configures ipc_init. Start from IPC_CONFIG_INIT, then set what shall differ; 0 and NULL mean
/// the default.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// sizeof(ipc_config_t): tells versions of this struct apart.
    pub size: u32,
    /// IPC_EMBEDDED, IPC_NO_SPIN, IPC_BULK_VIEWS, IPC_ENCRYPT_ALWAYS,
    /// IPC_NO_SHARED_MEMORY, or'ed together.
    pub flags: u32,
    /// Directory of the runtime. NULL: $IPC_RUNTIME_DIR, else $XDG_RUNTIME_DIR/ipc, else /run/ipc.
    pub runtime_dir: *const c_char,
    /// Cells of a channel's ring, one message of up to 48 bytes each: 1 to 65536, rounded up to a
    /// power of two from 16. Default 64.
    pub ring_cells: u32,
    /// How long a wait may spin before it sleeps, in µs. Default: learned, at most 50. With
    /// IPC_NO_SPIN it must be 0.
    pub spin_us: u32,
    /// Largest message accepted or sent, in bytes. Default 64 MiB.
    pub max_payload: u64,
    /// Passed to callbacks that were registered without a user_data of their own.
    pub user_data: *mut c_void,
    /// Zero.
    pub reserved: [u64; 4],
}

/// Handles a message. Runs inside ipc_poll or ipc_run only. It may call every function but
/// ipc_poll, ipc_run and ipc_shutdown, and answers with ipc_reply or ipc_reply_error, now or,
/// after ipc_message_retain, later. If it returns without any of these, the caller gets
/// IPC_ENOREPLY. (Nobody waits for the answer to a one-way message, type MSG_EVENT.)
pub type MessageHandler = Option<unsafe extern "C" fn(msg: *const Message, user_data: *mut c_void)>;

/// Hears of a new version of a shared region; status is not IPC_OK when no more will come.
pub type RegionHandler = Option<
    unsafe extern "C" fn(
        id: shared_region_id_t,
        status: c_int,
        version: u64,
        user_data: *mut c_void,
    ),
>;

/// Handles an event: size bytes at data, until it returns.
pub type EventHandlerFunction = Option<
    unsafe extern "C" fn(
        r#type: event_type_t,
        data: *const c_void,
        size: usize,
        user_data: *mut c_void,
    ),
>;

/// Hears that an instance of this process has let go of its name, at which it served at that epoch.
/// Runs inside ipc_poll or ipc_run only.
pub type DemotedHandler =
    Option<unsafe extern "C" fn(instance: service_id_t, epoch: u64, user_data: *mut c_void)>;

/// Receives the end of a call made with ipc_send_async, exactly once, inside ipc_poll or ipc_run.
/// status is 0 and reply the answer; or status is negative and reply NULL.
pub type MessageCallback =
    Option<unsafe extern "C" fn(status: c_int, reply: *const Message, user_data: *mut c_void)>;

/// Flag of ipc_config_t: run the runtime on a thread of this process when no other process does, at
/// once or later, when the one that ran it has ended.
pub const IPC_EMBEDDED: u32 = 1;
/// Flag of ipc_config_t: never spin, always sleep. Saves CPU time, costs latency.
pub const IPC_NO_SPIN: u32 = 2;
/// Flag of ipc_config_t: a payload in bulk memory is not copied for handlers: payload is NULL then,
/// and ipc_message_read reads it where it lies.
pub const IPC_BULK_VIEWS: u32 = 8;
/// Flag of ipc_config_t: refuse channels that are not encrypted.
pub const IPC_ENCRYPT_ALWAYS: u32 = 4;
/// Flag of ipc_config_t: share no memory with other processes. All calls from and to this process
/// go over sockets then, at a socket's cost. By default they do only where the kernel denies it.
pub const IPC_NO_SHARED_MEMORY: u32 = 16;

/// Flag of ipc_register_service_ex: repeating a call does no harm.
pub const IPC_SERVICE_IDEMPOTENT: u32 = 1;
/// Flag of ipc_register_service_ex: nobody else may serve the name at the same time.
pub const IPC_SERVICE_EXCLUSIVE: u32 = 2;
/// Flag of ipc_register_service_ex: a call that comes again is answered as it was the first time,
/// and not carried out, by a record that whoever serves next has as well. Callers send what was
/// taken and not answered to the next, once the one before can do nothing more.
pub const IPC_SERVICE_DEDUP: u32 = 4;
/// Flag of ipc_create_shared_region_ex: huge pages, where the kernel has some to give.
pub const IPC_REGION_HUGE_PAGES: u32 = 1;
/// Of ipc_region_pages: ordinary ones.
pub const IPC_PAGES_SMALL: u32 = 0;
/// Of ipc_region_pages: ordinary ones, which the kernel was asked to make huge where it can.
pub const IPC_PAGES_ADVISED: u32 = 1;
/// Of ipc_region_pages: of 2 MiB, from the kernel's pool.
pub const IPC_PAGES_HUGE: u32 = 2;
/// For ipc_create_shared_region_ex: wherever the kernel puts it.
pub const IPC_ANY_NUMA_NODE: u32 = u32::MAX;

/// No limit of time.
pub const IPC_WAIT_FOREVER: u32 = u32::MAX;

const _: () = {
    use std::mem::{align_of, offset_of, size_of};
    assert!(size_of::<enums::MessageType>() == size_of::<MessageType>());
    assert!(size_of::<enums::PriorityLevel>() == size_of::<PriorityLevel>());
    assert!(IPC_SERVICE_IDEMPOTENT == ipc_core::control::SERVICE_IDEMPOTENT);
    assert!(IPC_SERVICE_EXCLUSIVE == ipc_core::control::SERVICE_EXCLUSIVE);
    assert!(IPC_SERVICE_DEDUP == ipc_core::control::SERVICE_DEDUP);

    assert!(size_of::<CryptoSignature>() == 64);
    assert!(align_of::<CryptoSignature>() == 1);
    assert!(size_of::<EncryptionKey>() == 32);
    assert!(align_of::<EncryptionKey>() == 1);

    assert!(size_of::<SecurityContext>() == 120);
    assert!(offset_of!(SecurityContext, session_key) == 4);
    assert!(offset_of!(SecurityContext, signature) == 36);
    assert!(offset_of!(SecurityContext, permissions) == 104);
    assert!(offset_of!(SecurityContext, expiry_time) == 112);

    assert!(size_of::<enums::OperationType>() == size_of::<OperationType>());
    assert!(size_of::<AuthToken>() == ipc_core::control::TOKEN_BYTES);
    assert!(offset_of!(AuthToken, permissions) == 16);
    assert!(offset_of!(AuthToken, expiry_time) == 24);
    assert!(offset_of!(AuthToken, nonce) == 32);
    assert!(offset_of!(AuthToken, signature) == 48);

    assert!(size_of::<enums::FailoverStrategy>() == size_of::<FailoverStrategy>());
    assert!(size_of::<enums::FailureKind>() == size_of::<FailureKind>());
    assert!(size_of::<HealthCheckConfig>() == 12);
    assert!(size_of::<FailureInfo>() == 48);
    assert!(offset_of!(FailureInfo, kind) == 4);
    assert!(offset_of!(FailureInfo, instance) == 8);
    assert!(offset_of!(FailureInfo, epoch) == 16);
    assert!(offset_of!(FailureInfo, detected_at_ns) == 24);
    assert!(offset_of!(FailureInfo, last_seen_ns) == 32);
    assert!(offset_of!(FailureInfo, exit_status) == 40);
    assert!(offset_of!(FailureInfo, signal) == 44);

    assert!(size_of::<RoutingInfo>() == 56);
    assert!(offset_of!(RoutingInfo, epoch) == 8);
    assert!(offset_of!(RoutingInfo, deadline_ns) == 16);
    assert!(offset_of!(RoutingInfo, trace_id) == 24);
    assert!(offset_of!(RoutingInfo, span_id) == 40);
    assert!(offset_of!(RoutingInfo, transport) == 48);
    assert!(offset_of!(RoutingInfo, flags) == 52);
};

#[cfg(target_pointer_width = "64")]
const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(size_of::<Message>() == 224);
    assert!(offset_of!(Message, source_service_id) == 8);
    assert!(offset_of!(Message, dest_service_id) == 12);
    assert!(offset_of!(Message, r#type) == 16);
    assert!(offset_of!(Message, priority) == 20);
    assert!(offset_of!(Message, timestamp) == 24);
    assert!(offset_of!(Message, payload_size) == 32);
    assert!(offset_of!(Message, payload) == 40);
    assert!(offset_of!(Message, security) == 48);
    assert!(offset_of!(Message, routing) == 168);

    assert!(size_of::<FailoverConfig>() == 40);
    assert!(offset_of!(FailoverConfig, replicas) == 8);
    assert!(offset_of!(FailoverConfig, replica_count) == 16);
    assert!(offset_of!(FailoverConfig, strategy) == 20);
    assert!(offset_of!(FailoverConfig, health_check) == 24);

    assert!(size_of::<Config>() == 72);
    assert!(offset_of!(Config, flags) == 4);
    assert!(offset_of!(Config, runtime_dir) == 8);
    assert!(offset_of!(Config, ring_cells) == 16);
    assert!(offset_of!(Config, spin_us) == 20);
    assert!(offset_of!(Config, max_payload) == 24);
    assert!(offset_of!(Config, user_data) == 32);
    assert!(offset_of!(Config, reserved) == 40);
};
