//! Messages on their way to their handlers, and those that wait for one.

#![allow(unsafe_code)] // exports, and calls into C

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ffi::{c_int, c_void},
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ipc_core::{Request, Retained, Status};
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
        time::TimeSpec,
    },
    time::{ClockId, clock_gettime},
};

use crate::{
    boundary::{UserData, guard},
    error::{Failure, IPC_OK},
    message::{self, Body, Owned},
    runtime,
    types::{Message, MessageHandler, service_id_t},
};
