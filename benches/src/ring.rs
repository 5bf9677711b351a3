//! The ring alone: between two threads, and within one.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ipc::bare::{self, Rx, Tx};

use crate::calls::wide;
use crate::floor::Setting;
use crate::measure::{Throughput, throughput};
use crate::pin;
use crate::report::Group;

/// Sizes of payloads: in a cell, with a little in the slab, mostly in the slab.
const SIZES: [usize; 3] = [8, 64, 1024];
/// Frames between two looks at the clock.
const BATCH: u64 = 4096;
/// Frames that one thread pushes before it takes them.
const FEW: u64 = 16;

/// Runs the group.
///
/// # Errors
/// Those of the measurements.
pub fn group(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    Group::measure(
        "ring",
        || setting.beside(),
        |ruler| {
            for size in SIZES {
                ruler.throughput("two threads", Some(size), || between(setting, size))?;
            }
            for size in SIZES {
                ruler.throughput("one thread", Some(size), || within(setting, size))?;
            }
            Ok(())
        },
    )
}

/// Measures frames per second from this thread to one on the other CPU.
fn between(setting: &Setting, size: usize) -> io::Result<Throughput> {
    let (mut tx, mut rx) = ring()?;
    let (payload, over) = (vec![7; size], AtomicBool::new(false));
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            pin::pin_to(&[setting.placement.there])?;
            take_until(&mut rx, size, &over)
        });
        let mut sent = 0;
        let measured = throughput(&setting.clock, setting.plan, || {
            push(&mut tx, &payload, BATCH, || reader.is_finished())?;
            sent += BATCH;
            Ok(BATCH)
        });
        over.store(true, Ordering::Release);
        let taken = reader.join().map_err(|_| io::Error::other("the reader panicked"))??;
        if taken == sent { measured } else { Err(io::ErrorKind::InvalidData.into()) }
    })
}

/// Measures how many frames per second one thread pushes and takes: without a line that moves.
fn within(setting: &Setting, size: usize) -> io::Result<Throughput> {
    let (mut tx, mut rx) = ring()?;
    let payload = vec![7; size];
    throughput(&setting.clock, setting.plan, || {
        for _ in 0..BATCH / FEW {
            push(&mut tx, &payload, FEW, || true)?;
            (0..FEW).try_for_each(|_| take(&mut rx, size).map(drop))?;
        }
        Ok(BATCH)
    })
}

fn ring() -> io::Result<(Tx, Rx)> {
    bare::ring(wide()?).map_err(io::Error::other)
}

fn push(tx: &mut Tx, payload: &[u8], count: u64, is_hopeless: impl Fn() -> bool) -> io::Result<()> {
    for _ in 0..count {
        while !tx.push(payload).map_err(io::Error::other)? {
            if is_hopeless() {
                return Err(io::Error::other("nobody takes the frames"));
            }
            std::hint::spin_loop();
        }
    }
    Ok(())
}

/// Takes a frame, if there is one; returns whether there was.
fn take(rx: &mut Rx, size: usize) -> io::Result<bool> {
    match rx.take().map_err(io::Error::other)? {
        Some(payload) if payload.len() == size => Ok(true),
        Some(_) => Err(io::ErrorKind::InvalidData.into()),
        None => Ok(false),
    }
}

fn take_until(rx: &mut Rx, size: usize, over: &AtomicBool) -> io::Result<u64> {
    let mut taken = 0;
    loop {
        // Looked at before the ring: what was pushed by then is taken.
        let is_over = over.load(Ordering::Acquire);
        let before = taken;
        while take(rx, size)? {
            taken += 1;
        }
        if taken == before && is_over {
            return Ok(taken);
        }
        // A reader that polls the line being written takes it from the writer for every frame.
        (0..8).for_each(|_| std::hint::spin_loop());
    }
}
