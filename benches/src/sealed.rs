//! Sealed frames through bare rings, between two threads: one way, and as calls.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ipc::PeerCorrupt;
use ipc::bare::{self, Rx, SealedRx, SealedTx, Tx};

use crate::calls::wide;
use crate::floor::Setting;
use crate::measure::{Latency, Throughput, latency, throughput};
use crate::pin;
use crate::report::Group;

/// What fits a sealed cell, what fits a plain one, one block, and what travels in the slab.
const SIZES: [usize; 4] = [32, 48, 64, 1024];
/// Frames between two looks at the clock.
const BATCH: u64 = 1024;

/// A ring's writing end, sealed or not.
trait Write: Send {
    fn push(&mut self, payload: &[u8]) -> Result<bool, PeerCorrupt>;
    /// While there is nothing else to do.
    fn prepare(&mut self);
}

/// A ring's reading end, sealed or not.
trait Read: Send {
    /// Takes a frame, if there is one: the length of its payload.
    fn take(&mut self) -> Result<Option<usize>, PeerCorrupt>;
    /// While there is nothing else to do.
    fn prepare(&mut self);
}

impl Write for Tx {
    fn push(&mut self, payload: &[u8]) -> Result<bool, PeerCorrupt> {
        Tx::push(self, payload)
    }

    fn prepare(&mut self) {}
}

impl Read for Rx {
    fn take(&mut self) -> Result<Option<usize>, PeerCorrupt> {
        Ok(Rx::take(self)?.map(<[u8]>::len))
    }

    fn prepare(&mut self) {}
}

impl Write for SealedTx {
    fn push(&mut self, payload: &[u8]) -> Result<bool, PeerCorrupt> {
        SealedTx::push(self, payload)
    }

    fn prepare(&mut self) {
        SealedTx::prepare(self);
    }
}

impl Read for SealedRx {
    fn take(&mut self) -> Result<Option<usize>, PeerCorrupt> {
        Ok(SealedRx::take(self)?.map(<[u8]>::len))
    }

    fn prepare(&mut self) {
        SealedRx::prepare(self);
    }
}

/// Runs the group.
///
/// # Errors
/// Those of the measurements.
pub fn group(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    let (plain, sealed) = (
        || bare::ring(wide()?).map_err(io::Error::other),
        |is_back| bare::sealed_ring(wide()?, is_back).map_err(io::Error::other),
    );
    Group::measure(
        "sealed ring",
        || setting.beside(),
        |ruler| {
            for size in SIZES {
                ruler.latency("call, plain", Some(size), || {
                    calls(setting, size, [plain()?, plain()?])
                })?;
                ruler.latency("call, sealed", Some(size), || {
                    calls(setting, size, [sealed(false)?, sealed(true)?])
                })?;
            }
            for size in SIZES {
                ruler.throughput("one way, plain", Some(size), || {
                    one_way(setting, size, plain()?)
                })?;
                ruler.throughput("one way, sealed", Some(size), || {
                    one_way(setting, size, sealed(false)?)
                })?;
            }
            Ok(())
        },
    )
}

/// Measures round trips: a frame there, one of the same size back.
fn calls<T: Write, R: Read>(
    setting: &Setting,
    size: usize,
    rings: [(T, R); 2],
) -> io::Result<Latency> {
    let [(mut asks, mut hears), (mut answers, mut gets)] = rings;
    let (payload, over) = (vec![7; size], AtomicBool::new(false));
    thread::scope(|scope| {
        let there = setting.placement.there;
        let (payload, over) = (&payload, &over);
        let server = scope.spawn(move || -> io::Result<()> {
            pin::pin_to(&[there])?;
            loop {
                if !wait(&mut hears, || answers.prepare(), size, over)? {
                    return Ok(());
                }
                send(&mut answers, payload)?;
            }
        });
        let measured = latency(&setting.clock, setting.plan, || {
            send(&mut asks, payload)?;
            let answered = wait(&mut gets, || asks.prepare(), size, over)?;
            if answered { Ok(()) } else { Err(io::Error::other("nobody answers")) }
        });
        over.store(true, Ordering::Release);
        server.join().map_err(|_| io::Error::other("the server panicked"))??;
        measured
    })
}

fn send(tx: &mut impl Write, payload: &[u8]) -> io::Result<()> {
    let is_sent = tx.push(payload).map_err(io::Error::other)?;
    if is_sent { Ok(()) } else { Err(io::Error::other("a ring that nobody empties")) }
}

/// Polls until a frame is there, which it takes; or until all is over.
fn wait(
    rx: &mut impl Read,
    mut meanwhile: impl FnMut(),
    size: usize,
    over: &AtomicBool,
) -> io::Result<bool> {
    loop {
        match rx.take().map_err(io::Error::other)? {
            Some(length) if length == size => return Ok(true),
            Some(_) => return Err(io::ErrorKind::InvalidData.into()),
            None if over.load(Ordering::Acquire) => return Ok(false),
            None => {
                rx.prepare();
                meanwhile();
                std::hint::spin_loop();
            }
        }
    }
}

/// Measures frames per second from this thread to one on the other CPU.
fn one_way<T: Write, R: Read>(
    setting: &Setting,
    size: usize,
    (mut tx, mut rx): (T, R),
) -> io::Result<Throughput> {
    let (payload, over) = (vec![7; size], AtomicBool::new(false));
    thread::scope(|scope| {
        let (there, over) = (setting.placement.there, &over);
        let reader = scope.spawn(move || -> io::Result<()> {
            pin::pin_to(&[there])?;
            while wait(&mut rx, || {}, size, over)? {}
            Ok(())
        });
        let measured = throughput(&setting.clock, setting.plan, || {
            for _ in 0..BATCH {
                while !tx.push(&payload).map_err(io::Error::other)? {
                    if reader.is_finished() {
                        return Err(io::Error::other("nobody takes the frames"));
                    }
                    tx.prepare();
                    std::hint::spin_loop();
                }
            }
            Ok(BATCH)
        });
        over.store(true, Ordering::Release);
        reader.join().map_err(|_| io::Error::other("the reader panicked"))??;
        measured
    })
}
