//! The control protocol by hand, as `docs/control.md` has it.

use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::Path,
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
        connect, recvmsg, sendmsg, socket,
    },
};

use crate::memory::adopt;

const VERSION: u16 = 1;
const MAX_PACKET: usize = 4096;

pub(crate) mod verb {
    pub(crate) const HELLO: u16 = 1;
    pub(crate) const REGISTER: u16 = 2;
    pub(crate) const WAIT: u16 = 5;
    pub(crate) const CONNECT: u16 = 7;
    pub(crate) const ACCEPT: u16 = 8;
    pub(crate) const PING: u16 = 10;
    pub(crate) const WELCOME: u16 = 101;
    pub(crate) const REGISTERED: u16 = 102;
    pub(crate) const FOUND: u16 = 104;
    pub(crate) const CONNECTED: u16 = 105;
    pub(crate) const INCOMING: u16 = 106;
    pub(crate) const REFUSED: u16 = 109;
    /// `Group` and `Promote`, which come by themselves.
    pub(crate) const OF_GROUPS: [u16; 2] = [150, 151];
}

/// One packet of the runtime.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) verb: u16,
    pub(crate) sequence: u32,
    pub(crate) status: i32,
    pub(crate) fields: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Packet {
    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.fields[at..at + 4].try_into().expect("four bytes"))
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.fields[at..at + 8].try_into().expect("eight bytes"))
    }
}

/// A connection to the runtime.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) socket: OwnedFd,
}

impl Wire {
    /// Connects and greets. Never asymmetric: this program is not registered for membarrier.
    /// Without a key, too: no channel of it can be encrypted.
    pub(crate) fn new(directory: &Path) -> Wire {
        Wire::with_key(directory, [0; 32])
    }

    /// The same, with a public key of which it may have the other half or not.
    pub(crate) fn with_key(directory: &Path, key: [u8; 32]) -> Wire {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None);
        let socket = socket.expect("a socket");
        let address = UnixAddr::new(&directory.join("ipcd.sock")).expect("a short path");
        connect(socket.as_raw_fd(), &address).expect("a runtime");
        let wire = Wire { socket };
        wire.send(verb::HELLO, 1, &[&[0; 4 + 4][..], &key].concat(), &[]);
        assert_eq!(wire.receive().verb, verb::WELCOME);
        wire
    }

    pub(crate) fn send(&self, verb: u16, sequence: u32, fields: &[u8], fds: &[RawFd]) {
        self.try_send(verb, sequence, fields, fds).expect("the runtime listens");
    }

    pub(crate) fn try_send(
        &self,
        verb: u16,
        sequence: u32,
        fields: &[u8],
        fds: &[RawFd],
    ) -> Result<(), Errno> {
        let mut bytes = Vec::new();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(verb.to_le_bytes());
        bytes.extend(sequence.to_le_bytes());
        bytes.extend(0_i32.to_le_bytes());
        bytes.extend(fields);
        packet(&self.socket, &bytes, fds, MsgFlags::empty())
    }

    /// Waits for the next packet.
    pub(crate) fn receive(&self) -> Packet {
        self.try_receive().expect("the runtime closed the connection")
    }

    /// Waits for the next packet, or the end. News of the groups that serve names are passed over.
    pub(crate) fn try_receive(&self) -> Option<Packet> {
        loop {
            let packet = self.receive_any()?;
            if !verb::OF_GROUPS.contains(&packet.verb) {
                return Some(packet);
            }
        }
    }

    fn receive_any(&self) -> Option<Packet> {
        let mut bytes = [0; MAX_PACKET];
        let mut control = cmsg_space!([RawFd; 3]);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let heard =
            recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags).ok()?;
        let length = heard.bytes;
        let mut fds = Vec::new();
        for message in heard.cmsgs().expect("not cut") {
            if let ControlMessageOwned::ScmRights(rights) = message {
                fds.extend(rights.into_iter().map(adopt));
            }
        }
        if length == 0 {
            return None;
        }
        assert_eq!(bytes[..2], VERSION.to_le_bytes());
        let field = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        Some(Packet {
            verb: u16::from_le_bytes([bytes[2], bytes[3]]),
            sequence: field(4),
            status: field(8) as i32,
            fields: bytes[12..length].to_vec(),
            fds,
        })
    }

    /// Serves a name.
    pub(crate) fn register(&self, name: &str) {
        let fields = [&[0; 12 + 32], &name_field(name)[..]].concat();
        self.send(verb::REGISTER, 2, &fields, &[]);
        assert_eq!(self.receive().verb, verb::REGISTERED);
    }

    /// Waits until a name is served; its id.
    pub(crate) fn find(&self, name: &str) -> u32 {
        self.send(verb::WAIT, 3, &name_field(name), &[]);
        let found = self.receive();
        assert_eq!((found.verb, found.sequence), (verb::FOUND, 3));
        found.u32(0)
    }

    /// Offers a lane to whoever serves an id.
    pub(crate) fn offer(&self, to: u32, cells: u32, slab: u32, lanes: &[RawFd]) -> Packet {
        let fields = [to, cells, slab].map(u32::to_le_bytes).concat();
        self.send(verb::CONNECT, 4, &fields, lanes);
        self.receive()
    }

    /// Accepts a channel with a lane.
    pub(crate) fn accept(&self, channel: u64, lane: RawFd) {
        let fields = [&channel.to_le_bytes()[..], &0_i32.to_le_bytes()].concat();
        self.send(verb::ACCEPT, 0, &fields, &[lane]);
    }
}

/// Sends one packet with descriptors.
pub(crate) fn packet(
    socket: &OwnedFd,
    bytes: &[u8],
    fds: &[RawFd],
    flags: MsgFlags,
) -> Result<(), Errno> {
    let rights = [ControlMessage::ScmRights(fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
    let flags = flags | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], rights, flags, None).map(|_| ())
}

fn name_field(name: &str) -> Vec<u8> {
    [&(name.len() as u16).to_le_bytes()[..], name.as_bytes()].concat()
}
