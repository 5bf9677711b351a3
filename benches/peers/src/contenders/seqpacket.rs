//! A Unix socket that keeps messages apart: `SOCK_SEQPACKET`, one `send` and one `recv` each way.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen,
    recv, send, socket,
};

use crate::contender::{Caller, Contender, Place, Waits, check, ready};

/// The default socket buffer is 208 KiB, and a message has to fit into it.
const LARGEST: usize = 64 << 10;

/// A socket of sequenced packets.
#[derive(Debug)]
pub struct SeqPacket {
    /// Polling sends and receives do not block, and are tried again.
    pub waits: Waits,
}

impl Contender for SeqPacket {
    fn name(&self) -> &'static str {
        "Unix seqpacket"
    }

    fn waits(&self) -> Waits {
        self.waits
    }

    fn largest(&self) -> usize {
        LARGEST
    }

    fn takes_crowds(&self) -> bool {
        self.waits == Waits::Sleeping
    }

    fn serve(&self, place: &Place) -> io::Result<()> {
        let listener = new()?;
        bind(listener.as_raw_fd(), &UnixAddr::new(&place.path("seqpacket"))?)?;
        listen(&listener, Backlog::new(64)?)?;
        ready("")?;
        loop {
            let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
            let ends = Ends { fd: own(fd), flags: flags(self.waits) };
            // It ends when its client does.
            thread::spawn(move || ends.echo());
        }
    }

    fn connect(&self, place: &Place) -> io::Result<Box<dyn Caller>> {
        let fd = new()?;
        connect(fd.as_raw_fd(), &UnixAddr::new(&place.path("seqpacket"))?)?;
        Ok(Box::new(Ends { fd, flags: flags(self.waits) }))
    }
}

struct Ends {
    fd: OwnedFd,
    flags: MsgFlags,
}

impl Caller for Ends {
    fn call(&mut self, request: &[u8], response: &mut [u8]) -> io::Result<()> {
        self.send(request)?;
        check(self.receive(response)?, request.len())
    }
}

impl Ends {
    fn echo(&self) -> io::Result<()> {
        let mut buffer = vec![0; LARGEST];
        loop {
            let length = self.receive(&mut buffer)?;
            self.send(&buffer[..length])?;
        }
    }

    fn send(&self, payload: &[u8]) -> io::Result<()> {
        check(again(|| send(self.fd.as_raw_fd(), payload, self.flags))?, payload.len())
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match again(|| recv(self.fd.as_raw_fd(), buffer, self.flags))? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => Ok(length),
        }
    }
}

fn new() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: accept4 has just made it, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn flags(waits: Waits) -> MsgFlags {
    let polling = if waits == Waits::Polling { MsgFlags::MSG_DONTWAIT } else { MsgFlags::empty() };
    polling | MsgFlags::MSG_NOSIGNAL
}

/// Tries until it would not block any more.
fn again(mut once: impl FnMut() -> nix::Result<usize>) -> io::Result<usize> {
    loop {
        match once() {
            Err(Errno::EAGAIN) => std::hint::spin_loop(),
            Err(Errno::EINTR) => {}
            done => return Ok(done?),
        }
    }
}
