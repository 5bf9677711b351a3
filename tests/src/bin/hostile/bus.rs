//! A publisher that lies: a ring by hand, as `docs/layout.md` has it.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, fcntl};

use crate::{
    end::{memory, seals},
    memory::{Map, WRITE},
    say,
    wire::Wire,
};

const ADVERTISE: u16 = 41;
const DONE: u16 = 103;
const HEADER: usize = 4096;
const CAPACITY: u64 = 4096;
const VERSION: u32 = 1;

/// Where things stand in a ring's header.
mod at {
    pub(super) const TOPIC: usize = 0x0C;
    pub(super) const CAPACITY: usize = 0x10;
    pub(super) const HEAD: usize = 0x40;
    pub(super) const LAST: usize = 0x48;
    pub(super) const STATE: usize = 0x50;
    pub(super) const HORIZON: usize = 0x80;
    pub(super) const EVENT: usize = 0xC0;
}

/// A ring that this process writes as it likes.
pub(crate) struct FalseRing {
    map: Map,
    _fd: OwnedFd,
}

impl FalseRing {
    /// Makes one with one true event, and has subscribers of topic `event/NUMBER` given it.
    pub(crate) fn advertise(wire: &Wire, topic: u32, number: u32) -> FalseRing {
        let (fd, map) = memory(HEADER + CAPACITY as usize);
        map.long(0).store(u64::from_le_bytes(*b"ipcbusR\x01"), WRITE);
        map.word(8).store(VERSION, WRITE);
        map.word(at::TOPIC).store(topic, WRITE);
        map.long(at::CAPACITY).store(CAPACITY, WRITE);
        map.long(HEADER).store(8, WRITE);
        map.long(HEADER + 24).store(0, WRITE);
        map.long(at::HEAD).store(32, WRITE);
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals())).expect("sealed");
        let name = format!("event/{topic}");
        let mut fields = Vec::new();
        for field in [topic, number, 0] {
            fields.extend(field.to_le_bytes());
        }
        fields.extend((name.len() as u16).to_le_bytes());
        fields.extend(name.as_bytes());
        wire.send(ADVERTISE, 77, &fields, &[fd.as_raw_fd()]);
        while wire.receive().verb != DONE {}
        FalseRing { map, _fd: fd }
    }

    /// Tells one of so many lies, behind the true event; says whether there is one of that number.
    pub(crate) fn lie(&self, number: u32) -> bool {
        let (map, second) = (&self.map, HEADER + 32);
        let long = |at: usize, value: u64| map.long(at).store(value, WRITE);
        match number {
            0 => long(at::HEAD, u64::MAX),
            1 => long(at::HEAD, 33),
            2 => long(at::HEAD, 0),
            3 => {
                long(second, u64::from(u32::MAX));
                long(at::HEAD, 64);
            }
            4 => {
                long(second, 1 << 63 | 8);
                long(at::HEAD, 64);
            }
            5 => {
                // A way to the start that leads elsewhere.
                long(second, 1 << 32 | 64);
                long(at::HEAD, 64);
            }
            6 => {
                long(second, 8);
                long(second + 8, 9);
                long(at::HEAD, 64);
            }
            7 => {
                long(at::HORIZON, u64::MAX);
                long(at::HEAD, 64);
            }
            8 => {
                // Overtaken by what was never written.
                long(at::HORIZON, 1 << 40);
                long(at::HEAD, (1 << 40) + 4096);
            }
            9 => {
                // Longer than any event of such a ring, and whole.
                long(second, 3000);
                long(second + 8, 1);
                long(at::HEAD, 4096);
            }
            _ => return false,
        }
        map.word(at::EVENT).fetch_add(1, WRITE);
        map.wake(at::EVENT);
        true
    }

    /// Wakes without end and for nothing, for a while, and says nothing true about the last event.
    pub(crate) fn pester(&self) {
        self.map.long(at::LAST).store(1 << 20, WRITE);
        self.map.word(at::STATE).store(7, WRITE);
        for _ in 0..20_000 {
            self.map.word(at::EVENT).fetch_add(1, WRITE);
            self.map.wake(at::EVENT);
        }
        say("pestered");
    }
}
