//! Everybody who takes part, in the order of the table.

use crate::contender::{Contender, Payload, Waits};

pub mod grpc;
pub mod iceoryx;
pub mod ipc_channel;
pub mod libipc;
pub mod mailbox;
pub mod mqueue;
pub mod seqpacket;
pub mod unix;
pub mod zeromq;

/// Lists the contenders.
pub fn all() -> [&'static dyn Contender; 18] {
    [
        &libipc::Libipc { payload: Payload::Copied, waits: Waits::Polling },
        &libipc::Libipc { payload: Payload::InPlace, waits: Waits::Polling },
        &libipc::Libipc { payload: Payload::Copied, waits: Waits::Sleeping },
        &iceoryx::Iceoryx { payload: Payload::Copied, waits: Waits::Polling },
        &iceoryx::Iceoryx { payload: Payload::InPlace, waits: Waits::Polling },
        &iceoryx::Iceoryx { payload: Payload::Copied, waits: Waits::Sleeping },
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
