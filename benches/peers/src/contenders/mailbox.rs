//! Shared memory and nothing around it: one slot each way, a word that says whose turn it is. The
//! least that any transport can do, and what hand-made ones look like.
//!
//! ```text
//!   0        4        8                          1 MiB + 4 KiB
//!   ┌────────┬────────┬─────────────────────────┬──── the same again for answers
//!   │ turn   │ length │ payload                 │
//!   └────────┴────────┴─────────────────────────┴────
//! ```
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use benches::futex;
use memmap2::{MmapOptions, MmapRaw};

use crate::contender::{Caller, Contender, LARGEST, Payload, Place, STAMP, Waits, check, ready};

const SLOT: usize = LARGEST + 4096;

/// Length of the shared file.
pub const BYTES: usize = 2 * SLOT;

/// Offset of the payload: it begins in the line of the turn, so that short ones move with it.
const BODY: usize = 8;

const REQUEST: usize = 0;
const ANSWER: usize = SLOT;

/// A mailbox with futexes, or with polling.
#[derive(Debug)]
pub struct Mailbox {
    /// Copied in and out on both sides, or touched where it is.
    pub payload: Payload,
    /// How both sides wait.
    pub waits: Waits,
}

/// The mapped file.
#[derive(Debug)]
struct Memory(MmapRaw);

struct Sender {
    memory: Memory,
    waits: Waits,
    payload: Payload,
    turn: u32,
}

impl Contender for Mailbox {
    fn name(&self) -> &'static str {
        match self.waits {
            Waits::Polling => "shared memory",
            Waits::Sleeping => "shared memory + futex",
        }
    }

    fn payload(&self) -> Payload {
        self.payload
    }

    fn waits(&self) -> Waits {
        self.waits
    }

    fn serve(&self, place: &Place) -> io::Result<()> {
        let memory = Memory::map(&place.shared)?;
        let mut taken = vec![0; LARGEST];
        let mut turn = 0_u32;
        ready("")?;
        loop {
            turn = turn.wrapping_add(1);
            memory.await_turn(REQUEST, turn, self.waits);
            let length = memory.length(REQUEST).min(LARGEST);
            let touched = self.touched(length);
            memory.get(REQUEST, &mut taken[..touched]);
            memory.put(ANSWER, &taken[..touched]);
            memory.give_turn(ANSWER, turn, length, self.waits);
        }
    }

    fn connect(&self, place: &Place) -> io::Result<Box<dyn Caller>> {
        let memory = Memory::map(&place.shared)?;
        // Where the client before stopped.
        let turn = memory.word(ANSWER, 0).load(Ordering::Acquire);
        Ok(Box::new(Sender { memory, waits: self.waits, payload: self.payload, turn }))
    }
}

impl Mailbox {
    fn touched(&self, length: usize) -> usize {
        touched(self.payload, length)
    }
}

fn touched(payload: Payload, length: usize) -> usize {
    if payload == Payload::InPlace { length.min(STAMP) } else { length }
}

impl Caller for Sender {
    fn call(&mut self, request: &[u8], response: &mut [u8]) -> io::Result<()> {
        let touched = touched(self.payload, request.len());
        self.turn = self.turn.wrapping_add(1);
        self.memory.put(REQUEST, &request[..touched]);
        self.memory.give_turn(REQUEST, self.turn, request.len(), self.waits);
        self.memory.await_turn(ANSWER, self.turn, self.waits);
        check(self.memory.length(ANSWER), request.len())?;
        self.memory.get(ANSWER, &mut response[..touched]);
        Ok(())
    }
}

impl Memory {
    fn map(file: &File) -> io::Result<Memory> {
        if file.metadata()?.len() < BYTES as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Memory(MmapOptions::new().len(BYTES).populate().map_raw(file)?))
    }

    fn word(&self, slot: usize, index: usize) -> &AtomicU32 {
        assert!(slot < BYTES && index < 2, "a slot, and one of its two words");
        // SAFETY: slot + 8 lies in the mapping, which `self` keeps alive for as long as the
        // reference; slots are page-aligned; both processes access these words atomically only,
        // and neither shortens the file.
        unsafe { AtomicU32::from_ptr(self.0.as_mut_ptr().add(slot + index * 4).cast()) }
    }

    fn length(&self, slot: usize) -> usize {
        self.word(slot, 1).load(Ordering::Relaxed) as usize
    }

    fn put(&self, slot: usize, payload: &[u8]) {
        assert!(payload.len() <= LARGEST, "no payload is longer");
        // SAFETY: the range lies in the slot, in a mapping that `self` keeps alive; a private
        // buffer does not overlap it; and it is this side's turn, so the other, which runs this
        // very program, does not touch it: the turn's Release and Acquire order the two.
        unsafe {
            let body = self.0.as_mut_ptr().add(slot + BODY);
            body.copy_from_nonoverlapping(payload.as_ptr(), payload.len());
        }
    }

    fn get(&self, slot: usize, buffer: &mut [u8]) {
        assert!(buffer.len() <= LARGEST, "no payload is longer");
        // SAFETY: as in `put`.
        unsafe {
            let body = self.0.as_mut_ptr().add(slot + BODY);
            body.copy_to_nonoverlapping(buffer.as_mut_ptr(), buffer.len());
        }
    }

    fn give_turn(&self, slot: usize, turn: u32, length: usize, waits: Waits) {
        self.word(slot, 1).store(length as u32, Ordering::Relaxed);
        self.word(slot, 0).store(turn, Ordering::Release);
        if waits == Waits::Sleeping {
            futex::wake(self.word(slot, 0));
        }
    }

    fn await_turn(&self, slot: usize, turn: u32, waits: Waits) {
        let word = self.word(slot, 0);
        while word.load(Ordering::Acquire) != turn {
            match waits {
                Waits::Polling => std::hint::spin_loop(),
                Waits::Sleeping => futex::wait(word, turn.wrapping_sub(1)),
            }
        }
    }
}
