//! One end of a channel by hand, as `docs/layout.md` has it. It knows how an honest end would
//! write, and lets every part of that be something else.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::MsgFlags,
    },
    unistd::ftruncate,
};
use tests::wait_until;

use crate::{
    memory::{Map, READ, RELEASE, WRITE},
    wire::{Packet, Wire, packet, verb},
};

/// Offsets of the header.
pub(crate) mod at {
    pub(crate) const MAGIC: usize = 0x000;
    pub(crate) const VERSION: usize = 0x008;
    pub(crate) const CELLS: usize = 0x00C;
    pub(crate) const SLAB: usize = 0x010;
    pub(crate) const LIFE: usize = 0x080;
    pub(crate) const EVENT: usize = 0x100;
    pub(crate) const PARKED: usize = 0x180;
    pub(crate) const WANT: [usize; 2] = [0x188, 0x190];
    pub(crate) const TAKEN: [usize; 2] = [0x200, 0x280];
    pub(crate) const BUSY: usize = 0x300;
    pub(crate) const RELEASED: usize = 0x380;
}

pub(crate) const REQUEST: u32 = 1;
pub(crate) const RESPONSE: u32 = 3;
pub(crate) const ERROR: u32 = 4;
pub(crate) const CONTINUE: u32 = 5;
pub(crate) const PING: u32 = 7;
pub(crate) const PONG: u32 = 8;
pub(crate) const FLAG_SLAB: u32 = 1;
pub(crate) const FLAG_MORE: u32 = 2;
pub(crate) const FLAG_BULK: u32 = 8;

/// The two rings of a lane.
pub(crate) const URGENT: usize = 0;
pub(crate) const ORDINARY: usize = 1;

/// Cells and slab bytes of the ordinary ring: the defaults.
pub(crate) const CELLS: u32 = 64;
pub(crate) const SLAB: u32 = 8192;
const LANE: usize = 16_384;
const WAITERS: u32 = 0x8000_0000;

const SIZES: [(usize, u64, u64); 2] = [(1024, 16, 2048), (2048, CELLS as u64, SLAB as u64)];
const SLABS: [usize; 2] = [2048 + 64 * CELLS as usize, 4096 + 64 * CELLS as usize];

/// Every seal that a lane must have.
pub(crate) fn seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SEAL
        | SealFlag::from_bits_retain(libc::F_SEAL_FUTURE_WRITE)
}

/// Makes a memfd of this length, sparse.
pub(crate) fn memfd(bytes: u64) -> OwnedFd {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create("ipc-lane-hostile", flags).expect("a memfd");
    ftruncate(&fd, bytes as i64).expect("of that length");
    fd
}

/// Makes memory of this length, allocated and mapped, to be sealed.
pub(crate) fn memory(bytes: usize) -> (OwnedFd, Map) {
    let fd = memfd(bytes as u64);
    fallocate(&fd, FallocateFlags::empty(), 0, bytes as i64).expect("memory");
    let map = Map::new(&fd, bytes, true).expect("mapped");
    (fd, map)
}

/// Makes a lane as it should be, but for the seals that are left out.
pub(crate) fn lane(seals: SealFlag) -> (OwnedFd, Map) {
    let (fd, map) = memory(LANE);
    map.long(at::MAGIC).store(u64::from_le_bytes(*b"ipclane\x01"), WRITE);
    map.word(at::VERSION).store(1, WRITE);
    map.word(at::CELLS).store(CELLS, WRITE);
    map.word(at::SLAB).store(SLAB, WRITE);
    let thread = nix::unistd::gettid().as_raw().unsigned_abs();
    map.word(at::LIFE).store(thread | WAITERS, WRITE);
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).expect("sealed");
    (fd, map)
}

/// A frame, every part of which may be a lie.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) ring: usize,
    /// Added to the lap that an honest sender would write.
    pub(crate) lap: u32,
    pub(crate) kind: u32,
    pub(crate) flags: u32,
    pub(crate) priority: u32,
    pub(crate) length: u32,
    pub(crate) id: u32,
    pub(crate) deadline: u32,
    pub(crate) words: [u64; 6],
}

