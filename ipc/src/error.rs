//! Every way in which an operation can fail, and the number by which C and the wire know it.
//!
//! Two enums, for the two planes: [`NodeError`] for what goes through the runtime (connect,
//! register, discover) and [`CallError`] for what goes through a channel. [`PeerCorrupt`] says
//! which lie a peer was caught in. Each has a [`Status`]: a fixed number that is never reused.

use std::{io, path::PathBuf};

use crate::address::AddressError;

/// Names one outcome by its fixed number, the same in C, on the wire and in logs.
///
/// Zero is success, negative numbers are errors; a service's own errors are at most
/// [`Status::USER`].
///
/// ```
/// use ipc::Status;
/// assert_eq!(Status::TIMED_OUT.code(), -3);
/// assert_eq!(Status::TIMED_OUT.name(), "IPC_ETIMEDOUT");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Status(i32);

/// Says whether sending a request again can help, and for which requests that is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Retry {
    /// It comes to the same again.
    Never,
    /// It can help, but the request may have been carried out: only what may be repeated.
    Idempotent,
    /// It can help, and the request was not carried out.
    Always,
}

macro_rules! statuses {
    ($(
        $(#[$doc:meta])*
        $name:ident = $code:literal, $c_name:literal, $retry:ident, $text:literal;
    )*) => {
        impl Status {
            $($(#[$doc])* pub const $name: Status = Status($code);)*

            /// Every named status, in the order of their numbers.
            pub const ALL: &'static [Status] = &[$(Status::$name),*];

            /// Names the constant of `ipc.h`, or `IPC_EUSER` for a service's own error.
            pub const fn name(self) -> &'static str {
                match self.0 {
                    $($code => $c_name,)*
                    code if code <= Status::USER.0 => "IPC_EUSER",
                    _ => "unknown",
                }
            }

            /// Says whether sending the request again can help, and is safe, after this came of it.
            pub const fn retry(self) -> Retry {
                match self.0 {
                    $($code => Retry::$retry,)*
                    _ => Retry::Never,
                }
            }

            /// Says what happened and what to do about it, in one English sentence or two.
            pub const fn text(self) -> &'static str {
                match self.0 {
                    $($code => $text,)*
                    code if code <= Status::USER.0 => {
                        "the service answered with an error of its own; its documentation explains \
                         the number"
                    }
                    _ => "unknown status: no function of this library returns this number",
                }
            }
        }
    };
}

statuses! {
    /// Success.
    OK = 0, "IPC_OK", Never, "success";
    /// An argument is wrong.
    INVALID = -1, "IPC_EINVAL", Never,
        "invalid argument: a required pointer is NULL, or a value is out of its documented \
         range";
    /// Memory could not be had.
    NO_MEMORY = -2, "IPC_ENOMEM", Idempotent,
        "out of memory: free some, or lower ring_cells or max_payload";
    /// The deadline passed.
    TIMED_OUT = -3, "IPC_ETIMEDOUT", Idempotent,
        "timed out: no answer came before the deadline; the request may still be carried out";
    /// No such service, region or queue.
    NOT_FOUND = -4, "IPC_ENOENT", Never,
        "no such service: nobody serves it now; start it, check the name with `ipctl ls`, or \
         wait for it";
    /// The name is taken.
    EXISTS = -5, "IPC_EEXIST", Never,
        "already exists: the name is taken by an exclusive service; choose another, or stop \
         that one";
    /// The right is missing.
    ACCESS = -6, "IPC_EACCES", Never,
        "permission denied: no rule allows it (`ipctl policy check` says which would), the name is \
         another service's to serve, or the runtime is another user's";
    /// Authentication failed.
    AUTH = -7, "IPC_EAUTH", Never, "authentication failed: the token or the handshake was refused";
    /// The peer died or closed the channel before it took the request.
    PEER_DIED = -8, "IPC_EPEERDIED", Always,
        "the peer died or left before it took the request: calling again is safe";
    /// The peer died holding the request.
    MAYBE = -9, "IPC_EMAYBE", Idempotent,
        "the peer died holding the request: it may or may not have acted; ask before repeating";
    /// The peer broke the protocol.
    PEER_CORRUPT = -10, "IPC_EPEERCORRUPT", Idempotent,
        "the peer broke the protocol: the channel was cut; the next call opens a new one";
    /// A ring or a table is full.
    FULL = -11, "IPC_EFULL", Always,
        "full: the receiver does not keep up or too many calls are outstanding; poll, wait, or \
         try later";
    /// The message is too large.
    MESSAGE_SIZE = -12, "IPC_EMSGSIZE", Never,
        "message too large: over max_payload, or over the buffer given";
    /// A quota is used up.
    QUOTA = -13, "IPC_EQUOTA", Always, "quota used up: close channels or names, or raise the limit";
    /// No runtime answers.
    NO_RUNTIME = -14, "IPC_ENORUNTIME", Always,
        "no runtime: start one with `ipcd`, or pass IPC_EMBEDDED to ipc_init; IPC_RUNTIME_DIR \
         names its directory";
    /// `ipc_init` was not called.
    NOT_INIT = -15, "IPC_ENOTINIT", Never,
        "not initialised: call ipc_init first (or again, after the last ipc_shutdown)";
    /// The process is a forked child.
    FORKED = -16, "IPC_EFORK", Never,
        "forked child: channels do not survive fork; call ipc_init in the child first";
    /// Called from inside a callback.
    REENTRANT = -17, "IPC_EREENTRANT", Never,
        "not allowed inside a callback: ipc_poll, ipc_run and ipc_shutdown wait until it \
         returns";
    /// The handler returned without an answer.
    NO_REPLY = -18, "IPC_ENOREPLY", Never,
        "the handler returned without an answer: it must reply, reply an error, or retain the \
         message";
    /// The request was already answered.
    ALREADY = -19, "IPC_EALREADY", Never, "already done: this request was answered before";
    /// The call was cancelled.
    CANCELED = -20, "IPC_ECANCELED", Never, "cancelled: by ipc_cancel, ipc_stop or ipc_shutdown";
    /// An older epoch.
    STALE = -21, "IPC_ESTALE", Never, "stale: it carries an older epoch";
    /// A subscriber fell behind.
    LAGGED = -22, "IPC_ELAGGED", Never, "lagged: events were overwritten before they were read";
    /// Not supported.
    NOT_SUPPORTED = -23, "IPC_ENOTSUP", Never,
        "not supported: by this version, this kernel, or this configuration";
    /// Input or output failed.
    IO = -24, "IPC_EIO", Never, "input or output failed";
    /// The versions do not fit.
    PROTOCOL = -25, "IPC_EPROTO", Never,
        "the versions of the library and of the runtime do not fit: restart ipcd with the \
         installed version";
    /// A panic was caught at the C boundary.
    PANIC = -26, "IPC_EPANIC", Never,
        "internal error: a panic was caught at the boundary; please report it";
    /// A system call failed.
    SYSTEM = -27, "IPC_ESYS", Never, "a system call failed: ipc_last_os_error has its errno";
}

impl Status {
    /// The highest (first) number that a service may use for its own errors.
    pub const USER: Status = Status(-1000);

    /// Wraps a number as it came from C or from the wire, whatever it is.
    pub const fn from_code(code: i32) -> Status {
        Status(code)
    }

    /// Gives the number: 0, or negative for errors.
    pub const fn code(self) -> i32 {
        self.0
    }

    /// Tells whether the number belongs to a service's own errors (at most -1000).
    pub const fn is_user(self) -> bool {
        self.0 <= Status::USER.0
    }
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

/// Names the lie in which a peer was caught. Its channel is poisoned; nobody else notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerCorrupt {
    /// A cell's stamp is neither the one awaited nor the one before.
    #[error("a cell carries a stamp of another lap")]
    Stamp,
    /// The stamp names no kind of frame, or one that this side never receives.
    #[error("a frame of a kind that does not belong here")]
    Kind,
    /// Undefined flags, or flags that contradict each other.
    #[error("a frame with undefined or contradictory flags")]
    Flags,
    /// The priority is out of range, or of the other ring.
    #[error("a frame with a priority that does not belong on its ring")]
    Priority,
    /// The length does not fit the cell, the slab or the limit agreed on.
    #[error("a frame whose length does not fit")]
    Length,
    /// The place in the slab is not where the next one must be.
    #[error("a frame whose place in the slab is wrong")]
    Place,
    /// `taken` ran backwards, or ahead of what was sent.
    #[error("a progress word that is impossible")]
    Taken,
    /// A fragment belongs to no message, or a message to too many.
    #[error("a fragment out of place")]
    Fragment,
    /// An answer to a call that was never made.
    #[error("an answer to a call that was never made")]
    Answer,
    /// An error that is none: its status is not negative.
    #[error("an error whose status is no error")]
    Status,
    /// A bulk message is in no arena that was handed over, or an arena is none.
    #[error("a bulk message, or an arena, that is not what it says")]
    Arena,
    /// Too many records of an encrypted channel did not open.
    #[error("too many records that do not open")]
    Record,
    /// A handshake that is none, or by somebody without the key.
    #[error("a handshake that is none, or by somebody without the key")]
    Handshake,
    /// An encrypted channel's end was closed by who cannot prove to be the peer, or before all that
    /// it had sent was there.
    #[error("the channel was cut: its end lacks the peer's own word that it closed it")]
    Cut,
}

/// Explains why an operation of the control plane failed.
///
/// In every case the state of things is as it was before the call.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A name is empty, over 255 bytes, or has control characters.
    #[error("invalid service name: {0}")]
    Name(&'static str),
    /// An address that cannot be connected to.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A configuration value is out of its range.
    #[error("invalid configuration: {0}")]
    Config(String),
    /// Nobody answers at the socket of the runtime directory. Retry once `ipcd` runs.
    #[error(
        "no runtime at {}: start one with `ipcd --runtime-dir {}`",
        path.display(),
        path.parent().unwrap_or(path).display()
    )]
    NoRuntime {
        /// The socket that was tried.
        path: PathBuf,
    },
    /// The runtime directory cannot be used by this user.
    #[error(
        "cannot use {}: {source}; choose a directory of your own with IPC_RUNTIME_DIR",
        path.display()
    )]
    Directory {
        /// The path that was tried.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The runtime speaks another version.
    #[error(
        "the runtime speaks protocol {theirs}, this library {ours}: restart ipcd with the \
         installed version"
    )]
    Version {
        /// Ours.
        ours: u16,
        /// The runtime's.
        theirs: u16,
    },
    /// The runtime refused.
    #[error("{}", refusal(*.0))]
    Refused(Status),
    /// The name is not this process's to serve.
    #[error(
        "{0:?} is not this process's to serve: a supervised service provides it, or another user \
         serves it; choose another name, or have the node file's service provide it"
    )]
    Owned(String),
    /// The rules do not let this process talk to that service.
    #[error(
        "no rule lets this process talk to that service: `ipctl policy check` says which rule \
         would, and the node file is where it goes"
    )]
    Forbidden,
    /// No answer before the deadline.
    #[error("timed out: nobody served the name, or the runtime did not answer, in time")]
    TimedOut,
    /// The process is a forked child of the one that connected.
    #[error("this process was forked: connect again in the child")]
    Forked,
    /// The node was shut down.
    #[error("the node was shut down")]
    Closed,
    /// The runtime introduced another than was asked for, or by another key than this node was
    /// told to expect: nothing was said to whoever it is.
    #[error("the runtime introduced somebody else: {0}")]
    Introduced(&'static str),
    /// The peer gave a lane that cannot be trusted (seals, size, geometry).
    #[error("the peer's lane was refused: {0}")]
    Lane(&'static str),
    /// The runtime sent something that is no message.
    #[error("the runtime sent a malformed message: {0}")]
    Malformed(&'static str),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl NodeError {
    /// Wraps the failure of a system call with what was being done.
    pub fn system(what: &'static str) -> impl Fn(nix::errno::Errno) -> NodeError + Copy {
        move |errno| NodeError::System { what, source: errno.into() }
    }

    /// Gives the number by which C knows this error.
    pub fn status(&self) -> Status {
        match self {
            NodeError::Address(AddressError::Unsupported { .. }) => Status::NOT_SUPPORTED,
            NodeError::Name(_) | NodeError::Address(_) | NodeError::Config(_) => Status::INVALID,
            NodeError::NoRuntime { .. } => Status::NO_RUNTIME,
            NodeError::Directory { .. } | NodeError::Owned(_) | NodeError::Forbidden => {
                Status::ACCESS
            }
            NodeError::Version { .. } | NodeError::Malformed(_) => Status::PROTOCOL,
            NodeError::Refused(status) => *status,
            NodeError::Introduced(_) => Status::AUTH,
            NodeError::TimedOut => Status::TIMED_OUT,
            NodeError::Forked => Status::FORKED,
            NodeError::Closed => Status::CANCELED,
            NodeError::Lane(_) => Status::PEER_CORRUPT,
            NodeError::System { source, .. } => match source.raw_os_error() {
                Some(libc::ENOMEM) => Status::NO_MEMORY,
                Some(libc::EMFILE | libc::ENFILE) => Status::QUOTA,
                _ => Status::SYSTEM,
            },
        }
    }

    /// Says whether a request that failed for want of a channel can be sent later. It was not
    /// delivered: nobody serves the name now, or there is no runtime at the moment.
    fn retry(&self) -> Retry {
        match self {
            NodeError::NoRuntime { .. }
            | NodeError::TimedOut
            | NodeError::Refused(
                Status::NOT_FOUND | Status::TIMED_OUT | Status::QUOTA | Status::FULL,
            ) => Retry::Always,
            NodeError::Name(_)
            | NodeError::Address(_)
            | NodeError::Config(_)
            | NodeError::Directory { .. }
            | NodeError::Version { .. }
            | NodeError::Refused(_)
            | NodeError::Introduced(_)
            | NodeError::Owned(_)
            | NodeError::Forbidden
            | NodeError::Forked
            | NodeError::Closed
            | NodeError::Lane(_)
            | NodeError::Malformed(_)
            | NodeError::System { .. } => Retry::Never,
        }
    }

    /// Gives the errno behind a [`NodeError::System`] or [`NodeError::Directory`].
    pub fn os_error(&self) -> Option<i32> {
        match self {
            NodeError::System { source, .. } | NodeError::Directory { source, .. } => {
                source.raw_os_error()
            }
            _ => None,
        }
    }
}

/// Says what a refusal means to who asked for a name or a channel.
fn refusal(status: Status) -> String {
    match status {
        Status::TIMED_OUT => {
            "the service did not answer the introduction in time; is it stopped?".into()
        }
        Status::NOT_FOUND => status.text().into(),
        _ => format!("the runtime refused: {status}"),
    }
}

/// Explains how a request ended without a response, or why a message was not sent.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The deadline passed. The request may still be carried out.
    #[error("timed out: no answer before the deadline; the request may still be carried out")]
    TimedOut,
    /// The peer died or closed the channel. With `taken` it held the request and may have acted;
    /// without, it never saw it and repeating is safe.
    #[error("the peer died {}", if *taken {
        "holding the request: it may or may not have acted"
    } else {
        "before it took the request: repeating is safe"
    })]
    PeerDied {
        /// Whether the peer had taken the request.
        taken: bool,
    },
    /// The peer broke the protocol; the channel is cut. The request may have been carried out.
    #[error("the peer broke the protocol ({0}); the channel is cut")]
    PeerCorrupt(#[from] PeerCorrupt),
    /// The ring, the table of outstanding calls, or the memory for what may have to be sent to a
    /// standby is full. Nothing was sent.
    #[error("full: the receiver does not keep up; nothing was sent")]
    Full,
    /// The payload is over the limit agreed on (nothing was sent), or the response is larger than
    /// the buffer (the response is lost).
    #[error("message of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// Bytes of the message.
        size: u64,
        /// Bytes that would have been allowed.
        limit: u64,
    },
    /// The call was cancelled, or the client closed, before an answer came.
    #[error("cancelled")]
    Canceled,
    /// A timeout of zero, or another value out of its range.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// The request was answered before; this answer was dropped.
    #[error("this request was answered before")]
    AlreadyAnswered,
    /// The process is a forked child of the one that opened the channel.
    #[error("this process was forked: open channels anew in the child")]
    Forked,
    /// Polled from inside one of its own handlers.
    #[error("a server cannot be polled from inside its own handler")]
    Reentrant,
    /// The service answered with an error: one of its own (at most -1000), or one of the library's.
    #[error("the service answered: {0}")]
    Remote(Status),
    /// A new channel was needed and could not be opened; or the response came in bulk memory for
    /// which this process has no descriptor or address space left, and is lost.
    #[error(transparent)]
    Node(Box<NodeError>),
}

