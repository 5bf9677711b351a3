//! What one process has of this library, found without a lock.
//!
//! A forked child inherits its parent's: locks that may be held for ever, channels that are not
//! its own. It must not touch them; its first `ipc_init` makes another beside it.

#![allow(unsafe_code)] // a pointer to what is never freed

use std::{
    ptr,
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicPtr, Ordering},
    },
};

use ipc_core::{Birth, Status};
use kernel_services::Succession;

use crate::{error::Failure, message::Kept, runtime::Runtime, stop::Stop};

/// What one process has.
#[derive(Debug)]
pub(crate) struct Process {
    birth: Birth,
    /// Held by the one `ipc_init` or `ipc_shutdown` that is under way.
    pub(crate) turn: Mutex<()>,
    active: RwLock<Option<Active>>,
    /// The messages that the program retains.
    pub(crate) kept: Kept,
    pub(crate) stop: Stop,
    /// The parent's, if it had one: out of use, never freed.
    _inherited: Option<&'static Process>,
}

/// A runtime in use.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) runtime: Arc<Runtime>,
    /// Runs the runtime that others connect to, when it is this process's turn.
    pub(crate) succession: Option<Succession>,
    /// `ipc_init` less `ipc_shutdown`.
    pub(crate) users: u32,
}

static PROCESS: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());

impl Process {
    /// Gives this process's.
    ///
    /// # Errors
    /// `NOT_INIT` before the first `ipc_init`; `FORKED` in a child that has not called it.
    pub(crate) fn here() -> Result<&'static Process, Failure> {
        match load() {
            None => Err(Status::NOT_INIT.into()),
            Some(process) if !process.birth.is_here() => Err(Status::FORKED.into()),
            Some(process) => Ok(process),
        }
    }

    /// Gives this process's, made now if need be.
    pub(crate) fn here_or_new() -> &'static Process {
        loop {
            let inherited = load();
            if let Some(process) = inherited.filter(|process| process.birth.is_here()) {
                return process;
            }
            let made = Box::into_raw(Box::new(Process {
                birth: Birth::now(),
                turn: Mutex::new(()),
                active: RwLock::new(None),
                kept: Kept::default(),
                stop: Stop::default(),
                _inherited: inherited,
            }));
            let before = inherited.map_or(ptr::null_mut(), |it| ptr::from_ref(it).cast_mut());
            let placed =
                PROCESS.compare_exchange(before, made, Ordering::AcqRel, Ordering::Acquire);
            if placed.is_err() {
                // Another thread was first.
                // SAFETY: made above, and nobody has seen it.
                drop(unsafe { Box::from_raw(made) });
            }
        }
    }

    /// The runtime in use, to look at.
    pub(crate) fn active(&self) -> RwLockReadGuard<'_, Option<Active>> {
        self.active.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runtime in use, to change. Only whoever has the turn does so.
    pub(crate) fn active_mut(&self) -> RwLockWriteGuard<'_, Option<Active>> {
        self.active.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn load() -> Option<&'static Process> {
    // SAFETY: NULL, or placed by `here_or_new`, after which it is never freed.
    unsafe { PROCESS.load(Ordering::Acquire).as_ref() }
}