impl Cell {
    /// An honest frame of so many bytes, of which the first six words are these.
    pub(crate) fn new(kind: u32, id: u32, length: u32) -> Cell {
        let words = [0x6162_6364_6566_6768; 6];
        let (ring, priority) = (ORDINARY, 2);
        Cell { ring, lap: 0, kind, flags: 0, priority, length, id, deadline: 0, words }
    }

    /// The same on the urgent ring.
    pub(crate) fn urgent(self) -> Cell {
        Cell { ring: URGENT, priority: 0, ..self }
    }

    pub(crate) fn first(self, total: u64) -> Cell {
        let mut it = Cell { flags: FLAG_SLAB | FLAG_MORE, ..self };
        it.words[1] = total;
        it
    }
}

/// A frame of the other end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u32,
    pub(crate) flags: u32,
    pub(crate) id: u32,
    pub(crate) words: [u64; 6],
}

/// One end of a channel.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) fd: OwnedFd,
    pub(crate) own: Map,
    pub(crate) theirs: Map,
    pub(crate) their_fd: OwnedFd,
    pub(crate) bell: OwnedFd,
    /// The low half of the first message id.
    pub(crate) first_id: u32,
    /// Frames pushed, and frames taken, by ring.
    pub(crate) pushed: [u64; 2],
    pub(crate) taken: [u64; 2],
    /// Where the next piece of each slab may begin.
    slab: [u64; 2],
    sleeps: u32,
}

impl End {
    fn new(fd: OwnedFd, own: Map, introduction: Packet) -> End {
        let mut fds = introduction.fds.into_iter();
        let their_fd = fds.next().expect("their lane");
        let bell = fds.next().expect("a doorbell");
        let theirs = Map::new(&their_fd, LANE, false).expect("mapped");
        assert_eq!(theirs.long(at::MAGIC).load(READ), own.long(at::MAGIC).load(READ));
        let (pushed, taken, slab) = ([0; 2], [0; 2], [0; 2]);
        End { fd, own, theirs, their_fd, bell, first_id: 1, pushed, taken, slab, sleeps: 0 }
    }

    /// Calls whoever serves a name.
    pub(crate) fn connect(wire: &Wire, to: u32) -> End {
        let (fd, own) = lane(seals());
        let answer = wire.offer(to, CELLS, SLAB, &[fd.as_raw_fd()]);
        assert_eq!((answer.verb, answer.status), (verb::CONNECTED, 0));
        End::new(fd, own, answer)
    }

    /// Waits for a client, and accepts it.
    pub(crate) fn accept(wire: &Wire) -> End {
        let offer = wire.receive();
        assert_eq!(offer.verb, verb::INCOMING);
        // channel, session, start, asymmetric and six words; behind geometry and permissions the
        // opener, whether it is encrypted, the other end's key, and what binds.
        let geometry = offer.fields.len() - 16 - 40 - 76;
        assert_eq!((offer.u32(geometry), offer.u32(geometry + 4)), (CELLS, SLAB));
        let (fd, own) = lane(seals());
        wire.accept(offer.u64(0), fd.as_raw_fd());
        End::new(fd, own, offer)
    }

    /// Where the cell of that count is.
    pub(crate) fn cell(ring: usize, count: u64) -> usize {
        let (cells, number, _) = SIZES[ring];
        cells + 64 * (count % number) as usize
    }

    fn lap(ring: usize, count: u64) -> u32 {
        (count / SIZES[ring].1 + 1) as u32 & 0x0FFF_FFFF
    }

    /// Writes a frame behind the last one. What it has in the slab is accounted for honestly.
    pub(crate) fn push(&mut self, cell: &Cell) {
        let ring = cell.ring;
        let mut cell = cell.clone();
        if cell.flags & FLAG_SLAB != 0 {
            let is_first = cell.flags & FLAG_MORE != 0 && cell.kind != CONTINUE;
            let inline = if is_first { 32 } else { 40 };
            cell.words[0] = self.place(ring, u64::from(cell.length.saturating_sub(inline)));
        }
        self.write(&cell);
    }

