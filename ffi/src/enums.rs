//! The enums of `ipc.h`, as C sees them.
//!
//! Rust never holds a value of these types: C may pass any number for an enum, and a Rust enum
//! with a number that it does not list is undefined behaviour. What crosses the boundary is the
//! `u32` of the same name in [`crate::types`], which is checked; cbindgen reads the names here.

#![allow(non_camel_case_types)] // the enumerators are C's

/// Says what a message is.
#[repr(C)]
#[derive(Debug)]
pub enum MessageType {
    /// A call: answer it.
    MSG_REQUEST = 0,
    /// The answer to a call.
    MSG_RESPONSE = 1,
    /// A one-way message: nobody waits for an answer.
    MSG_EVENT = 2,
    /// A message to all subscribers.
    MSG_BROADCAST = 3,
    /// Reserved. The priority of a message stands in its field `priority`.
    MSG_PRIORITY = 4,
}

/// How urgent a message is. Levels are served in their order, with ageing, so that none starves.
#[repr(C)]
#[derive(Debug)]
pub enum PriorityLevel {
    /// Travels on the urgent ring, before everything else.
    PRIORITY_CRITICAL = 0,
    /// Travels on the urgent ring.
    PRIORITY_HIGH = 1,
    /// What functions without a priority argument use.
    PRIORITY_NORMAL = 2,
    /// After NORMAL.
    PRIORITY_LOW = 3,
    /// After everything else.
    PRIORITY_BACKGROUND = 4,
}

/// Who serves a name when who did does not any more.
#[repr(C)]
#[derive(Debug)]
pub enum FailoverStrategy {
    /// The next in the order, by itself, the moment it sees all before it dead.
    FAILOVER_HOT_STANDBY = 0,
    /// The same, and the first of the order takes the name back when it is there again.
    FAILOVER_PRIORITY = 1,
    /// The next behind who served last, all round.
    FAILOVER_ROUND_ROBIN = 2,
    /// The one whose process serves the fewest channels.
    FAILOVER_LEAST_LOADED = 3,
    /// Nobody, until ipc_trigger_failover.
    FAILOVER_MANUAL = 4,
}

/// What ended an instance, or does not let it serve.
#[repr(C)]
#[derive(Debug)]
pub enum FailureKind {
    /// Nothing: it serves, or stands by.
    FAILURE_NONE = 0,
    /// Its process died.
    FAILURE_CRASHED = 1,
    /// Its process lives, and does not answer.
    FAILURE_HUNG = 2,
    /// Its connection to ipcd was lost.
    FAILURE_UNREACHABLE = 3,
    /// It let go of the name in order.
    FAILURE_STOPPED = 4,
}

/// Something that one may do with another; a right is the bit `1 << operation`.
#[repr(C)]
#[derive(Debug)]
pub enum OperationType {
    /// Call, and have an answer.
    OP_CALL = 0,
    /// Send one way.
    OP_SEND = 1,
    /// Publish events.
    OP_PUBLISH = 2,
    /// Subscribe to events.
    OP_SUBSCRIBE = 3,
    /// Map a shared region.
    OP_MAP_REGION = 4,
    /// Start, stop, configure, fail over.
    OP_ADMIN = 5,
}
