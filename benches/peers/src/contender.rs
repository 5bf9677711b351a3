//! What takes part: a server in the second process, and clients in the first.

use std::any::Any;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use serde::Serialize;

/// The largest payload of all.
pub const LARGEST: usize = 1 << 20;

/// Bytes at the front of every payload that are checked in every answer.
pub const STAMP: usize = 8;

/// What happens to a payload on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Payload {
    /// It comes from the caller's buffer, the server sends back all of it, and it ends in the
    /// caller's buffer.
    Copied,
    /// It is lent by the transport: the caller writes its first [`STAMP`] bytes, the server reads
    /// them and writes those of an answer of the same size, the caller reads these.
    InPlace,
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Copied => "copied",
            Self::InPlace => "in place",
        })
    }
}

/// How both sides wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Waits {
    /// They look again and again, and burn a CPU each.
    Polling,
    /// They sleep in the kernel.
    Sleeping,
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Polling => "polling",
            Self::Sleeping => "sleeping",
        })
    }
}

/// Where a server and its clients meet.
#[derive(Debug)]
pub struct Place {
    /// A directory of this measurement's own.
    pub directory: PathBuf,
    /// A sparse file of shared memory, [`mailbox::BYTES`](crate::contenders::mailbox::BYTES) long.
    pub shared: File,
    /// How many clients there are; when more than one, they share a CPU.
    pub clients: usize,
    /// What the server said when it was ready; empty in the server itself.
    pub greeting: String,
}

impl Place {
    /// Tells whether clients share a CPU, so that those who poll must give way.
    pub fn is_crowded(&self) -> bool {
        self.clients > 1
    }

    /// A name that no other measurement has at this time: the directory's.
    pub fn name(&self) -> String {
        self.directory
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().replace('.', ""))
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// A means of exchange.
pub trait Contender: Sync {
    /// The library or kernel interface, with what distinguishes this variant of it.
    fn name(&self) -> &'static str;

    /// What happens to payloads.
    fn payload(&self) -> Payload {
        Payload::Copied
    }

    /// How both sides wait.
    fn waits(&self) -> Waits;

    /// The largest payload that it carries with its default limits.
    fn largest(&self) -> usize {
        LARGEST
    }

    /// Whether many clients can share its server.
    fn takes_crowds(&self) -> bool {
        false
    }

    /// Says why it cannot take part on this machine, if so.
    fn absent(&self) -> Option<String> {
        None
    }

    /// Starts, in the first process, what the server needs; it lives as long as the result.
    ///
    /// # Errors
    /// Those of the library.
    fn prepare(&self, _: &Place) -> io::Result<Box<dyn Any>> {
        Ok(Box::new(()))
    }

    /// Plays the server in the second process: says by [`ready`] that clients may come, and answers
    /// until it is killed.
    ///
    /// # Errors
    /// Those of the library.
    fn serve(&self, place: &Place) -> io::Result<()>;

    /// Opens a client, on the thread that will use it.
    ///
    /// # Errors
    /// Those of the library.
    fn connect(&self, place: &Place) -> io::Result<Box<dyn Caller>>;

    /// Removes what a killed server has left outside of the directory.
    fn clean(&self, _: &Place) {}
}

/// One client.
pub trait Caller {
    /// Sends a request and takes the answer, which is as long.
    ///
    /// When the payload is [`Payload::InPlace`], only the first [`STAMP`] bytes of both are
    /// meaningful; the loans are as long as the buffers.
    ///
    /// # Errors
    /// Those of the library; `InvalidData` for an answer of another length.
    fn call(&mut self, request: &[u8], response: &mut [u8]) -> io::Result<()>;
}

/// Says that the server is ready; `greeting` is what clients need to know, on one line.
///
/// # Errors
/// `BrokenPipe` when nobody listens.
pub fn ready(greeting: &str) -> io::Result<()> {
    benches::pair::say(greeting)
}

/// Lets time pass between two looks: a pause of the processor, or, in a crowd, a turn for others.
#[inline]
pub fn idle(crowded: bool) {
    if crowded {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

/// Checks that an answer is as long as its request.
///
/// # Errors
/// `InvalidData` when not.
pub fn check(length: usize, wanted: usize) -> io::Result<()> {
    if length == wanted { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}
