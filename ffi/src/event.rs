//! Events: published to whoever subscribes, handled inside ipc_poll and ipc_run.

#![allow(unsafe_code)] // exports, and calls into C

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::{c_int, c_void},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use ipc_core::{
    Node, Server, Status,
    bus::{EventError, EventHandler, PublishOptions, Publisher, SubscribeOptions},
};

use crate::{
    boundary::{self, UserData, guard},
    error::{Failure, IPC_OK},
    message::run_callback,
    runtime,
    types::{EventHandlerFunction, event_type_t},
};

/// Publishes an event to all who subscribe to its type, in whichever process: it is written once,
/// and takes the same time however many they are. Waits, for at most 100 ms, only for subscribers
/// of topics whose mode is reliable that are a whole ring behind. What is published can be read
/// until newer events take its place: the type's event_bus_size says how many stay, 10,000 of up to
/// 40 bytes by default.
///
/// IPC_EINVAL: type is 0, or data is NULL and size is not 0. IPC_EACCES: no rule allows it.
/// IPC_EMSGSIZE: longer than a quarter of the ring. IPC_EEXIST: the number is another topic's name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_broadcast_event(
    r#type: event_type_t,
    data: *const c_void,
    size: usize,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let payload = unsafe { boundary::bytes(data, size) }?;
        let runtime = runtime::current()?;
        let publisher = runtime.events.publisher(r#type, &runtime.node)?;
        match publisher.publish(payload) {
            Ok(()) => Ok(IPC_OK),
            Err(error) => {
                if error.status() == Status::ACCESS {
                    runtime.events.forget_publisher(r#type);
                }
                Err(error.status().into())
            }
        }
    })
}

/// Has events of a type, published from now on, handled by handler, with the user_data of
/// ipc_config_t. A handler replaces the one before. Handlers run inside ipc_poll and ipc_run only;
/// data is theirs until they return, and never NULL.
///
/// A program that is slower than its publishers loses events: see ipc_event_losses.
///
/// IPC_EINVAL: type is 0, or handler is NULL. IPC_EACCES: no rule allows it.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_subscribe_event(
    r#type: event_type_t,
    handler: EventHandlerFunction,
) -> c_int {
    guard(|| {
        let runtime = runtime::current()?;
        let handler = Handler::of(handler, runtime.settings.user_data)?;
        runtime.events.subscribe(r#type, handler, &runtime.node, &runtime.server)
    })
}

/// As ipc_subscribe_event, with a user_data of its own.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_subscribe_event_ex(
    r#type: event_type_t,
    handler: EventHandlerFunction,
    user_data: *mut c_void,
) -> c_int {
    guard(|| {
        let handler = Handler::of(handler, UserData(user_data))?;
        let runtime = runtime::current()?;
        runtime.events.subscribe(r#type, handler, &runtime.node, &runtime.server)
    })
}

/// Ends a subscription, though another thread may still be running its handler.
///
/// IPC_ENOENT: there is none to that type.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_unsubscribe_event(r#type: event_type_t) -> c_int {
    guard(|| {
        let runtime = runtime::current()?;
        let gone = runtime.events.subscriptions().remove(&r#type);
        gone.map(|_| IPC_OK).ok_or_else(|| Status::NOT_FOUND.into())
    })
}

/// Sets *lost to how many events of a type this process has lost since it subscribed: those that
/// were overwritten before it read them, and one for each publisher that it was cut off from.
///
/// IPC_ENOENT: there is no subscription to that type.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_event_losses(r#type: event_type_t, lost: *mut u64) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let out = unsafe { boundary::out(lost) }?;
        let runtime = runtime::current()?;
        let subscriptions = runtime.events.subscriptions();
        let subscription = subscriptions.get(&r#type).ok_or(Status::NOT_FOUND)?;
        out.set(subscription.seat.lost.load(Ordering::Relaxed));
        Ok(IPC_OK)
    })
}

/// What a runtime publishes and subscribes to, by type.
#[derive(Debug, Default)]
pub(crate) struct Events {
    publishers: RwLock<HashMap<u32, Publisher>>,
    subscriptions: Mutex<HashMap<u32, Subscribed>>,
}

#[derive(Debug)]
struct Subscribed {
    seat: Arc<Seat>,
    _handler: EventHandler,
}

/// What a subscription's callback has at hand.
#[derive(Debug)]
struct Seat {
    handler: Mutex<Handler>,
    lost: AtomicU64,
}

/// A handler with what it is called with.
#[derive(Clone, Copy, Debug)]
struct Handler {
    function: unsafe extern "C" fn(event_type_t, *const c_void, usize, *mut c_void),
    user_data: UserData,
}

impl Handler {
    fn of(function: EventHandlerFunction, user_data: UserData) -> Result<Handler, Failure> {
        let function = function.ok_or(Status::INVALID)?;
        Ok(Handler { function, user_data })
    }

    fn run(self, kind: event_type_t, payload: &[u8]) {
        run_callback(|| {
            let data = payload.as_ptr().cast();
            // SAFETY: C gave this function for this purpose; the bytes are lent until it returns.
            unsafe { (self.function)(kind, data, payload.len(), self.user_data.0) }
        });
    }
}

impl Events {
    fn publisher(&self, kind: u32, node: &Node) -> Result<Publisher, Failure> {
        if kind == 0 {
            return Err(Status::INVALID.into());
        }
        let known = self.publishers.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(publisher) = known.get(&kind) {
            return Ok(publisher.clone());
        }
        drop(known);
        // Without the lock: this waits for the runtime's answer.
        let made = node.publisher(kind, PublishOptions::default())?;
        let mut known = self.publishers.write().unwrap_or_else(PoisonError::into_inner);
        Ok(match known.entry(kind) {
            Entry::Occupied(first) => first.get().clone(),
            Entry::Vacant(place) => place.insert(made).clone(),
        })
    }

    fn forget_publisher(&self, kind: u32) {
        self.publishers.write().unwrap_or_else(PoisonError::into_inner).remove(&kind);
    }

    fn subscribe(
        &self,
        kind: u32,
        handler: Handler,
        node: &Node,
        server: &Server,
    ) -> Result<c_int, Failure> {
        if kind == 0 {
            return Err(Status::INVALID.into());
        }
        if let Some(known) = self.subscriptions().get(&kind) {
            *known.seat.handler() = handler;
            return Ok(IPC_OK);
        }
        // Without the lock, as above.
        let subscription = node.subscribe(kind, SubscribeOptions::default())?;
        let seat = Arc::new(Seat { handler: Mutex::new(handler), lost: AtomicU64::new(0) });
        let at = Arc::clone(&seat);
        let handling = server.handle_events(subscription, move |event| match event {
            Ok((_, payload)) => {
                let handler = *at.handler();
                handler.run(kind, payload);
            }
            Err(EventError::Lagged { count, .. }) => {
                at.lost.fetch_add(count, Ordering::Relaxed);
            }
            Err(_) => {
                at.lost.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut subscriptions = self.subscriptions();
        if let Some(first) = subscriptions.get(&kind) {
            // Another thread was quicker; the later handler counts.
            *first.seat.handler() = handler;
        } else {
            subscriptions.insert(kind, Subscribed { seat, _handler: handling });
        }
        Ok(IPC_OK)
    }

    fn subscriptions(&self) -> MutexGuard<'_, HashMap<u32, Subscribed>> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all of them.
    pub(crate) fn clear(&self) {
        let subscriptions = std::mem::take(&mut *self.subscriptions());
        drop(subscriptions);
        self.publishers.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Seat {
    fn handler(&self) -> MutexGuard<'_, Handler> {
        self.handler.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