impl From<NodeError> for CallError {
    fn from(error: NodeError) -> CallError {
        CallError::Node(Box::new(error))
    }
}

impl CallError {
    /// Gives the number by which C knows this error.
    pub fn status(&self) -> Status {
        match self {
            CallError::TimedOut => Status::TIMED_OUT,
            CallError::PeerDied { taken: true } => Status::MAYBE,
            CallError::PeerDied { taken: false } => Status::PEER_DIED,
            CallError::PeerCorrupt(_) => Status::PEER_CORRUPT,
            CallError::Full => Status::FULL,
            CallError::TooLarge { .. } => Status::MESSAGE_SIZE,
            CallError::Canceled => Status::CANCELED,
            CallError::Invalid(_) => Status::INVALID,
            CallError::AlreadyAnswered => Status::ALREADY,
            CallError::Forked => Status::FORKED,
            CallError::Reentrant => Status::REENTRANT,
            CallError::Remote(status) => *status,
            CallError::Node(error) => error.status(),
        }
    }

    /// Says whether sending the request again can help, and is safe.
    pub fn retry(&self) -> Retry {
        match self {
            // It was delivered, whatever it came to.
            CallError::Remote(status) => status.retry().min(Retry::Idempotent),
            CallError::Node(error) => error.retry(),
            CallError::TimedOut
            | CallError::PeerDied { .. }
            | CallError::PeerCorrupt(_)
            | CallError::Full
            | CallError::TooLarge { .. }
            | CallError::Canceled
            | CallError::Invalid(_)
            | CallError::AlreadyAnswered
            | CallError::Forked
            | CallError::Reentrant => self.status().retry(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_named() {
        for (index, status) in Status::ALL.iter().enumerate() {
            assert_eq!(status.code(), -(index as i32));
            assert!(status.name().starts_with("IPC_"));
            assert!(!status.text().is_empty());
        }
        assert_eq!(Status::from_code(-1000).name(), "IPC_EUSER");
        assert_eq!(Status::from_code(-999).name(), "unknown");
    }

    #[test]
    fn the_documented_table_is_this_one() {
        let document = include_str!("../../docs/rpc.md");
        let documented: Vec<&str> = document
            .lines()
            .skip_while(|line| !line.starts_with("| code |"))
            .skip(2)
            .take(Status::ALL.len() + 1)
            .collect();
        for (status, row) in Status::ALL.iter().zip(&documented) {
            let again = match status.retry() {
                Retry::Never => "no",
                Retry::Idempotent => "idempotent",
                Retry::Always => "always",
            };
            assert_eq!(*row, format!("| {} | `{}` | {again} |", status.code(), status.name()));
        }
        assert!(documented[Status::ALL.len()].starts_with("| -1000"), "and no other rows");
    }

    #[test]
    fn a_refused_channel_says_what_to_look_at() {
        let text = |status| NodeError::Refused(status).to_string();
        assert!(text(Status::TIMED_OUT).contains("introduction"));
        assert_eq!(text(Status::NOT_FOUND), Status::NOT_FOUND.text());
        assert!(text(Status::QUOTA).starts_with("the runtime refused: quota"));
        assert!(!Status::NOT_FOUND.text().contains("ipc_"));
    }
}
