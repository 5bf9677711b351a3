//! Packets with descriptors: one `sendmsg`, one `recvmsg`, and no descriptor ever lost.

#![allow(unsafe_code)] // adopts the descriptors that the kernel hands over

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, MsgFlags, sendmsg},
};

use super::MAX_FDS;

/// Sends one packet with its descriptors, without blocking and without SIGPIPE.
///
/// # Errors
/// `EAGAIN` when the socket is full, `EPIPE` or `ECONNRESET` when the other end is gone.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    loop {
        let sent = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], rights, flags, None);
        match sent {
            Err(Errno::EINTR) => {}
            other => return other.map(|_| ()),
        }
    }
}

/// What [`receive`] found.
#[derive(Debug)]
pub enum Received {
    /// A packet of so many bytes, and the descriptors that came with it.
    Packet(usize, Vec<OwnedFd>),
    /// A packet that was longer than the buffer, or had more descriptors than are ever due; all
    /// of it was dropped and closed.
    Oversized,
    /// A packet of so many bytes, which came with descriptors, of which this process took none:
    /// it has no room for any more.
    Bereft(usize),
    /// The other end is gone.
    Closed,
}

/// Receives one packet without blocking. Descriptors are close-on-exec from the start.
///
/// # Errors
/// `EAGAIN` when nothing is there.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Received, Errno> {
    // Room for one header and MAX_FDS descriptors, aligned as `cmsghdr` wants it. The kernel
    // delivers what fits and sets MSG_CTRUNC for the rest; what was delivered must be closed, so
    // this walks the control messages itself (nix refuses to, once they are cut).
    let mut control = [0_u64; (size_of::<libc::cmsghdr>() + MAX_FDS * size_of::<RawFd>()) / 8 + 1];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a valid msghdr (null pointers, zero lengths).
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    let length = loop {
        // SAFETY: `message` points at one iovec over `buffer` and at `control`, all alive and
        // exclusively borrowed here, with their true lengths.
        let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
        match Errno::result(length) {
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Ok(Received::Closed),
            other => break other? as usize,
        }
    };
    let mut fds = Vec::new();
    // SAFETY: `message` was filled in by recvmsg; CMSG_FIRSTHDR and CMSG_NXTHDR stay inside
    // `msg_control`/`msg_controllen`.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: `header` is one of the aligned headers that the kernel wrote.
        let head = unsafe { header.read() };
        if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
            let bytes = head.cmsg_len - size_of::<libc::cmsghdr>();
            // SAFETY: the data of this header follows it, `bytes` long.
            let data = unsafe { libc::CMSG_DATA(header) };
            for index in 0..bytes / size_of::<RawFd>() {
                // SAFETY: within the data; the kernel made this descriptor for this process just
                // now and nobody else knows its number, so it has this one owner.
                fds.push(unsafe {
                    let at = data.add(index * size_of::<RawFd>());
                    OwnedFd::from_raw_fd(at.cast::<RawFd>().read_unaligned())
                });
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    // There is room for some of what was sent. Where none came, the table of descriptors is full.
    match message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) {
        0 => {}
        libc::MSG_CTRUNC if fds.is_empty() => return Ok(Received::Bereft(length)),
        _ => return Ok(Received::Oversized),
    }
    if length == 0 && fds.is_empty() {
        return Ok(Received::Closed);
    }
    Ok(Received::Packet(length, fds))
}