    /// Takes the next piece of a slab.
    fn place(&mut self, ring: usize, length: u64) -> u64 {
        let size = SIZES[ring].2;
        let aligned = self.slab[ring].next_multiple_of(8);
        let fits = aligned % size + length <= size;
        let place = if fits { aligned } else { aligned.next_multiple_of(size) };
        self.slab[ring] = place + length;
        place
    }

    /// Writes a frame behind the last one, exactly so.
    pub(crate) fn write(&mut self, cell: &Cell) {
        let count = self.pushed[cell.ring];
        let base = End::cell(cell.ring, count);
        for (index, word) in cell.words.iter().enumerate() {
            self.own.long(base + 16 + 8 * index).store(*word, WRITE);
        }
        let id = u64::from(cell.id) | u64::from(cell.deadline) << 32;
        self.own.long(base + 8).store(id, WRITE);
        let lap = End::lap(cell.ring, count).wrapping_add(cell.lap) & 0x0FFF_FFFF;
        let stamp = u64::from(lap << 4 | cell.kind & 0xF);
        let meta =
            u64::from(cell.flags) << 27 | u64::from(cell.priority) << 24 | u64::from(cell.length);
        self.own.long(base).store(stamp | meta << 32, WRITE);
        self.pushed[cell.ring] += 1;
    }

    /// Fills the slab of the ordinary ring with a byte.
    pub(crate) fn fill_slab(&self, byte: u8) {
        for offset in 0..SLAB as usize {
            self.own.byte(SLABS[ORDINARY] + offset).store(byte, WRITE);
        }
    }

    /// A byte of the slab of the ordinary ring.
    pub(crate) fn slab_byte(offset: usize) -> usize {
        SLABS[ORDINARY] + offset % SLAB as usize
    }

    /// Wakes the other end, however it may sleep.
    pub(crate) fn ring(&self) {
        self.own.word(at::EVENT).fetch_add(1, WRITE);
        self.own.wake(at::EVENT);
        self.ring_bell();
    }

    pub(crate) fn ring_bell(&self) {
        // Full or hung up: no matter.
        let _ = packet(&self.bell, &[1], &[], MsgFlags::MSG_DONTWAIT);
    }

    /// Whether the other end closed the channel: its life word is closed.
    pub(crate) fn is_cut(&self) -> bool {
        self.theirs.word(at::LIFE).load(READ) == 0
    }

    /// Waits until the other end has closed the channel, and says so on the doorbell as well.
    pub(crate) fn await_cut(&self, what: &str) {
        wait_until(&format!("{what} is noticed"), || {
            self.ring();
            self.is_cut()
        });
        wait_until("the bell is hung up", || {
            let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&self.bell), PollFlags::empty())];
            poll(&mut fds, PollTimeout::ZERO) != Err(Errno::EINTR)
                && fds[0].revents().is_some_and(|seen| seen.contains(PollFlags::POLLHUP))
        });
    }

    /// Whether a frame is there.
    pub(crate) fn is_ready(&self, ring: usize) -> bool {
        let head = self.theirs.word(End::cell(ring, self.taken[ring])).load(READ);
        head >> 4 == End::lap(ring, self.taken[ring])
    }

    /// Waits for the next frame of a ring: its kind, its id, and its first payload words.
    pub(crate) fn take(&mut self, ring: usize) -> (u32, u32, [u64; 6]) {
        let Frame { kind, id, words, .. } = self.take_frame(ring);
        (kind, id, words)
    }

    /// Waits for the next frame of a ring.
    pub(crate) fn take_frame(&mut self, ring: usize) -> Frame {
        wait_until("a frame comes", || self.is_ready(ring));
        let base = End::cell(ring, self.taken[ring]);
        let [kind, meta, id] = [0, 4, 8].map(|word| self.theirs.word(base + word).load(READ));
        let words = std::array::from_fn(|word| self.theirs.long(base + 16 + 8 * word).load(READ));
        self.taken[ring] += 1;
        self.own.long(at::TAKEN[ring]).store(self.taken[ring], WRITE);
        Frame { kind: kind & 0xF, flags: meta >> 27, id, words }
    }

    /// Says that this end sleeps, and how it is to be woken.
    pub(crate) fn park(&mut self, how: u32) {
        self.sleeps += 1;
        self.own.word(at::PARKED).store(self.sleeps << 2 | how, WRITE);
    }

    /// Makes an honest call: an echo of so many bytes in the cell.
    pub(crate) fn call(&mut self, id: u32) {
        let request = Cell::new(REQUEST, id, 48);
        self.push(&request);
        self.ring();
        let answer = self.take(ORDINARY);
        assert_eq!(answer, (RESPONSE, id, request.words), "an echo");
    }
}

