//! Events in a server's loop: handled by the threads that run it, beside requests and completions.

use std::sync::{Arc, Mutex, Weak};

use super::{EventHead, error::EventError, listener::Alarm, subscription::Subscription};
use crate::{
    server::{Hub, Server, Source, unless_busy},
    sync::{AtomicBool, Ordering},
};

/// Events of one subscription that are handled before others have their turn.
const TURN: usize = 64;

/// What a handler gets: an event, or why there is none.
pub type EventResult<'a> = Result<(EventHead, &'a [u8]), EventError>;

/// A subscription whose events a loop handles; dropped, they are not handled any more, though
/// another thread may still be at the last one.
#[derive(Debug)]
pub struct EventHandler {
    handled: Arc<Handled>,
}

impl Drop for EventHandler {
    fn drop(&mut self) {
        self.handled.over.store(true, Ordering::SeqCst);
        if let Some(hub) = self.handled.hub.upgrade() {
            let source: Arc<dyn Source> = Arc::<Handled>::clone(&self.handled);
            hub.drop_source(&source);
        }
    }
}

/// A subscription in a loop.
pub(crate) struct Handled {
    hub: Weak<Hub>,
    stage: Mutex<Stage>,
    over: AtomicBool,
    /// Whether the alarm has rung since it was set.
    rang: AtomicBool,
    own: Weak<Handled>,
}

struct Stage {
    subscription: Subscription,
    payload: Vec<u8>,
    handler: Box<dyn FnMut(EventResult<'_>) + Send>,
}

impl std::fmt::Debug for Handled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handled")
    }
}

impl Server {
    /// Has this server's loop hand the events of a subscription to `handler`, one after another:
    /// as long as the returned value is kept. They make [`fd`](Server::fd) readable, too.
    ///
    /// After [`EventError::Revoked`] and [`EventError::Forked`] nothing more comes.
    pub fn handle_events(
        &self,
        subscription: Subscription,
        handler: impl FnMut(EventResult<'_>) + Send + 'static,
    ) -> EventHandler {
        let hub = self.hub();
        let source = Arc::new_cyclic(|own| Handled {
            hub: Arc::downgrade(hub),
            stage: Mutex::new(Stage {
                subscription,
                payload: Vec::new(),
                handler: Box::new(handler),
            }),
            over: AtomicBool::new(false),
            rang: AtomicBool::new(false),
            own: Weak::clone(own),
        });
        hub.add_source(Arc::<Handled>::clone(&source));
        EventHandler { handled: source }
    }
}

impl Alarm for Handled {
    fn ring(&self) {
        self.rang.store(true, Ordering::SeqCst);
        if let Some(hub) = self.hub.upgrade() {
            hub.kick();
        }
    }
}

impl Source for Handled {
    fn has_work(&self) -> bool {
        let is_over = self.over.load(Ordering::Relaxed);
        !is_over && unless_busy(&self.stage).is_some_and(|stage| !stage.subscription.is_quiet())
    }

    fn serve(&self) -> usize {
        let Some(mut stage) = unless_busy(&self.stage) else { return 0 };
        let Stage { subscription, payload, handler } = &mut *stage;
        let mut count = 0;
        while count < TURN && !self.over.load(Ordering::SeqCst) {
            payload.clear();
            match subscription.try_recv_into(payload) {
                Ok(None) => break,
                Ok(Some(head)) => handler(Ok((head, payload))),
                Err(error) => {
                    handler(Err(error));
                    if matches!(error, EventError::Revoked | EventError::Forked) {
                        self.over.store(true, Ordering::SeqCst);
                    }
                }
            }
            count += 1;
        }
        count
    }

    fn arm(&self) -> bool {
        if self.over.load(Ordering::SeqCst) {
            return true;
        }
        self.rang.store(false, Ordering::SeqCst);
        // Who is at it kicks the loop when it is done.
        let Some(mut stage) = unless_busy(&self.stage) else { return true };
        let Some(alarm) = self.own.upgrade() else { return true };
        stage.subscription.set_alarm(alarm) && !self.rang.load(Ordering::SeqCst)
    }
}
