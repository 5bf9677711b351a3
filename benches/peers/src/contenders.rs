//! Everybody who takes part, in the order of the table.

use crate::contender::{Contender, Payload, Waits};

pub mod grpc;
pub mod iceoryx;
pub mod iceoryx_events;
pub mod ipc_channel;
pub mod libipc;
pub mod libipc_events;
pub mod mailbox;
pub mod mqueue;
pub mod seqpacket;
pub mod unix;
pub mod zeromq;

/// Lists the contenders.
pub fn all() -> [&'static dyn Contender; 22] {
    [
        &libipc::Libipc { payload: Payload::Copied, waits: Waits::Polling, shares: true },
        &libipc::Libipc { payload: Payload::InPlace, waits: Waits::Polling, shares: true },
        &libipc::Libipc { payload: Payload::Copied, waits: Waits::Sleeping, shares: true },
        &libipc::Libipc { payload: Payload::Copied, waits: Waits::Sleeping, shares: false },
        &libipc_events::Events { waits: Waits::Polling },
        &libipc_events::Events { waits: Waits::Sleeping },
        &iceoryx::Iceoryx { payload: Payload::Copied, waits: Waits::Polling },
        &iceoryx::Iceoryx { payload: Payload::InPlace, waits: Waits::Polling },
        &iceoryx::Iceoryx { payload: Payload::Copied, waits: Waits::Sleeping },
        &iceoryx_events::Samples,
        &mailbox::Mailbox { payload: Payload::Copied, waits: Waits::Polling },
        &mailbox::Mailbox { payload: Payload::InPlace, waits: Waits::Polling },
        &mailbox::Mailbox { payload: Payload::Copied, waits: Waits::Sleeping },
        &unix::Stream { waits: Waits::Polling },
        &unix::Stream { waits: Waits::Sleeping },
        &seqpacket::SeqPacket { waits: Waits::Polling },
        &seqpacket::SeqPacket { waits: Waits::Sleeping },
        &mqueue::Mqueue { waits: Waits::Polling },
        &mqueue::Mqueue { waits: Waits::Sleeping },
        &ipc_channel::Bytes,
        &zeromq::Zeromq,
        &grpc::Grpc,
    ]
}
