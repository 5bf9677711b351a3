//! What goes on without pause: bytes that change while they are read, and doorbells.

use std::{
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    thread::JoinHandle,
};

use nix::sys::socket::MsgFlags;

use crate::{
    end::{CELLS, Cell, End, FLAG_SLAB, ORDINARY, SLAB, at},
    memory::{Map, READ, WRITE},
    wire::packet,
};

/// A flood of the doorbell.
#[derive(Debug, Default)]
pub(crate) struct Noise {
    over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Noise {
    /// Rings without pause, each time with so many descriptors.
    pub(crate) fn start(&mut self, bell: OwnedFd, parcels: usize) {
        self.repeat(move || {
            let fds: Vec<RawFd> = vec![bell.as_raw_fd(); parcels];
            packet(&bell, &[1; 64], &fds, MsgFlags::MSG_DONTWAIT).is_ok()
        });
    }

    /// Does something without pause, and counts how often it worked.
    pub(crate) fn repeat(&mut self, mut act: impl FnMut() -> bool + Send + 'static) {
        let (over, sent) = (Arc::clone(&self.over), Arc::clone(&self.sent));
        over.store(false, WRITE);
        self.threads.push(std::thread::spawn(move || {
            while !over.load(READ) {
                if act() {
                    sent.fetch_add(1, WRITE);
                } else {
                    std::thread::yield_now();
                }
            }
        }));
    }

    /// Ends it; returns how often it rang.
    pub(crate) fn stop(&mut self) -> u64 {
        self.over.store(true, WRITE);
        self.threads.drain(..).for_each(|thread| thread.join().expect("no panic"));
        self.sent.swap(0, WRITE)
    }
}

/// Sends messages of one kind and id, of all sizes, while another thread changes their lengths,
/// flags, ids, places and bytes. Ends after so many, or when the other end has cut the channel.
pub(crate) fn flip(end: &mut End, kind: u32, ids: &[u32], count: u32) {
    end.fill_slab(b'a');
    let over = Arc::new(AtomicBool::new(false));
    let (own, told) = (end.own, Arc::clone(&over));
    let flipper = std::thread::spawn(move || {
        let mut random = u64::from(own.word(at::LIFE).load(READ)) << 20 | 0x9E37_79B9;
        while !told.load(READ) {
            (0..64).for_each(|_| flip_one(own, &mut random));
        }
    });
    for number in 0..count {
        if end.is_cut() {
            break;
        }
        let id = ids[number as usize % ids.len()];
        let mut cell = Cell::new(kind, id, number % 49);
        if number % 3 == 0 {
            cell = Cell { flags: FLAG_SLAB, length: 41 + number * 7 % 4096, ..cell };
        }
        end.pass_over();
        if !end.push_patiently(&cell) {
            break;
        }
    }
    over.store(true, WRITE);
    flipper.join().expect("no panic");
}

/// Changes one byte: mostly of a cell, else of the slab or of the words that ask to be woken.
fn flip_one(own: Map, random: &mut u64) {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    let (what, place, value) = (*random & 7, *random >> 8 & 0xFFFF, *random >> 32);
    let at = match what {
        0 => End::slab_byte(place as usize % SLAB as usize),
        1 => at::PARKED + place as usize % 0x18,
        // The stamp stays: without it nobody reads the rest.
        _ => End::cell(ORDINARY, place % u64::from(CELLS)) + 4 + (place as usize >> 6) % 60,
    };
    // The service of these tests takes some first bytes for commands.
    let value = value as u8;
    if value != b'!' && value != b'\n' {
        own.byte(at).store(value, WRITE);
    }
}
