//! Messages to services by their names: without an answer, or with one.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{Caller, Method, call::RpcOptions, fault::RpcError, prost::Message};
use crate::{Client, Node, error::CallError};

/// Services whose clients are kept. Beyond, the one that was asked for longest ago is let go of.
const MOST: usize = 256;

/// Sends typed messages to services by their names, so that who sends holds no client of each.
/// (Events for whoever listens are [`EventBus`](crate::bus::EventBus)'s.)
///
/// A client is opened at the first message to a name and kept; names may be
/// [addresses](crate::Address). Who calls one service often is better served by its own client,
/// which `ipc-build` makes.
///
/// ```ignore
/// let bus = MessageBus::new(&node);
/// bus.send("audit", audit_methods::NOTE, &Note { text: "begun".into() }, second)?;
/// let book: Book = bus.request("shelf", shelf_methods::FIND, &title, second)?;
/// ```
#[derive(Debug)]
pub struct MessageBus {
    node: Node,
    /// By name; the one that was used last stands last.
    clients: Mutex<VecDeque<(String, Client)>>,
}

impl MessageBus {
    /// Sends as this node.
    pub fn new(node: &Node) -> MessageBus {
        MessageBus { node: node.clone(), clients: Mutex::default() }
    }

    /// Sends a message that is not answered, and returns when it is in the service's ring, in the
    /// order of this sender's other messages to it. The service carries the method out as if it
    /// were called; what it answers is dropped.
    ///
    /// # Errors
    /// [`RpcError`] when it was not sent: nobody serves the name, it is not allowed, or there was
    /// no room until the timeout.
    pub fn send(
        &self,
        target: &str,
        method: Method,
        message: &impl Message,
        options: impl Into<RpcOptions>,
    ) -> Result<(), RpcError> {
        let options = options.into();
        let client = self.client(target)?;
        options.encoded(method.id, message, |bytes| client.send(bytes, options.call))?;
        Ok(())
    }

    /// Sends a request, and waits for its answer.
    ///
    /// # Errors
    /// [`RpcError`].
    pub fn request<R: Message + Default>(
        &self,
        target: &str,
        method: Method,
        request: &impl Message,
        options: impl Into<RpcOptions>,
    ) -> Result<R, RpcError> {
        Caller::new(self.client(target)?).unary(method, request, options)
    }

    fn client(&self, target: &str) -> Result<Client, RpcError> {
        if let Some(client) = used(&mut self.lock(), target) {
            return Ok(client);
        }
        // Without the lock: this waits for the service's answer.
        let opened = self.node.discover(target).and_then(|id| self.node.client(id));
        let opened = opened.map_err(CallError::from)?;
        let mut clients = self.lock();
        if let Some(client) = used(&mut clients, target) {
            return Ok(client);
        }
        if clients.len() >= MOST {
            clients.pop_front();
        }
        clients.push_back((target.to_owned(), opened.clone()));
        Ok(opened)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(String, Client)>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds the client of a name, which was used last from then on.
fn used(clients: &mut VecDeque<(String, Client)>, target: &str) -> Option<Client> {
    let place = clients.iter().position(|(name, _)| name == target)?;
    let found = clients.remove(place)?;
    let client = found.1.clone();
    clients.push_back(found);
    Some(client)
}
