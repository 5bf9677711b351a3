//! Memory by which long answers travel.

use std::{fs::File, io::Write, os::fd::OwnedFd, sync::Arc};

use ipc::{
    Status,
    control::{Reply, encode_reply},
};
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

use super::{Lost, Parcel, Reactor};
use crate::broker::{Event, Token};

impl Reactor {
    /// Sends what may be larger than a packet.
    pub(super) fn answer(&mut self, to: Token, sequence: u32, text: &str) -> Option<Event> {
        let Ok(memory) = sealed(text) else {
            return self.reply(to, sequence, &Reply::Refused(Status::NO_MEMORY));
        };
        let bytes = encode_reply(sequence, &Reply::Answer { length: text.len() as u64 });
        match self.post(to, Parcel::new(bytes, vec![Arc::new(memory)])) {
            Ok(()) => None,
            Err(Lost::Introduction) => self.reply(to, sequence, &Reply::Refused(Status::QUOTA)),
            Err(Lost::Node) => self.drop_node(to),
        }
    }
}

/// Puts text where only its reader's copy of the descriptor leads, and nobody can change it.
fn sealed(text: &str) -> Result<OwnedFd, std::io::Error> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"ipc-answer", flags)?);
    file.write_all(text.as_bytes())?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}