impl End {
    /// Pushes once the other end has taken most of what was pushed before; or has left.
    pub(crate) fn push_paced(&mut self, cell: &Cell) {
        let room = SIZES[cell.ring].1 / 2;
        self.ring();
        wait_until("there is room", || {
            let taken = self.theirs.long(at::TAKEN[cell.ring]).load(READ);
            self.pushed[cell.ring].saturating_sub(taken) < room || self.is_cut()
        });
        self.push(cell);
    }

    /// Pushes if there is room before long: one that has all that it waits for reads no more, nor
    /// does one that has cut the channel. By the clock, since a count of looks takes as long as the
    /// others of a busy machine like; who gives up early has only tried less.
    pub(crate) fn push_patiently(&mut self, cell: &Cell) -> bool {
        const PATIENCE: Duration = Duration::from_millis(20);
        self.ring();
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE && !self.is_cut() {
            let taken = self.theirs.long(at::TAKEN[cell.ring]).load(READ);
            if self.pushed[cell.ring].saturating_sub(taken) < SIZES[cell.ring].1 / 2 {
                self.push(cell);
                return true;
            }
            std::thread::yield_now();
        }
        false
    }

    /// Pushes requests, and takes no answer, until the other end has had enough.
    pub(crate) fn push_until_cut(&mut self, id: u32) {
        let mut next = id;
        while !self.is_cut() {
            self.push_paced(&Cell::new(REQUEST, next, 8));
            next = next.wrapping_add(1);
        }
    }

    /// Takes whatever is there, unseen.
    pub(crate) fn pass_over(&mut self) {
        for ring in [URGENT, ORDINARY] {
            while self.is_ready(ring) {
                self.taken[ring] += 1;
                self.own.long(at::TAKEN[ring]).store(self.taken[ring], WRITE);
            }
        }
    }
}

impl End {
    /// Pushes a message of these bytes, which fit one frame, as an honest sender would.
    pub(crate) fn push_bytes(&mut self, kind: u32, id: u32, bytes: &[u8]) {
        let mut cell = Cell::new(kind, id, bytes.len() as u32);
        let is_long = bytes.len() > 48;
        let (inline, rest) = bytes.split_at(if is_long { 40 } else { bytes.len() });
        let mut padded = [0; 48];
        let begin = if is_long { 8 } else { 0 };
        padded[begin..begin + inline.len()].copy_from_slice(inline);
        for (word, bytes) in cell.words.iter_mut().zip(padded.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        if is_long {
            cell.flags = FLAG_SLAB;
            cell.words[0] = self.place(ORDINARY, rest.len() as u64);
            for (offset, byte) in rest.iter().enumerate() {
                let at = End::slab_byte(cell.words[0] as usize + offset);
                self.own.byte(at).store(*byte, WRITE);
            }
        }
        self.write(&cell);
    }

    /// Keeps a ring full of the same frame until the other end has had enough: as fast as it can,
    /// so that who reads finds no end.
    pub(crate) fn feed(&mut self, cell: &Cell) {
        let cells = SIZES[cell.ring].1;
        let first = self.pushed[cell.ring];
        while !self.is_cut() {
            let taken = self.theirs.long(at::TAKEN[cell.ring]).load(READ);
            while self.pushed[cell.ring].saturating_sub(taken) < cells {
                let count = self.pushed[cell.ring];
                if count < first + cells {
                    self.write(cell);
                } else {
                    // All but the stamp is there from the lap before.
                    let stamp = End::lap(cell.ring, count) << 4 | cell.kind;
                    self.own.word(End::cell(cell.ring, count)).store(stamp, RELEASE);
                    self.pushed[cell.ring] += 1;
                }
            }
            if self.theirs.word(at::PARKED).load(READ) != 0 {
                self.ring();
            }
        }
    }
}
