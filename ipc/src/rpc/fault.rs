//! How typed calls fail: what a service answers with, and what its caller gets.

use super::{prost::DecodeError, wire::WireError};
use crate::{
    civil::{Blame, Failure},
    error::{CallError, Retry, Status},
};

/// An error that a service answers with: a status, a text, and whether to try again.
///
/// ```
/// use ipc::{Retry, Status, rpc::Fault};
///
/// const SOLD_OUT: Status = Status::from_code(-1001);
/// let fault = Fault::new(SOLD_OUT, "come back on Monday").retry(Retry::Idempotent);
/// assert_eq!(fault.status, SOLD_OUT);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({})", self.status.code())]
pub struct Fault {
    /// One of the service's own (at most -1000), or one of the library's.
    pub status: Status,
    /// Explains it to a person.
    pub message: String,
    /// Whether sending the request again can help, and is safe.
    pub retry: Retry,
}

impl Fault {
    /// Makes one. Whether to try again is what the table of statuses says of a request that was
    /// delivered.
    pub fn new(status: Status, message: impl Into<String>) -> Fault {
        let retry = Failure::retry(&status);
        Fault { status, message: message.into(), retry }
    }

    /// Says whether to try again. [`Retry::Always`]: nothing was done.
    #[must_use]
    pub fn retry(self, retry: Retry) -> Fault {
        Fault { retry, ..self }
    }
}

impl From<Status> for Fault {
    fn from(status: Status) -> Fault {
        Fault::new(status, status.text())
    }
}

impl From<CallError> for Fault {
    fn from(error: CallError) -> Fault {
        Fault::new(error.status(), error.to_string())
    }
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Fault {
        let status = match error {
            WireError::Version(_) => Status::PROTOCOL,
            WireError::Short | WireError::Flags | WireError::Body => Status::INVALID,
        };
        Fault::new(status, error.to_string())
    }
}

impl From<DecodeError> for Fault {
    fn from(error: DecodeError) -> Fault {
        Fault::new(Status::INVALID, error.to_string())
    }
}

/// A handler that calls others fails as they do.
impl From<RpcError> for Fault {
    fn from(error: RpcError) -> Fault {
        match error {
            RpcError::Fault(fault) => fault,
            RpcError::Call(error) => error.into(),
            RpcError::Wire(_) | RpcError::Decode(_) | RpcError::Kind => {
                Fault::new(Status::PROTOCOL, error.to_string())
            }
        }
    }
}

/// Why a typed call has no result.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// It got no answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The service answered with an error.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The answer is none of a typed call.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The answer has another message than the method's.
    #[error("the answer's message is malformed: {0}")]
    Decode(#[from] DecodeError),
    /// A stream was answered with a message, or a message with a stream.
    #[error("the answer is a stream where the method has none, or none where it has one")]
    Kind,
}

impl RpcError {
    /// Gives its number: the service's, the library's, or that of an answer that makes no sense.
    pub fn status(&self) -> Status {
        match self {
            RpcError::Call(error) => error.status(),
            RpcError::Fault(fault) => fault.status,
            RpcError::Wire(_) | RpcError::Decode(_) | RpcError::Kind => Status::PROTOCOL,
        }
    }
}

impl Failure for RpcError {
    fn retry(&self) -> Retry {
        match self {
            RpcError::Call(error) => error.retry(),
            RpcError::Fault(fault) => fault.retry,
            RpcError::Wire(_) | RpcError::Decode(_) | RpcError::Kind => Retry::Never,
        }
    }

    fn blame(&self) -> Blame {
        match self {
            RpcError::Call(error) => error.blame(),
            RpcError::Fault(fault) if fault.retry == Retry::Never => fault.status.blame(),
            RpcError::Fault(_) | RpcError::Wire(_) | RpcError::Decode(_) | RpcError::Kind => {
                Blame::Service
            }
        }
    }
}
