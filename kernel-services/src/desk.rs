//! What the runtime's thread and who supervises say to each other. Neither waits for the other:
//! starting a process takes milliseconds, in which others want to be introduced.
//!
//! ```text
//!   broker ─ Notice ─▶ supervisor      a service is up; an operator wants something
//!   broker ◀─ Order ── supervisor      this process is that service; here is the answer
//! ```

use std::{
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixListener,
    },
    sync::{
        Arc,
        mpsc::{Receiver, Sender},
    },
};

use ipc::{ProcessEnd, ServiceId, trace::Context};
use nix::sys::eventfd::EventFd;

use crate::broker::{Law, Token};

/// One process of a supervised service, as the runtime knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// The supervisor's number for it; never reused.
    pub(crate) id: u32,
    /// Its service.
    pub(crate) service: Arc<str>,
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    /// When the process started, as `/proc` says: no other process has both.
    pub(crate) start_time: u64,
    /// The public half of the key that was made for it.
    pub(crate) key: Option<[u8; 32]>,
}

/// What the supervisor has the runtime do.
#[derive(Debug)]
#[cfg_attr(not(feature = "node"), allow(dead_code, reason = "an embedded runtime gets none"))]
pub(crate) enum Order {
    /// A process was started, with the other end of this socket.
    Admit { unit: Unit, socket: OwnedFd },
    /// A process of an earlier run lives; it will connect by itself.
    Expect { unit: Unit },
    /// Newcomers of another user come here.
    Listen { listener: UnixListener },
    /// Its process is gone, and how that ended, where it is known.
    Forget { unit: u32, end: Option<ProcessEnd> },
    /// The node file's rules and quotas hold from now on.
    Enact(Box<Law>),
    /// What an operator asked for.
    Answer { to: Token, sequence: u32, text: String },
}

/// What the runtime has to tell the supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A unit serves one more name.
    Registered { unit: u32, instance: ServiceId, name: String },
    /// It serves an instance no more.
    Unregistered { unit: u32, instance: ServiceId },
    /// An operator wants something; the trace is that within which it was asked for.
    Command { from: Token, sequence: u32, by: String, text: String, trace: Option<Context> },
}

/// One side of the desk: sends `S`, hears `R`, and can be waited for.
#[derive(Debug)]
pub(crate) struct Desk<S, R> {
    out: Sender<S>,
    bell: Arc<EventFd>,
    heard: Receiver<R>,
    own_bell: Arc<EventFd>,
}

/// The supervisor's side.
#[cfg(feature = "node")]
pub(crate) type SupervisorDesk = Desk<Order, Notice>;
/// The runtime's side.
pub(crate) type RuntimeDesk = Desk<Notice, Order>;

/// Makes both sides.
#[cfg(feature = "node")]
pub(crate) fn desk() -> Result<(SupervisorDesk, RuntimeDesk), nix::errno::Errno> {
    use nix::sys::eventfd::EfdFlags;
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let bells = [EventFd::from_flags(flags)?, EventFd::from_flags(flags)?].map(Arc::new);
    let [here, there] = bells;
    let ((out, heard_there), (out_there, heard)) =
        (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    let ours = Desk { out, bell: Arc::clone(&there), heard, own_bell: Arc::clone(&here) };
    Ok((ours, Desk { out: out_there, bell: here, heard: heard_there, own_bell: there }))
}

impl<S, R> Desk<S, R> {
    /// Says something. Nothing comes of it when the other side is gone.
    pub(crate) fn say(&self, what: S) {
        if self.out.send(what).is_ok() {
            // Fails only when it was rung 2^64 times and not heard.
            let _ = self.bell.write(1);
        }
    }

    /// Quiets the bell, and gives what was said since.
    pub(crate) fn hear(&self) -> Vec<R> {
        // Fails where nothing was said.
        let _ = self.own_bell.read();
        self.heard.try_iter().collect()
    }
}

impl<S, R> AsFd for Desk<S, R> {
    /// Readable when there is something to [`hear`](Desk::hear).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.own_bell.as_fd()
    }
}
