//! Messages on their way to their handlers, and those that wait for one.

#![allow(unsafe_code)] // exports, and calls into C

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ffi::{c_int, c_void},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use ipc_core::{Request, Retained, Status};
use nix::time::{ClockId, clock_gettime};

use crate::{
    boundary::{UserData, guard},
    error::IPC_OK,
    message::{Body, Desk, Head, Owned},
    runtime,
    types::{Message, MessageHandler, service_id_t},
    wake::Wake,
};

/// Has messages from source handled by handler, with the user_data of ipc_config_t. source is an
/// instance's id, a name's id, or 0 for anyone; a handler for an instance comes before one for its
/// name, and both before the one for anyone. A handler replaces the one before for the same
/// source; NULL removes it, though another thread may still be running it.
///
/// Handlers run inside ipc_poll and ipc_run only. Messages that find no handler are held until
/// there is one, up to 1024 of them and 16 MiB; the callers of more get IPC_EFULL, and one-way
/// messages beyond that are dropped.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_receive_async(source: service_id_t, handler: MessageHandler) -> c_int {
    guard(|| {
        let runtime = runtime::current()?;
        let handler = Handler::of(handler, runtime.settings.user_data);
        runtime.inbox.set_handler(source, handler);
        Ok(IPC_OK)
    })
}

/// As ipc_receive_async, with a user_data of its own.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_receive_async_ex(
    source: service_id_t,
    handler: MessageHandler,
    user_data: *mut c_void,
) -> c_int {
    guard(|| {
        let handler = Handler::of(handler, UserData(user_data));
        runtime::current()?.inbox.set_handler(source, handler);
        Ok(IPC_OK)
    })
}

/// Most messages that are held for want of a handler.
const MOST_HELD: usize = 1024;
/// Most bytes of their payloads.
const MOST_HELD_BYTES: usize = 16 << 20;

/// A handler with what it is called with.
#[derive(Clone, Copy, Debug)]
struct Handler {
    function: unsafe extern "C" fn(*const Message, *mut c_void),
    user_data: UserData,
}

impl Handler {
    fn of(function: MessageHandler, user_data: UserData) -> Option<Handler> {
        function.map(|function| Handler { function, user_data })
    }

    #[inline]
    fn run(self, desk: &mut Desk, head: &Head, body: Body<'_>) {
        desk.deliver(head, body, |msg| {
            // SAFETY: C gave this function for this purpose; `msg` is a message until it returns.
            unsafe { (self.function)(msg, self.user_data.0) }
        });
    }
}

/// Who handles what. Replaced as a whole, so that a loop reads it without a lock.
#[derive(Clone, Debug, Default)]
struct Handlers {
    anyone: Option<Handler>,
    by_source: HashMap<u32, Handler>,
}

impl Handlers {
    fn find(&self, source: u32, source_name: u32) -> Option<Handler> {
        if self.by_source.is_empty() {
            return self.anyone;
        }
        let specific = self.by_source.get(&source).or_else(|| self.by_source.get(&source_name));
        specific.copied().or(self.anyone)
    }
}

/// The handlers of a runtime, and the messages that wait for one.
#[derive(Debug)]
pub(crate) struct Inbox {
    handlers: RwLock<Arc<Handlers>>,
    /// Counts the changes of `handlers`.
    version: AtomicU64,
    held: Mutex<Held>,
    /// Messages held, and those of them that are being delivered.
    held_count: AtomicUsize,
    wake: Arc<Wake>,
}

#[derive(Debug, Default)]
struct Held {
    queue: VecDeque<HeldMessage>,
    bytes: usize,
    /// Sources of which a held message is being delivered: the next one has to wait for that.
    busy: HashSet<u32>,
}

#[derive(Debug)]
struct HeldMessage {
    head: Head,
    source_name: u32,
    request: Retained,
}

/// What a loop has at hand: the handlers as it last saw them, and room for their messages.
pub(crate) struct View {
    handlers: Arc<Handlers>,
    version: u64,
    desk: Desk,
}

impl Inbox {
    pub(crate) fn new() -> Inbox {
        Inbox {
            handlers: RwLock::default(),
            version: AtomicU64::new(0),
            held: Mutex::default(),
            held_count: AtomicUsize::new(0),
            wake: Arc::default(),
        }
    }

    pub(crate) fn wake(&self) -> &Arc<Wake> {
        &self.wake
    }

