//! A Unix stream socket: a length of four bytes and the payload, in one gathered write and, when
//! it is there at once, one scattered read.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use crate::contender::{Caller, Contender, LARGEST, Place, Waits, check, ready};

const HEAD: usize = 4;

/// A stream socket.
#[derive(Debug)]
pub struct Stream {
    /// Polling reads and writes do not block, and are tried again.
    pub waits: Waits,
}

impl Contender for Stream {
    fn name(&self) -> &'static str {
        "Unix stream"
    }

    fn waits(&self) -> Waits {
        self.waits
    }

    fn takes_crowds(&self) -> bool {
        self.waits == Waits::Sleeping
    }

    fn serve(&self, place: &Place) -> io::Result<()> {
        let listener = UnixListener::bind(place.path("stream"))?;
        ready("")?;
        loop {
            let (stream, _) = listener.accept()?;
            let mut pipe = Pipe::new(stream, self.waits)?;
            // It ends when its client does.
            thread::spawn(move || pipe.echo());
        }
    }

    fn connect(&self, place: &Place) -> io::Result<Box<dyn Caller>> {
        let stream = UnixStream::connect(place.path("stream"))?;
        Ok(Box::new(Pipe::new(stream, self.waits)?))
    }
}

struct Pipe {
    stream: UnixStream,
}

impl Caller for Pipe {
    fn call(&mut self, request: &[u8], response: &mut [u8]) -> io::Result<()> {
        self.send(request)?;
        let length = self.receive(response)?;
        check(length, request.len())
    }
}

impl Pipe {
    fn new(stream: UnixStream, waits: Waits) -> io::Result<Pipe> {
        stream.set_nonblocking(waits == Waits::Polling)?;
        Ok(Pipe { stream })
    }

    fn echo(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; LARGEST];
        loop {
            let length = self.receive(&mut buffer)?;
            self.send(&buffer[..length])?;
        }
    }

    fn send(&mut self, payload: &[u8]) -> io::Result<()> {
        let head = (payload.len() as u32).to_le_bytes();
        let mut parts = [IoSlice::new(&head), IoSlice::new(payload)];
        let mut left = &mut parts[..];
        while !left.is_empty() {
            let sent = again(|| self.stream.write_vectored(left))?;
            IoSlice::advance_slices(&mut left, sent);
        }
        Ok(())
    }

    /// Receives one payload into the front of `buffer`; returns its length.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut head = [0; HEAD];
        let mut got = 0;
        while got < HEAD {
            let mut parts = [IoSliceMut::new(&mut head[got..]), IoSliceMut::new(buffer)];
            got += some(again(|| self.stream.read_vectored(&mut parts))?)?;
        }
        let length = u32::from_le_bytes(head) as usize;
        got -= HEAD;
        while got < length {
            let rest = buffer.get_mut(got..length).ok_or(io::ErrorKind::InvalidData)?;
            got += some(again(|| self.stream.read(rest))?)?;
        }
        check(got, length)?;
        Ok(length)
    }
}

fn some(bytes: usize) -> io::Result<usize> {
    if bytes > 0 { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Tries until it would not block any more; a blocking socket never would.
fn again(mut once: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match once() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
