//! Places at which a test has ipcd die, as if it were killed there.
//!
//! Without the feature `failpoints`, which no program that is delivered has, this is nothing. With
//! it, ipcd looks at each place whether the file that the test has named says just that; then it
//! removes the file, and kills itself. A file, because a test arms one place after another in a
//! process that runs.

/// A step of what ipcd does. It dies right after it, or before where its name says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// A newcomer's greeting is read.
    HelloHeard,
    /// It is greeted back.
    HelloAnswered,
    /// A registration is read.
    RegisterHeard,
    /// It is entered, and not answered.
    RegisterEntered,
    /// It is answered.
    RegisterAnswered,
    /// The supervisor was told of it.
    RegisterTold,
    /// A request for a channel is read.
    ConnectHeard,
    /// The client's lane is kept, and nobody was asked.
    ConnectHeld,
    /// The service was asked.
    ConnectOffered,
    /// The service's answer is read.
    AcceptHeard,
    /// The answer is good, and the client does not know.
    AcceptTaken,
    /// The client knows.
    ConnectDelivered,
    /// More ids are written to a new file, which is not in its place.
    IdsWritten,
    /// It is.
    IdsReserved,
    /// A unit is to be started.
    SpawnBegun,
    /// It has a process, of which nothing is written down.
    SpawnBorn,
    /// The processes are written to a new file, which is not in its place.
    UnitsWritten,
    /// The process is written down, and waits.
    SpawnRecorded,
    /// It goes on, perhaps to its program.
    SpawnLetGo,
    /// Its program runs, and the broker does not know it.
    SpawnRuns,
    /// The broker was told.
    SpawnSaid,
    /// The broker has its connection.
    SpawnAdmitted,
    /// A process is seen to have ended.
    ReapSeen,
    /// What was written of it is gone.
    ReapForgotten,
    /// The processes of an earlier run are found, and nobody knows them.
    AdoptFound,
    /// One of them is taken over.
    AdoptTaken,
}

impl At {
    /// All of them, about in the order in which they come.
    pub const ALL: [At; 26] = [
        At::HelloHeard,
        At::HelloAnswered,
        At::RegisterHeard,
        At::RegisterEntered,
        At::RegisterAnswered,
        At::RegisterTold,
        At::ConnectHeard,
        At::ConnectHeld,
        At::ConnectOffered,
        At::AcceptHeard,
        At::AcceptTaken,
        At::ConnectDelivered,
        At::IdsWritten,
        At::IdsReserved,
        At::SpawnBegun,
        At::SpawnBorn,
        At::UnitsWritten,
        At::SpawnRecorded,
        At::SpawnLetGo,
        At::SpawnRuns,
        At::SpawnSaid,
        At::SpawnAdmitted,
        At::ReapSeen,
        At::ReapForgotten,
        At::AdoptFound,
        At::AdoptTaken,
    ];
}

#[cfg(feature = "failpoints")]
pub(crate) use armed::{around, heard, reach};
#[cfg(not(feature = "failpoints"))]
pub(crate) use unarmed::{around, heard, reach};

/// What there is of it in a program that is delivered.
#[cfg(not(feature = "failpoints"))]
mod unarmed {
    use ipc::control::Request;

    use super::At;
    use crate::broker::Effect;

    pub(crate) fn reach(_: At) {}
    pub(crate) fn heard(_: &Request) {}
    pub(crate) fn around(_: &Effect) -> Option<At> {
        None
    }
}

#[cfg(feature = "failpoints")]
mod armed {
    use ipc::{
        control::{Reply, Request},
        failpoint::obey,
    };

    use super::At;
    use crate::{broker::Effect, desk::Notice};

    /// Dies here if a test wants it.
    pub(crate) fn reach(at: At) {
        obey("IPCD_DIES_AT", &format!("{at:?}"));
    }

    /// A request is read, and nothing done about it.
    pub(crate) fn heard(request: &Request) {
        match request {
            Request::Hello { .. } => reach(At::HelloHeard),
            Request::Register { .. } => reach(At::RegisterHeard),
            Request::Connect { .. } => reach(At::ConnectHeard),
            Request::Accept { .. } => reach(At::AcceptHeard),
            _ => {}
        }
    }

    /// An effect is about to be carried out; gives the step that is reached when it is.
    pub(crate) fn around(effect: &Effect) -> Option<At> {
        match effect {
            Effect::Send { reply: Reply::Welcome { .. }, .. } => Some(At::HelloAnswered),
            Effect::Send { reply: Reply::Registered { .. }, .. } => {
                reach(At::RegisterEntered);
                Some(At::RegisterAnswered)
            }
            Effect::Tell(Notice::Registered { .. }) => Some(At::RegisterTold),
            Effect::Hold { .. } => Some(At::ConnectHeld),
            Effect::Offer { .. } => Some(At::ConnectOffered),
            Effect::Deliver { .. } => {
                reach(At::AcceptTaken);
                Some(At::ConnectDelivered)
            }
            _ => None,
        }
    }
}
