//! Events with a type: one topic for each.

use std::{marker::PhantomData, time::Duration};

use super::{
    PublishOptions, Publisher, SubscribeOptions, Subscription,
    error::{EventError, PublishError},
};
use crate::{Node, error::NodeError};

/// A type whose values are published as the events of one topic.
///
/// ```
/// use ipc::bus::TypedEvent;
///
/// struct BlockMined(u64);
///
/// impl TypedEvent for BlockMined {
///     const TOPIC: &'static str = "chain.block-mined";
///
///     fn encode(&self, out: &mut Vec<u8>) {
///         out.extend_from_slice(&self.0.to_le_bytes());
///     }
///
///     fn decode(bytes: &[u8]) -> Option<BlockMined> {
///         bytes.try_into().ok().map(u64::from_le_bytes).map(BlockMined)
///     }
/// }
/// ```
pub trait TypedEvent: Sized {
    /// The name of its topic.
    const TOPIC: &'static str;

    /// Appends its bytes.
    fn encode(&self, out: &mut Vec<u8>);

    /// Reads it; none for bytes that are none. They are a publisher's, who may lie.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

/// Publishes and subscribes to typed events. What it publishes goes by one publisher for each
/// type, made for the first event.
#[derive(Debug)]
pub struct EventBus {
    node: Node,
    publishers: std::sync::Mutex<Vec<(&'static str, Publisher)>>,
}

impl EventBus {
    /// Publishes and subscribes as this node.
    pub fn new(node: &Node) -> EventBus {
        EventBus { node: node.clone(), publishers: std::sync::Mutex::default() }
    }

    /// Publishes an event.
    ///
    /// # Errors
    /// Those of [`Node::publisher`], for the first event of its type; then those of
    /// [`Publisher::publish`].
    pub fn publish<E: TypedEvent>(&self, event: &E) -> Result<(), TypedError> {
        let mut payload = Vec::new();
        event.encode(&mut payload);
        let publisher = {
            let mut publishers =
                self.publishers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let known = publishers.iter().find(|(topic, _)| *topic == E::TOPIC);
            if let Some((_, publisher)) = known {
                publisher.clone()
            } else {
                let made = self.node.publisher(E::TOPIC, PublishOptions::default())?;
                publishers.push((E::TOPIC, made.clone()));
                made
            }
        };
        Ok(publisher.publish(&payload)?)
    }

    /// Subscribes to the events of a type.
    ///
    /// # Errors
    /// Those of [`Node::subscribe`].
    pub fn subscribe<E: TypedEvent>(
        &self,
        options: SubscribeOptions,
    ) -> Result<EventReceiver<E>, NodeError> {
        let subscription = self.node.subscribe(E::TOPIC, options)?;
        Ok(EventReceiver { subscription, payload: Vec::new(), event: PhantomData })
    }
}

/// Receives the events of a type.
#[derive(Debug)]
pub struct EventReceiver<E> {
    subscription: Subscription,
    payload: Vec<u8>,
    event: PhantomData<fn() -> E>,
}

impl<E: TypedEvent> EventReceiver<E> {
    /// Waits for the next event up to `timeout` (`None`: for ever).
    ///
    /// # Errors
    /// [`TypedError::Receive`]; [`TypedError::Undecodable`] for an event that is none of the type:
    /// it is passed over.
    pub fn recv(&mut self, timeout: Option<Duration>) -> Result<E, TypedError> {
        self.payload.clear();
        self.subscription.recv_into(&mut self.payload, timeout)?;
        E::decode(&self.payload).ok_or(TypedError::Undecodable)
    }

    /// Takes an event if one is there.
    ///
    /// # Errors
    /// As for [`recv`](EventReceiver::recv).
    pub fn try_recv(&mut self) -> Result<Option<E>, TypedError> {
        self.payload.clear();
        match self.subscription.try_recv_into(&mut self.payload)? {
            Some(_) => E::decode(&self.payload).map(Some).ok_or(TypedError::Undecodable),
            None => Ok(None),
        }
    }

    /// Waits, in a task of any executor, for the next event.
    ///
    /// # Errors
    /// As for [`recv`](EventReceiver::recv).
    pub async fn recv_async(&mut self) -> Result<E, TypedError> {
        let event = self.subscription.recv_async().await?;
        E::decode(&event.payload).ok_or(TypedError::Undecodable)
    }

    /// Gives the subscription, to receive bytes.
    pub fn into_inner(self) -> Subscription {
        self.subscription
    }
}

/// Explains why a typed event was not published or received.
#[derive(Debug, thiserror::Error)]
pub enum TypedError {
    /// There is no publisher.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// It was not published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// There is none.
    #[error(transparent)]
    Receive(#[from] EventError),
    /// Its bytes are not those of the type.
    #[error("the bytes of an event are none of its type")]
    Undecodable,
}
