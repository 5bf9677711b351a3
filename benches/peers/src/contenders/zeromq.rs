//! `ZeroMQ`: REQ to REP over `ipc://`, by Debian's library, opened when the program runs, so that a
//! machine without it can run the rest.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::ptr::{self, NonNull};
use std::sync::{Arc, OnceLock};

use libloading::Library;

use crate::contender::{Caller, Contender, LARGEST, Place, Waits, check, ready};

const LIBRARY: &str = "libzmq.so.5";

// From zmq.h.
const ZMQ_REQ: c_int = 3;
const ZMQ_REP: c_int = 4;
const ZMQ_LINGER: c_int = 17;

/// `ZeroMQ` with one I/O thread, which runs on the CPU of its process.
#[derive(Debug)]
pub struct Zeromq;

/// The functions of the library that are used here, as `zmq.h` declares them.
struct Zmq {
    ctx_new: unsafe extern "C" fn() -> *mut c_void,
    ctx_term: unsafe extern "C" fn(*mut c_void) -> c_int,
    socket: unsafe extern "C" fn(*mut c_void, c_int) -> *mut c_void,
    close: unsafe extern "C" fn(*mut c_void) -> c_int,
    setsockopt: unsafe extern "C" fn(*mut c_void, c_int, *const c_void, usize) -> c_int,
    bind: unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int,
    connect: unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int,
    send: unsafe extern "C" fn(*mut c_void, *const c_void, usize, c_int) -> c_int,
    recv: unsafe extern "C" fn(*mut c_void, *mut c_void, usize, c_int) -> c_int,
    errno: unsafe extern "C" fn() -> c_int,
    strerror: unsafe extern "C" fn(c_int) -> *const c_char,
    // What the functions are in.
    _library: Library,
}

/// A context: its I/O thread serves all sockets of a process.
struct Context {
    zmq: &'static Zmq,
    raw: NonNull<c_void>,
}

/// A socket; used by the thread that made it.
struct Socket {
    context: Arc<Context>,
    raw: NonNull<c_void>,
}

// SAFETY: zmq_ctx_new(3): a context is thread safe and may be shared without locking.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Contender for Zeromq {
    fn name(&self) -> &'static str {
        "ZeroMQ"
    }

    fn waits(&self) -> Waits {
        Waits::Sleeping
    }

    fn takes_crowds(&self) -> bool {
        true
    }

    fn absent(&self) -> Option<String> {
        zmq().err().map(|error| format!("{error}; scripts/bench-peers.sh installs libzmq5"))
    }

    fn serve(&self, place: &Place) -> io::Result<()> {
        let socket = Socket::new(context()?, ZMQ_REP)?;
        socket.bind(&address(place)?)?;
        ready("")?;
        let mut buffer = vec![0; LARGEST];
        loop {
            let length = socket.receive(&mut buffer)?;
            socket.send(&buffer[..length])?;
        }
    }

    fn connect(&self, place: &Place) -> io::Result<Box<dyn Caller>> {
        let socket = Socket::new(context()?, ZMQ_REQ)?;
        socket.connect(&address(place)?)?;
        Ok(Box::new(socket))
    }
}

impl Caller for Socket {
    fn call(&mut self, request: &[u8], response: &mut [u8]) -> io::Result<()> {
        self.send(request)?;
        check(self.receive(response)?, request.len())
    }
}

fn address(place: &Place) -> io::Result<CString> {
    Ok(CString::new(format!("ipc://{}", place.path("zmq").display()))?)
}

/// Opens the library, once.
fn zmq() -> io::Result<&'static Zmq> {
    static OPENED: OnceLock<Result<Zmq, String>> = OnceLock::new();
    match OPENED.get_or_init(|| Zmq::open().map_err(|error| error.to_string())) {
        Ok(zmq) => Ok(zmq),
        Err(why) => Err(io::Error::new(io::ErrorKind::NotFound, why.clone())),
    }
}

