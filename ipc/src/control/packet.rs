//! Packets with descriptors: none is ever lost, and none is closed where somebody would wait.
//!
//! What has no room when a packet is received is closed by the kernel, in the receiving thread. So
//! a packet is looked at before it is received. What comes with it is taken over by the look, all
//! of it, or else the packet stays where it is. Then it is received without: its own references
//! are not the last ones any more.

#![allow(unsafe_code)] // adopts the descriptors that the kernel hands over

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, MsgFlags, recv, sendmsg, setsockopt, sockopt},
};

use super::{
    MAX_FDS,
    closer::{Closer, Stranger},
};
use crate::lane::LaneFacts;

/// Descriptors that the kernel lets through with one packet: `SCM_MAX_FD`.
const MOST_FDS: usize = 253;
/// Words of a control message with so many descriptors, aligned as `cmsghdr` wants it.
const fn words(fds: usize) -> usize {
    (size_of::<libc::cmsghdr>() + fds * size_of::<RawFd>()).div_ceil(8)
}
/// Words of a control message with credentials.
const CREDENTIALS: usize = (size_of::<libc::cmsghdr>() + size_of::<libc::ucred>()).div_ceil(8);
/// Packets without descriptors that are read away before a socket is closed: more than one holds.
const MOST_LEFT: usize = 1024;

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
    Packet(usize, Vec<Stranger>),
    /// A packet that was longer than the buffer, and the descriptors that came with it.
    Oversized(Vec<Stranger>),
    /// A packet of so many bytes, which came with memory that this process has no descriptor for.
    Bereft(usize),
    /// A packet with more descriptors than there is room for. It is still there, in the way of all
    /// others: drop the socket.
    Overloaded,
    /// The other end is gone.
    Closed,
}

/// Receives one packet without blocking. Descriptors are close-on-exec from the start. One thread
/// at a time receives from a socket.
///
/// # Errors
/// `EAGAIN` when nothing is there.
pub fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    closer: &Arc<Closer>,
) -> Result<Received, Errno> {
    // While too much waits to be closed there is room for what may be due, and no more.
    let most = if closer.is_full() { MAX_FDS } else { MOST_FDS };
    let seen = match look(socket, buffer, &mut [0; words(MOST_FDS)][..words(most)]) {
        Err(Errno::ECONNRESET) => return Ok(Received::Closed),
        seen => seen?,
    };
    let mut strangers: Vec<_> = seen.fds.into_iter().map(|fd| Stranger::new(fd, closer)).collect();
    let mut is_bereft = false;
    if seen.flags & libc::MSG_CTRUNC != 0 {
        if !strangers.is_empty() {
            return Ok(Received::Overloaded);
        }
        // The table of descriptors is full, save for one that is kept for this. What then comes
        // has to be closed before there is another.
        let kept = closer.with_room(|| {
            let seen = look(socket, buffer, &mut [0; words(MOST_FDS)]).ok()?;
            let is_whole = seen.flags & libc::MSG_CTRUNC == 0 && seen.fds.len() == 1;
            let mut all = seen.fds.into_iter().map(|fd| Stranger::new(fd, closer));
            let stranger = all.next().filter(|_| is_whole)?;
            discard(socket);
            let is_memory = LaneFacts::inspect(stranger.as_fd()).sealed;
            Some((!is_memory).then_some(stranger))
        });
        match kept {
            None => return Ok(Received::Overloaded),
            Some(kept) => strangers.extend(kept),
        }
        is_bereft = strangers.is_empty();
    } else {
        if seen.length == 0 && strangers.is_empty() {
            return Ok(Received::Closed);
        }
        discard(socket);
    }
    Ok(match seen.flags & libc::MSG_TRUNC {
        0 if is_bereft => Received::Bereft(seen.length),
        0 => Received::Packet(seen.length, strangers),
        _ => Received::Oversized(strangers),
    })
}

/// Whether nothing is left, in a socket that was shut down, that would be closed with it. Packets
/// without descriptors are read away.
pub(super) fn holds_no_descriptor(socket: BorrowedFd<'_>) -> bool {
    // With credentials a packet of no bytes is something else than the end.
    if setsockopt(&socket, sockopt::PassCred, &true).is_err() {
        return false;
    }
    for _ in 0..MOST_LEFT {
        match look(socket, &mut [], &mut [0; CREDENTIALS]) {
            Ok(seen) if seen.flags & libc::MSG_CTRUNC != 0 => return false,
            Ok(seen) if seen.is_end => return true,
            Ok(_) => discard(socket),
            // Told once, before what is there.
            Err(Errno::ECONNRESET) => {}
            Err(_) => return false,
        }
    }
    false
}

/// Whether nothing stands in a socket now, and its other end is there.
pub(super) fn is_silent(socket: BorrowedFd<'_>) -> bool {
    look(socket, &mut [], &mut []).err() == Some(Errno::EAGAIN)
}

/// What stands first in a socket.
struct Seen {
    length: usize,
    flags: libc::c_int,
    /// Of this process, and in the socket, too.
    fds: Vec<OwnedFd>,
    /// Nothing came, not even a control message.
    is_end: bool,
}

/// Looks at the next packet, which stays there.
fn look(socket: BorrowedFd<'_>, buffer: &mut [u8], control: &mut [u64]) -> Result<Seen, Errno> {
    // The kernel delivers what fits and sets MSG_CTRUNC for the rest. What was delivered must be
    // closed, so this walks the control messages itself (nix refuses to, once they are cut).
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a valid msghdr (null pointers, zero lengths).
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | libc::MSG_PEEK;
    let length = loop {
        // SAFETY: `message` points at one iovec over `buffer` and at `control`, all alive and
        // exclusively borrowed here, with their true lengths.
        let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
        match Errno::result(length) {
            Err(Errno::EINTR) => {}
            other => break other? as usize,
        }
    };
    let mut fds = Vec::new();
    // SAFETY: `message` was filled in by recvmsg; CMSG_FIRSTHDR and CMSG_NXTHDR stay inside
    // `msg_control`/`msg_controllen`.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    let is_end = length == 0 && header.is_null();
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
    Ok(Seen { length, flags: message.msg_flags, fds, is_end })
}

/// Receives the packet that was looked at, without what came with it.
fn discard(socket: BorrowedFd<'_>) {
    // Errors of the socket are told before what is there, once.
    while let Err(Errno::EINTR | Errno::ECONNRESET) =
        recv(socket.as_raw_fd(), &mut [], MsgFlags::MSG_DONTWAIT)
    {}
}
