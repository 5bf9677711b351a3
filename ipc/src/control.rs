//! The control protocol: what a node and the runtime say to each other over a Unix socket.
//!
//! One message is one `SOCK_SEQPACKET` packet: a 12-byte head, then the fields of its verb in
//! order, little-endian, names last. Descriptors travel beside a packet by `SCM_RIGHTS`, and only
//! where the verb says so. `docs/control.md` gives the preconditions and errors of every verb.
//!
//! ```text
//!  0        2        4                 8                12
//!  ┌────────┬────────┬─────────────────┬─────────────────┬──────────────┐
//!  │version │ verb   │ sequence        │ status          │ fields …     │
//!  └────────┴────────┴─────────────────┴─────────────────┴──────────────┘
//! ```
//! `sequence` is chosen by the node and repeated in the answer; it is 0 in what the runtime sends
//! by itself. `status` is 0 except in [`Reply::Refused`].

mod bond;
pub mod closer;
mod entry;
mod events;
mod groups;
mod introduction;
pub mod packet;
pub mod regions;
mod replies;
mod requests;
mod traced;
mod wire;

use crate::{ServiceId, error::Status, layout::Geometry};
pub use bond::{Bond, name_hash};
pub use entry::{Entry, page_fits};
pub use events::{
    BusNote, BusStep, Listener, MOST_LISTENERS, SUBSCRIBER_SLEEPS, TOPIC_RELIABLE, TopicEntry,
    topics_fit,
};
pub use groups::{
    Cause, Change, FailoverPlan, FailoverStrategy, Failure, FailureKind, Group, HealthCheck,
    MOST_CHANGES, MOST_MEMBERS, MOST_PLACES, ProcessEnd, Standing,
};
pub use introduction::Introduction;
use regions::{RegionReply, RegionRequest};
pub use replies::{decode_reply, encode_reply};
pub use requests::{decode_request, encode_request};
pub use traced::take_context;
pub(crate) use traced::with_context;

/// The version that this library speaks. A runtime of another version refuses the greeting.
pub const VERSION: u16 = 1;
/// Largest packet, in bytes.
pub const MAX_PACKET: usize = 4096;
/// Most descriptors that travel with one packet.
pub const MAX_FDS: usize = 3;
/// Longest name, in bytes.
pub const MAX_NAME: usize = 255;

/// Longest [`Request::Command`], in bytes.
pub const MAX_COMMAND: usize = 4000;

/// The highest bit of a channel's id: it goes over a socket, not by shared memory.
pub const BY_SOCKET: u64 = 1 << 63;

/// Bytes of a [`Ticket`].
pub const TICKET_BYTES: usize = 32;
/// Bytes of a token: `auth_token_t`, as `docs/security.md` draws it.
pub const TOKEN_BYTES: usize = 112;

/// Proves to a later run of the runtime who held ids: see [`Request::Register`]. Only the runtime
/// can make or read it.
pub type Ticket = [u8; TICKET_BYTES];

/// Flag of [`Request::Register`]: calls may be repeated without harm.
pub const SERVICE_IDEMPOTENT: u32 = 1;
/// Flag of [`Request::Register`]: no replicas; the name is refused while somebody serves it.
pub const SERVICE_EXCLUSIVE: u32 = 2;
/// Flag of [`Request::Register`]: calls that come again are answered as they were the first time,
/// and not carried out, by the record of a [`Gate`](crate::once::Gate) or of a store
/// ([`Transactional`](crate::once::Transactional)) that whoever serves next has as well.
pub const SERVICE_DEDUP: u32 = 4;

/// Says why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than its verb's fields.
    #[error("cut short")]
    Short,
    /// Longer than its verb's fields.
    #[error("bytes after the end")]
    Trailing,
    /// Another protocol version.
    #[error("protocol version {0}")]
    Version(u16),
    /// No such verb in this direction.
    #[error("unknown verb {0}")]
    Verb(u16),
    /// A name that [`check_name`] refuses.
    #[error("invalid name")]
    Name,
    /// A field out of its range.
    #[error("field out of range")]
    Field,
}

/// Checks a service name: 1 to 255 bytes of UTF-8 without control characters.
///
/// # Errors
/// A sentence that says which rule is broken.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("it is empty; give 1 to 255 bytes");
    }
    if name.len() > MAX_NAME {
        return Err("it is over 255 bytes");
    }
    if name.chars().any(char::is_control) {
        return Err("it contains control characters");
    }
    Ok(())
}

