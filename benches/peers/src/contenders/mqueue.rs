//! POSIX message queues: one each way, with the limits that every user has.

use std::io;

use nix::errno::Errno;
use nix::mqueue::{
    MQ_OFlag, MqAttr, MqdT, mq_close, mq_open, mq_receive, mq_send, mq_set_nonblock, mq_unlink,
};
use nix::sys::stat::Mode;

use crate::contender::{Caller, Contender, Place, Waits, check, ready};

/// The largest of the measured sizes that is within the default `msgsize_max`, 8 KiB.
const LARGEST: usize = 4096;
/// The default `msg_max`.
const DEPTH: i64 = 10;

/// A pair of message queues.
#[derive(Debug)]
pub struct Mqueue {
    /// Polling queues do not block, and are tried again.
    pub waits: Waits,
}

struct Pair {
    outgoing: Option<MqdT>,
    incoming: Option<MqdT>,
    buffer: Vec<u8>,
}

impl Contender for Mqueue {
    fn name(&self) -> &'static str {
        "POSIX mq"
    }

    fn waits(&self) -> Waits {
        self.waits
    }

    fn largest(&self) -> usize {
        LARGEST
    }

    fn absent(&self) -> Option<String> {
        let name = format!("/peers-trial-{}", std::process::id());
        let opened = open(&name, MQ_OFlag::O_CREAT, self.waits);
        // It is there only when it was opened.
        let _ = mq_unlink(name.as_str());
        match opened.and_then(close) {
            Ok(()) => None,
            Err(error) => Some(format!("mq_open: {error}")),
        }
    }

    fn serve(&self, place: &Place) -> io::Result<()> {
        let [requests, answers] = names(place);
        let mut pair = Pair {
            outgoing: Some(open(&answers, MQ_OFlag::O_CREAT, self.waits)?),
            incoming: Some(open(&requests, MQ_OFlag::O_CREAT, self.waits)?),
            buffer: vec![0; LARGEST],
        };
        ready("")?;
        loop {
            let length = pair.receive()?;
            let payload = std::mem::take(&mut pair.buffer);
            pair.send(&payload[..length])?;
            pair.buffer = payload;
        }
    }

    fn connect(&self, place: &Place) -> io::Result<Box<dyn Caller>> {
        let [requests, answers] = names(place);
        Ok(Box::new(Pair {
            outgoing: Some(open(&requests, MQ_OFlag::empty(), self.waits)?),
            incoming: Some(open(&answers, MQ_OFlag::empty(), self.waits)?),
            buffer: vec![0; LARGEST],
        }))
    }

    fn clean(&self, place: &Place) {
        for name in names(place) {
            // One that was never made is gone, too.
            let _ = mq_unlink(name.as_str());
        }
    }
}

impl Caller for Pair {
    fn call(&mut self, request: &[u8], response: &mut [u8]) -> io::Result<()> {
        self.send(request)?;
        // A buffer shorter than the queue's longest message is refused: hence one more copy.
        let length = self.receive()?;
        check(length, response.len())?;
        response.copy_from_slice(&self.buffer[..length]);
        Ok(())
    }
}

impl Pair {
    fn send(&self, payload: &[u8]) -> io::Result<()> {
        let queue = self.outgoing.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        again(|| mq_send(queue, payload, 0))
    }

    fn receive(&mut self) -> io::Result<usize> {
        let Self { incoming, buffer, .. } = self;
        let queue = incoming.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        again(|| mq_receive(queue, buffer, &mut 0))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for queue in [self.outgoing.take(), self.incoming.take()].into_iter().flatten() {
            // Fails only for a descriptor that is none.
            let _ = mq_close(queue);
        }
    }
}

fn names(place: &Place) -> [String; 2] {
    ["requests", "answers"].map(|what| format!("/peers-{}-{what}", place.name()))
}

fn open(name: &str, create: MQ_OFlag, waits: Waits) -> io::Result<MqdT> {
    let attributes = MqAttr::new(0, DEPTH, LARGEST as i64, 0);
    let flags = MQ_OFlag::O_RDWR | MQ_OFlag::O_CLOEXEC | create;
    let queue = mq_open(name, flags, Mode::S_IRUSR | Mode::S_IWUSR, Some(&attributes))?;
    if waits == Waits::Polling {
        mq_set_nonblock(&queue)?;
    }
    Ok(queue)
}

fn close(queue: MqdT) -> io::Result<()> {
    Ok(mq_close(queue)?)
}

/// Tries until it would not block any more.
fn again<T>(mut once: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match once() {
            Err(Errno::EAGAIN) => std::hint::spin_loop(),
            Err(Errno::EINTR) => {}
            done => return Ok(done?),
        }
    }
}
