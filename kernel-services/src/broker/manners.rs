//! What holds of requests whatever they ask for.

use ipc::{
    Status,
    control::{BusStep, Request},
};

use super::Carried;

/// Tells whether a request has an answer. One that has none is heard even from who says too much:
/// most of them give something back.
pub(super) fn is_answered(request: &Request) -> bool {
    if let Request::Region(request) = request {
        return request.is_answered();
    }
    !matches!(
        request,
        Request::Forget { .. }
            | Request::Accept { .. }
            | Request::Closed { .. }
            | Request::Promoted { .. }
            | Request::Suspect { .. }
            | Request::Pulse { .. }
            | Request::Bus(_)
            | Request::SharesNoMemory
    )
}

/// Tells whether a request may come with these descriptors. Too few is for the verb to answer.
pub(super) fn may_carry(request: &Request, carried: Carried) -> bool {
    match carried {
        Carried::Nothing => true,
        Carried::One(_) => match request {
            Request::Region(request) => request.may_carry(),
            Request::Bus(note) => note.step == BusStep::Cursor,
            Request::Connect { .. }
            | Request::Board { .. }
            | Request::Advertise { .. }
            | Request::Keep { .. } => true,
            Request::Accept { status, .. } => *status == Status::OK,
            _ => false,
        },
        Carried::Many => false,
    }
}