/// What a node asks of the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// First message on a connection. Answer: [`Reply::Welcome`].
    Hello {
        /// Whether the node registered for `membarrier(GLOBAL_EXPEDITED)`.
        asymmetric: bool,
        /// Whether every channel of it has to be encrypted.
        encrypts: bool,
        /// The public half of its key, for encrypted channels (X25519); zeros where it has none.
        key: [u8; 32],
    },
    /// Serves a name. Answer: [`Reply::Registered`].
    Register {
        /// `SERVICE_*` bits.
        flags: u32,
        /// Instance id held before a restart of the runtime, or 0.
        claim_instance: u32,
        /// Name id held before a restart of the runtime, or 0.
        claim_name: u32,
        /// What came with the ids that are claimed; zeros where none are.
        ticket: Ticket,
        /// The name.
        name: String,
    },
    /// Ends an instance of this node. Answer: [`Reply::Done`].
    Unregister {
        /// The instance.
        instance: ServiceId,
    },
    /// Looks a name up. Answer: [`Reply::Found`], or refused with `NOT_FOUND`.
    Discover {
        /// The name.
        name: String,
    },
    /// Like `Discover`, but answered when the name is served.
    Wait {
        /// The name.
        name: String,
    },
    /// Withdraws an unanswered `Wait` or `Connect` of that sequence. Never answered.
    Forget {
        /// Sequence of the request that is withdrawn.
        request: u32,
    },
    /// Opens a channel; carries the client's lane. Answer: [`Reply::Connected`].
    Connect {
        /// Name id or instance id.
        dest: ServiceId,
        /// Of the lane that travels with it; the service makes its own alike.
        geometry: Geometry,
    },
    /// Opens a channel over a socket, for who cannot share memory. Answer: [`Reply::Connected`].
    ConnectBySocket {
        /// Name id or instance id.
        dest: ServiceId,
    },
    /// What this node serves can be reached over sockets only. Never answered.
    SharesNoMemory,
    /// The service's answer to [`Reply::Incoming`]; carries its lane when `status` is success, and
    /// the channel goes by shared memory. Never answered.
    Accept {
        /// The channel offered.
        channel: u64,
        /// Success, or why the channel is refused.
        status: Status,
    },
    /// Lists what is served, a page at a time. Answer: [`Reply::Page`].
    List {
        /// 0, or the `next` of the page before.
        after: u32,
    },
    /// Asks after the runtime's own state. Answer: [`Reply::State`].
    Ping,
    /// Tells the supervisor what to do, in its own words. Answer: [`Reply::Answer`].
    Command {
        /// A JSON object of at most [`MAX_COMMAND`] bytes.
        text: String,
    },
    /// An end of a channel is closed. Never answered.
    Closed {
        /// The channel.
        channel: u64,
    },
    /// Hands over a segment of this node's board, for others to read; carries it. Never answered.
    Board {
        /// Its number, from 0.
        segment: u32,
    },
    /// Asks for the boards of all nodes, a segment at a time. Answer: [`Reply::Board`], or `Done`
    /// when there are no more.
    Boards {
        /// 0, or the `next` of the segment before.
        after: u64,
    },
    /// Has an instance begin traces at requests that come to it. Answer: [`Reply::Done`].
    Trace {
        /// The instance.
        instance: ServiceId,
        /// At most one each so many µs.
        every_us: u32,
        /// For so long.
        for_ms: u32,
    },
    /// Has the beginnings of payloads be shown of traced requests to an instance, and to those
    /// others of which it is allowed. Answer: [`Reply::Done`].
    Payloads {
        /// The instance.
        instance: ServiceId,
        /// Of each payload; 0 for no more of any.
        bytes: u32,
        /// For so long.
        for_ms: u32,
    },
    /// Hands memory over to be kept for this unit's next process; carries it. Without a descriptor:
    /// what is kept by that name is let go. Answer: [`Reply::Done`].
    Keep {
        /// Chosen by the unit.
        name: String,
    },
    /// Asks for what this unit has had kept, one after another. Answer: [`Reply::Kept`], or `Done`
    /// when there is no more.
    Kept {
        /// 0, or the `next` of the one before.
        after: u64,
    },
    /// An end of a channel that an earlier runtime introduced is open. Never answered.
    Holds {
        /// Whether it is the service's end.
        serves: bool,
        /// What this end was told when it was introduced.
        introduction: Introduction,
    },
    /// Asks whether somebody may do something. Answer: [`Reply::Done`], or refused with `ACCESS`.
    Verify {
        /// Who: any id of it; 0 is the sender.
        src: ServiceId,
        /// With whom: name id or instance id.
        dest: ServiceId,
        /// An `operation_type_t`.
        operation: u32,
    },
    /// Asks for a signed statement of what the sender may do. Answer: [`Reply::Token`].
    IssueToken {
        /// With whom it is to count: name id or instance id.
        dest: ServiceId,
        /// Bits `1 << operation_type_t`.
        permissions: u64,
        /// How long.
        lifetime_ms: u32,
    },
    /// Asks what a token is worth that somebody showed to the sender. Answer:
    /// [`Reply::Permitted`], or refused with `AUTH`.
    CheckToken {
        /// Who showed it.
        presenter: ServiceId,
        /// Its bytes.
        token: Box<[u8; TOKEN_BYTES]>,
    },
    /// Asks for the key by which tokens are verified. Answer: [`Reply::PublicKey`].
    PublicKey,
    /// Tells how an instance of this node stands. Never answered.
    Promoted {
        /// The instance.
        instance: ServiceId,
        /// It serves its name at this epoch; 0: it stands by, and has yielded if it served.
        epoch: u64,
    },
    /// Has a name change hands in order. Answer: [`Reply::Done`], when it is under way.
    Trigger {
        /// The name, or the instance that serves it.
        failed: ServiceId,
        /// The instance that is to serve; 0 for the next in the order.
        backup: ServiceId,
    },
    /// Asks what became of the names that changed hands. Answer: [`Reply::Changes`].
    History {
        /// 0, or the `next` of the page before.
        after: u64,
    },
    /// A caller hears nothing of who serves a name. Never answered: the runtime looks for itself.
    Suspect {
        /// Who serves on the caller's channel.
        instance: ServiceId,
        /// The low half of the epoch at which it says that it does.
        mark: u32,
    },
    /// Asks whether somebody has failed. Answer: [`Reply::Failure`], when it is found out.
    Detect {
        /// The name, or an instance that serves it, stands by for it, or did.
        service: ServiceId,
    },
    /// Says who is to serve a name, and when. Answer: [`Reply::Done`].
    Configure(FailoverPlan),
    /// Answers [`Reply::Probe`]: the instance's loop has come round, or its handlers run. Never
    /// answered.
    Pulse {
        /// The instance.
        instance: ServiceId,
        /// Of the probe.
        number: u32,
        /// How long its handlers have run, in µs, by the warden's word; 0 of the loop itself.
        busy_us: u64,
    },
    /// Asks how a name is configured, and how it stands. Answer: [`Reply::Standing`].
    Standing {
        /// The name, or an instance of it.
        service: ServiceId,
    },
    /// Something about shared regions.
    Region(RegionRequest),
    /// Asks about a topic of events. Answer: [`Reply::Topic`].
    Topic {
        /// Its number, or 0 for the one of that name.
        id: u32,
        /// Its name, or empty for the one of that number.
        name: String,
    },
    /// Publishes events in a ring, which it carries. Answer: [`Reply::Done`].
    Advertise {
        /// Of the topic, as [`Reply::Topic`] said.
        topic: u32,
        /// The publisher's own number for the ring, never used twice by one node.
        ring: u32,
        /// The ring of its own that this one follows, or 0.
        follows: u32,
        /// The topic's name.
        name: String,
    },
    /// Wants the rings of a topic, those to come, too; or, said again, changes its flags. Answer:
    /// [`Reply::Ring`] for each that is there, then [`Reply::Done`].
    Subscribe {
        /// Of the topic, as [`Reply::Topic`] said.
        topic: u32,
        /// [`SUBSCRIBER_SLEEPS`] or 0.
        flags: u32,
        /// The topic's name.
        name: String,
    },
    /// Tells something about a ring or a subscription. Never answered. A
    /// [`BusStep::Cursor`] carries a cursor page.
    Bus(BusNote),
    /// Lists topics, a page at a time. Answer: [`Reply::Topics`].
    Topics {
        /// 0, or the `next` of the page before.
        after: u32,
    },
    /// Lists who subscribes to a topic, a page at a time. Answer: [`Reply::Listeners`].
    Listeners {
        /// The topic.
        topic: u32,
        /// 0, or the `next` of the page before.
        after: u32,
    },
}

