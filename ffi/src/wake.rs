//! A descriptor that is readable when `ipc_poll` has work, be it in the core or held here.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
    },
};

use crate::error::Failure;

/// An epoll instance over the server's descriptor and an eventfd of ours; made when first needed,
/// since most processes need neither.
#[derive(Debug, Default)]
pub(crate) struct Wake(OnceLock<Both>);

#[derive(Debug)]
struct Both {
    epoll: Epoll,
    bell: EventFd,
    /// Whether the bell may ring. Set after it does, so that it never rings unknown for long.
    rings: AtomicBool,
}

impl Wake {
    /// Makes the descriptor readable. Async-signal-safe: a load and a write.
    pub(crate) fn ring(&self) {
        if let Some(both) = self.0.get() {
            // EAGAIN: it rings already.
            let _ = nix::unistd::write(&both.bell, &1_u64.to_ne_bytes());
            both.rings.store(true, Ordering::Release);
        }
    }

    /// Takes the ringing back. Costs a load when it does not ring.
    pub(crate) fn quiet(&self) {
        if let Some(both) = self.0.get()
            && both.rings.load(Ordering::Relaxed)
            && both.rings.swap(false, Ordering::Acquire)
        {
            // EAGAIN: it does not ring.
            let _ = both.bell.read();
        }
    }

    /// Gives the descriptor's number.
    pub(crate) fn fd(&self, server: BorrowedFd<'_>) -> Result<RawFd, Failure> {
        Ok(self.both(server)?.epoll.0.as_raw_fd())
    }

    /// Waits until the descriptor is readable, at most so long.
    pub(crate) fn wait(&self, server: BorrowedFd<'_>, timeout: Duration) -> Result<(), Failure> {
        // Rounded up, so as not to come back too early, and again.
        let millis = timeout.as_nanos().div_ceil(1_000_000);
        let timeout = EpollTimeout::from(u16::try_from(millis).unwrap_or(u16::MAX));
        match self.both(server)?.epoll.wait(&mut [EpollEvent::empty(); 2], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn both(&self, server: BorrowedFd<'_>) -> Result<&Both, Failure> {
        if let Some(both) = self.0.get() {
            return Ok(both);
        }
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        // It rings at first: something may have come before.
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = EventFd::from_value_and_flags(1, flags)?;
        for fd in [server, bell.as_fd()] {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        }
        // Of two threads that come here together one is too late, and closes its own again.
        Ok(self.0.get_or_init(|| Both { epoll, bell, rings: AtomicBool::new(true) }))
    }
}
