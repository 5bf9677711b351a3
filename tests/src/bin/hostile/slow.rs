//! Descriptors that are slow to close: sockets that linger, and a file whose server keeps silent.

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::Path,
};

use nix::sys::socket::{MsgFlags, setsockopt, sockopt};

use crate::{
    Villain,
    descriptors::LANE,
    end::{CELLS, SLAB},
    fuse::Fuse,
    say,
    wire::{Wire, packet, verb},
};

/// Longer than any test: the last `close` waits until the other end is gone.
const LINGERS: libc::c_int = 10_000;
/// As many as the kernel lets through with one packet.
const MOST_FDS: usize = 253;

/// What is to be sent away, and what decides how long closing it takes.
#[derive(Debug, Default)]
pub(crate) struct Slow {
    lingering: Vec<TcpStream>,
    /// Read by nobody, and their listeners, whose ports nobody else has meanwhile.
    others: Vec<(TcpStream, TcpListener)>,
    /// Kept open: it is each `close` that takes long, and not only the last.
    fuse: Option<Fuse>,
    /// The id of a name, and a connection besides the first.
    ready: Option<(u32, Wire)>,
}

impl Slow {
    /// Makes a socket whose last `close` waits; returns the port that it is connected to.
    fn linger(&mut self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        setsockopt(&listener, sockopt::RcvBuf, &4096).expect("small");
        let socket = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let other = listener.accept().expect("connected").0;
        setsockopt(&socket, sockopt::SndBuf, &4096).expect("small");
        socket.set_nonblocking(true).expect("a socket");
        // Until neither end holds any more: what is left is never taken.
        while (&socket).write(&[0; 4096]).is_ok() {}
        let linger = libc::linger { l_onoff: 1, l_linger: LINGERS };
        setsockopt(&socket, sockopt::Linger, &linger).expect("it may");
        let port = listener.local_addr().expect("bound").port();
        self.lingering.push(socket);
        self.others.push((other, listener));
        port
    }

    /// What there is to be sent.
    fn fds(&self) -> Vec<RawFd> {
        let fuse = self.fuse.iter().map(|fuse| fuse.file.as_raw_fd());
        self.lingering.iter().map(AsRawFd::as_raw_fd).chain(fuse).collect()
    }
}

fn notice(number: u32) -> Vec<u8> {
    [&1_u32.to_le_bytes()[..], &number.to_le_bytes(), &LANE.to_le_bytes()].concat()
}

impl Villain {
    /// - `linger COUNT`: makes sockets that linger, and says their ports; `relent` lets go of their
    ///   other ends
    /// - `fuse`: makes a file of a file system whose server does not answer `FLUSH`, and says so
    ///   whenever it is asked; `answer-flush` has it answer from then on
    /// - `approach NAME`: makes ready to be
    /// - `slip HOW`: sends them to the runtime or to the other end, and keeps no socket:
    ///   - `lane`: for a client's; `refused` waits for the answer
    ///   - `bomb`: as many as go with a packet; `buried`: behind one that ends the connection
    ///   - `bell`, `pair`, `bells`: with a doorbell, one, two or as many; `buried-bell`: behind a
    ///     lie; `arena`: for an arena
    pub(crate) fn be_slow(&mut self, command: &str, rest: &str) {
        match command {
            "linger" => {
                let count: u32 = rest.parse().expect("a number");
                let ports = (0..count).map(|_| self.slow.linger().to_string());
                say(&format!("lingering {}", ports.collect::<Vec<_>>().join(",")));
            }
            "relent" => {
                self.slow.others.clear();
                say("relented");
            }
            "fuse" => match Fuse::mount(&self.directory) {
                Ok(fuse) => {
                    self.slow.fuse = Some(fuse);
                    say("fuse mounted");
                }
                Err(reason) => say(&format!("fuse impossible: {reason}")),
            },
            "answer-flush" => {
                self.slow.fuse.as_mut().expect("a file system").answer();
                say("flushed");
            }
            "approach" => {
                let to = self.wire.find(rest);
                self.slow.ready = Some((to, Wire::new(Path::new(&self.directory))));
                say("near");
            }
            "slip" => {
                self.slip(rest);
                self.slow.lingering.clear();
                say("slipped");
            }
            "refused" => {
                let answer = self.wire.receive();
                assert_eq!(answer.verb, verb::REFUSED);
                say("refused");
            }
            other => self.handle_bulk(other, rest),
        }
    }

    fn slip(&mut self, how: &str) {
        let fds = self.slow.fds();
        let many: Vec<RawFd> = fds.iter().copied().cycle().take(MOST_FDS).collect();
        let bell = |villain: &mut Villain, bytes: &[u8], fds: &[RawFd]| {
            let bell: &OwnedFd = &villain.end().bell;
            packet(bell, bytes, fds, MsgFlags::MSG_DONTWAIT).expect("there is room");
        };
        match how {
            "lane" => {
                let to = self.slow.ready.as_ref().expect("near").0;
                let fields = [to, CELLS, SLAB].map(u32::to_le_bytes).concat();
                self.wire.send(verb::CONNECT, 4, &fields, &fds[..1]);
            }
            "bomb" | "buried" => {
                let wire = &self.slow.ready.as_ref().expect("near").1;
                if how == "buried" {
                    wire.send(u16::MAX, 9, &[], &[]);
                }
                wire.send(verb::PING, 9, &[], &many);
            }
            "bell" => bell(self, &[1], &fds[..1]),
            "pair" => bell(self, &[1], &many[..2]),
            "bells" => bell(self, &[1], &many),
            "arena" => bell(self, &notice(1), &fds[..1]),
            "buried-bell" => {
                bell(self, &notice(1), &[]);
                // No bytes: it is not to be taken for the end.
                bell(self, &[], &[]);
                bell(self, &[], &many);
            }
            other => panic!("{other}"),
        }
    }
}
