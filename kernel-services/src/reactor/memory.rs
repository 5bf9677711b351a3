//! Memory by which long answers travel.

use std::{fs::File, io::Write, os::fd::OwnedFd};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

/// Puts text where only its reader's copy of the descriptor leads, and nobody can change it.
pub(super) fn sealed(text: &str) -> Result<OwnedFd, std::io::Error> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"ipc-answer", flags)?);
    file.write_all(text.as_bytes())?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}
