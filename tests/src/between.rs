//! Somebody between the two ends of a channel over a socket: holds copies of both, and so reads
//! what either was sent, and sends as the other.

#![allow(unsafe_code)] // copies descriptors of other processes

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        MsgFlags, Shutdown, SockType, UnixAddr, getpeername, getsockopt, recv, send, shutdown,
        sockopt,
    },
};

use crate::wait_until;

/// Longer than any packet.
const PACKET: usize = 1 << 16;

/// The only channel of each of two processes that the runtime introduced over a socket, and who is
/// between them.
#[derive(Debug)]
pub struct Between {
    client: OwnedFd,
    server: OwnedFd,
}

impl Between {
    /// Gets between two processes, which this one has started, as root or not.
    pub fn new(client: u32, server: u32, runtime: u32) -> Between {
        let [client, server] = [client, server].map(|pid| end_of(pid, runtime));
        Between { client, server }
    }

    /// Takes away so many frames that the client has sent. What gives places back goes on to the
    /// server, which has to be stopped meanwhile, or it would be quicker.
    pub fn take_from_client(&self, count: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        wait_until("so many frames have come", || {
            let mut bytes = vec![0; PACKET];
            match recv(self.server.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    bytes.truncate(length);
                    if bytes[..8] == [0; 8] {
                        self.give_to_server(&[bytes]);
                    } else {
                        all.push(bytes);
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => panic!("{error}"),
            }
            all.len() == count
        });
        all
    }

    /// Sends to the server as the client does.
    pub fn give_to_server(&self, packets: &[Vec<u8>]) {
        for packet in packets {
            send(self.client.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL).expect("room");
        }
    }

    /// Cuts the two apart.
    pub fn cut(&self) {
        shutdown(self.server.as_raw_fd(), Shutdown::Both).expect("connected");
    }
}

/// Copies a process's end of the socket of its only such channel, as soon as there is one.
fn end_of(pid: u32, runtime: u32) -> OwnedFd {
    let mut found = Vec::new();
    wait_until("it has its end of a channel", || {
        found = sockets_of(pid);
        found.retain(|it| is_introduced(it, runtime));
        !found.is_empty()
    });
    assert_eq!(found.len(), 1, "it has one channel only");
    found.remove(0)
}

/// Whether a socket is one of a pair that the runtime made.
fn is_introduced(socket: &OwnedFd, runtime: u32) -> bool {
    let made_by = getsockopt(socket, sockopt::PeerCredentials).map(|it| it.pid() as u32);
    let peer = getpeername::<UnixAddr>(socket.as_raw_fd());
    getsockopt(socket, sockopt::SockType) == Ok(SockType::SeqPacket)
        && made_by == Ok(runtime)
        && peer.is_ok_and(|it| it.path().is_none())
}

fn sockets_of(pid: u32) -> Vec<OwnedFd> {
    // SAFETY: two integers, and no memory of ours.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let process = adopt(process).expect("a process of ours");
    let listed = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process of ours");
    let sockets = listed.flatten().filter(|it| {
        fs::read_link(it.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
    });
    let numbers = sockets.filter_map(|it| it.file_name().to_str()?.parse::<i32>().ok());
    let copy = |number: i32| {
        // SAFETY: three integers, and no memory of ours.
        adopt(unsafe {
            libc::syscall(libc::SYS_pidfd_getfd, process.as_fd().as_raw_fd(), number, 0)
        })
    };
    // One may have been closed since.
    numbers.filter_map(|number| copy(number).ok()).collect()
}

fn adopt(result: i64) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(result)?;
    // SAFETY: the kernel made this descriptor just now; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