    fn set_handler(&self, source: u32, handler: Option<Handler>) {
        {
            let mut handlers = self.handlers.write().unwrap_or_else(PoisonError::into_inner);
            let mut changed = Handlers::clone(&handlers);
            match (source, handler) {
                (0, handler) => changed.anyone = handler,
                (_, Some(handler)) => {
                    changed.by_source.insert(source, handler);
                }
                (_, None) => {
                    changed.by_source.remove(&source);
                }
            }
            *handlers = Arc::new(changed);
            self.version.fetch_add(1, Ordering::Release);
        }
        if self.holds() {
            self.wake.ring();
        }
    }

    pub(crate) fn view(&self) -> View {
        let version = self.version.load(Ordering::Acquire);
        let handlers = self.handlers.read().unwrap_or_else(PoisonError::into_inner);
        View { handlers: Arc::clone(&handlers), version, desk: Desk::default() }
    }

    /// Whether messages wait here.
    #[inline]
    pub(crate) fn holds(&self) -> bool {
        self.held_count.load(Ordering::Acquire) > 0
    }

    /// Has a request handled, or keeps it until it can be. Returns whether a handler ran.
    #[inline]
    pub(crate) fn take(&self, view: &mut View, request: Request<'_>) -> bool {
        if view.version != self.version.load(Ordering::Acquire) {
            *view = self.view();
        }
        let head = Head::of(&request);
        let source_name = request.source_name().get();
        let handler = view.handlers.find(head.source, source_name);
        match handler {
            Some(handler) if !self.holds() => {
                handler.run(&mut view.desk, &head, Body::Fresh(request));
                true
            }
            _ => self.take_slowly(view, handler, head, source_name, request),
        }
    }

    #[cold]
    fn take_slowly(
        &self,
        view: &mut View,
        handler: Option<Handler>,
        head: Head,
        source_name: u32,
        request: Request<'_>,
    ) -> bool {
        let mut waiting = self.held();
        let source = head.source;
        let is_next = !waiting.busy.contains(&source)
            && !waiting.queue.iter().any(|message| message.head.source == source);
        if let Some(handler) = handler.filter(|_| is_next) {
            drop(waiting);
            handler.run(&mut view.desk, &head, Body::Fresh(request));
            return true;
        }
        let size = request.payload().len();
        if waiting.queue.len() >= MOST_HELD || waiting.bytes + size > MOST_HELD_BYTES {
            drop(waiting);
            // Fails for a one-way message, whose sender does not wait, and when the caller is gone.
            let _ = request.reply_error(Status::FULL);
            return false;
        }
        waiting.bytes += size;
        waiting.queue.push_back(HeldMessage { head, source_name, request: request.retain() });
        self.held_count.fetch_add(1, Ordering::Release);
        false
    }

    /// Delivers the held messages that have a handler by now. Returns how many.
    pub(crate) fn flush(&self) -> usize {
        // Before the look at the handlers: one that comes after it rings again.
        self.wake.quiet();
        if !self.holds() {
            return 0;
        }
        let mut desk = Desk::default();
        let mut delivered = 0;
        while let Some((handler, message)) = self.next_deliverable() {
            let source = message.head.source;
            if is_expired(&message.request) {
                // Fails when the caller is gone.
                let _ = message.request.reply_error(Status::TIMED_OUT);
            } else {
                let body = Body::Owned(Owned::Request(message.request));
                handler.run(&mut desk, &message.head, body);
                delivered += 1;
            }
            self.held().busy.remove(&source);
            self.held_count.fetch_sub(1, Ordering::Release);
        }
        delivered
    }

    /// Takes the first message that has a handler and may be delivered now.
    fn next_deliverable(&self) -> Option<(Handler, HeldMessage)> {
        let handlers = self.view().handlers;
        let mut held = self.held();
        let held = &mut *held;
        let (place, handler) = held.queue.iter().enumerate().find_map(|(place, message)| {
            let source = message.head.source;
            let handler = handlers.find(source, message.source_name)?;
            (!held.busy.contains(&source)).then_some((place, handler))
        })?;
        let message = held.queue.remove(place)?;
        held.bytes -= message.request.payload().len();
        held.busy.insert(message.head.source);
        Some((handler, message))
    }

    /// Forgets the handlers, and the messages that wait: their callers get `NO_REPLY`.
    pub(crate) fn clear(&self) {
        *self.handlers.write().unwrap_or_else(PoisonError::into_inner) = Arc::default();
        self.version.fetch_add(1, Ordering::Release);
        let waiting = std::mem::take(&mut self.held().queue);
        self.held_count.fetch_sub(waiting.len(), Ordering::Release);
        self.held().bytes = 0;
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether nobody waits for the answer any more.
fn is_expired(request: &Retained) -> bool {
    let now = || clock_gettime(ClockId::CLOCK_MONOTONIC).ok();
    request.deadline_ns().zip(now()).is_some_and(|(deadline, now)| {
        now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64 > deadline
    })
}