/// What the runtime answers, and what it says by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Answer to `Hello`.
    Welcome {
        /// The node's anonymous id.
        node: ServiceId,
        /// Process that runs the runtime.
        kernel_pid: u32,
    },
    /// Answer to `Register`.
    Registered {
        /// Of this instance; dies with it.
        instance: ServiceId,
        /// Of the name; leads to whoever serves it.
        name: ServiceId,
        /// Shown with a claim of these ids, it proves that they were this process's.
        ticket: Ticket,
    },
    /// Success without more to say.
    Done,
    /// Answer to `Discover` and `Wait`.
    Found {
        /// Of the name.
        name: ServiceId,
    },
    /// Answer to `Connect`; carries the service's lane, the doorbell and, where the kernel has
    /// them, a pidfd of the service.
    Connected(Box<Introduction>),
    /// Sent by itself to a service; carries the client's lane, the doorbell and, where the kernel
    /// has them, a pidfd of the client. Answer with `Accept`.
    Incoming(Box<Introduction>),
    /// Answer to `List`.
    Page {
        /// The entries, by ascending instance.
        entries: Vec<Entry>,
        /// Pass it as `after` for the next page; 0 at the end.
        next: u32,
    },
    /// Answer to `Ping`.
    State {
        /// Process that runs the runtime.
        pid: u32,
        /// Milliseconds since it started.
        uptime_ms: u64,
        /// Nodes connected.
        nodes: u32,
        /// Instances registered.
        services: u32,
        /// Channels introduced since the start.
        channels: u64,
    },
    /// The request failed; nothing changed.
    Refused(Status),
    /// Answer to `Command`; carries a sealed memfd with as many bytes of JSON.
    Answer {
        /// In bytes.
        length: u64,
    },
    /// Answer to `Boards`; carries the segment.
    Board {
        /// Whose it is.
        node: ServiceId,
        /// Its process.
        pid: u32,
        /// Which of its segments.
        segment: u32,
        /// Pass it as `after` for the next one.
        next: u64,
    },
    /// Answer to `Kept`; carries the memory.
    Kept {
        /// Pass it as `after` for the next one.
        next: u64,
        /// By which it is kept.
        name: String,
    },
    /// Sent by itself to a service: an operator asked by `Trace`, with the same fields.
    Trace {
        /// One of its instances.
        instance: ServiceId,
        /// At most one each so many µs.
        every_us: u32,
        /// For so long.
        for_ms: u32,
    },
    /// Sent by itself to a service: an operator asked by `Payloads`, with the same fields.
    Payloads {
        /// One of its instances.
        instance: ServiceId,
        /// Of each payload; 0 for no more of any.
        bytes: u32,
        /// For so long.
        for_ms: u32,
    },
    /// Sent by itself to both ends of a channel that is not allowed any more: they close it.
    Revoked {
        /// The channel.
        channel: u64,
    },
    /// Answer to `IssueToken`.
    Token {
        /// Its bytes.
        token: Box<[u8; TOKEN_BYTES]>,
    },
    /// Answer to `CheckToken`.
    Permitted {
        /// Bits `1 << operation_type_t`, none beyond what the rules allow now.
        permissions: u64,
    },
    /// Answer to `PublicKey`.
    PublicKey {
        /// Of Ed25519 (RFC 8032).
        key: [u8; 32],
    },
    /// Sent by itself to who serves a name, stands by for it, or calls it: its group has changed.
    Group(Group),
    /// Sent by itself: this instance serves its name from now on.
    Promote {
        /// The instance.
        instance: ServiceId,
        /// At this epoch.
        epoch: u64,
    },
    /// Sent by itself: this instance is to serve its name no more, but stand by. Answer with
    /// `Promoted` of epoch 0, once nothing is being handled.
    Yield {
        /// The instance.
        instance: ServiceId,
    },
    /// Answer to `History`.
    Changes {
        /// Pass it as `after` for the next page; 0 at the end.
        next: u64,
        /// By ascending number.
        changes: Vec<Change>,
    },
    /// Answer to `Detect`.
    Failure(Failure),
    /// Sent by itself: somebody hears nothing of this instance. Answer with `Pulse`.
    Probe {
        /// The instance.
        instance: ServiceId,
        /// Comes back in the answer.
        number: u32,
    },
    /// Answer to `Standing`.
    Standing(Standing),
    /// Something about shared regions.
    Region(RegionReply),
    /// Answer to `Topic`.
    Topic {
        /// Its number.
        id: u32,
        /// Bytes of records in the ring of each publisher: a power of two.
        bytes: u64,
        /// [`TOPIC_RELIABLE`] or 0.
        flags: u32,
        /// Its name.
        name: String,
    },
    /// Sent by itself to a subscriber; carries the ring.
    Ring {
        /// Its topic.
        topic: u32,
        /// The publisher's node above, its number for the ring below.
        ring: u64,
        /// The ring of the same publisher that it follows, or 0.
        follows: u64,
        /// The publisher, as others know it.
        publisher: ServiceId,
        /// Its process.
        pid: u32,
    },
    /// Sent by itself.
    Bus(BusNote),
    /// Answer to `Topics`.
    Topics {
        /// The entries, by ascending number.
        entries: Vec<TopicEntry>,
        /// Pass it as `after` for the next page; 0 at the end.
        next: u32,
    },
    /// Answer to `Listeners`.
    Listeners {
        /// The nodes, by ascending id.
        entries: Vec<Listener>,
        /// Pass it as `after` for the next page; 0 at the end.
        next: u32,
    },
}

const HEAD: usize = 12;

#[cfg(test)]
mod tests;