/// Makes the process's context, once: a REQ socket for each client, one I/O thread for all.
fn context() -> io::Result<Arc<Context>> {
    static MADE: OnceLock<Arc<Context>> = OnceLock::new();
    if let Some(context) = MADE.get() {
        return Ok(Arc::clone(context));
    }
    let zmq = zmq()?;
    // SAFETY: the function takes nothing.
    let raw = NonNull::new(unsafe { (zmq.ctx_new)() }).ok_or_else(|| zmq.error())?;
    Ok(Arc::clone(MADE.get_or_init(|| Arc::new(Context { zmq, raw }))))
}

impl Zmq {
    fn open() -> Result<Zmq, libloading::Error> {
        // SAFETY: libzmq's initializers ask nothing of their caller.
        let library = unsafe { Library::new(LIBRARY) }?;
        // SAFETY: the types are those of zmq.h, whose version 5 of the interface keeps them; the
        // library stays open as long as the pointers, in the same struct.
        unsafe {
            Ok(Zmq {
                ctx_new: *library.get(b"zmq_ctx_new\0")?,
                ctx_term: *library.get(b"zmq_ctx_term\0")?,
                socket: *library.get(b"zmq_socket\0")?,
                close: *library.get(b"zmq_close\0")?,
                setsockopt: *library.get(b"zmq_setsockopt\0")?,
                bind: *library.get(b"zmq_bind\0")?,
                connect: *library.get(b"zmq_connect\0")?,
                send: *library.get(b"zmq_send\0")?,
                recv: *library.get(b"zmq_recv\0")?,
                errno: *library.get(b"zmq_errno\0")?,
                strerror: *library.get(b"zmq_strerror\0")?,
                _library: library,
            })
        }
    }

    /// The last error of the calling thread.
    fn error(&self) -> io::Error {
        // SAFETY: zmq_strerror(3) returns a string that lives as long as the library.
        let text = unsafe { CStr::from_ptr((self.strerror)((self.errno)())) };
        io::Error::other(text.to_string_lossy().into_owned())
    }

    fn checked(&self, status: c_int) -> io::Result<usize> {
        usize::try_from(status).map_err(|_| self.error())
    }
}

impl Socket {
    fn new(context: Arc<Context>, kind: c_int) -> io::Result<Socket> {
        let zmq = context.zmq;
        // SAFETY: the context is alive.
        let raw = NonNull::new(unsafe { (zmq.socket)(context.raw.as_ptr(), kind) })
            .ok_or_else(|| zmq.error())?;
        let socket = Socket { context, raw };
        let none: c_int = 0;
        // SAFETY: the socket is alive; the option is an int, as zmq_setsockopt(3) says.
        zmq.checked(unsafe {
            (zmq.setsockopt)(
                socket.raw.as_ptr(),
                ZMQ_LINGER,
                ptr::from_ref(&none).cast(),
                size_of::<c_int>(),
            )
        })?;
        Ok(socket)
    }

    fn bind(&self, address: &CStr) -> io::Result<usize> {
        let zmq = self.context.zmq;
        // SAFETY: the socket is alive, and the string ends in a zero.
        zmq.checked(unsafe { (zmq.bind)(self.raw.as_ptr(), address.as_ptr()) })
    }

    fn connect(&self, address: &CStr) -> io::Result<usize> {
        let zmq = self.context.zmq;
        // SAFETY: as above.
        zmq.checked(unsafe { (zmq.connect)(self.raw.as_ptr(), address.as_ptr()) })
    }

    fn send(&self, payload: &[u8]) -> io::Result<usize> {
        let zmq = self.context.zmq;
        // SAFETY: the socket is alive, and the library copies so many bytes before it returns.
        zmq.checked(unsafe {
            (zmq.send)(self.raw.as_ptr(), payload.as_ptr().cast(), payload.len(), 0)
        })
    }

    /// Returns the message's length: longer than the buffer when that was too short.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let zmq = self.context.zmq;
        // SAFETY: the socket is alive, and the library writes no more than so many bytes.
        zmq.checked(unsafe {
            (zmq.recv)(self.raw.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len(), 0)
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: the socket is alive, and this is its last use.
        unsafe { (self.context.zmq.close)(self.raw.as_ptr()) };
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: all sockets hold the context, so they are closed, and this is its last use.
        unsafe { (self.zmq.ctx_term)(self.raw.as_ptr()) };
    }
}
