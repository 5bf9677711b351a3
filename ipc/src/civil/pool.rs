//! Messages that are used again, with the memory they have.

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use crossbeam::queue::ArrayQueue;

/// Something that can be used again.
pub trait Reset {
    /// Makes it as if new, but for the memory that it holds.
    fn reset(&mut self);

    /// Says how many bytes it holds on to. Those with too many are not kept.
    fn held(&self) -> usize {
        size_of_val(self)
    }
}

impl Reset for Vec<u8> {
    fn reset(&mut self) {
        self.clear();
    }

    fn held(&self) -> usize {
        self.capacity()
    }
}

/// Keeps up to `capacity` messages that are not in use, of at most so many bytes each. All threads
/// of a process may share one, and nobody waits for another.
///
/// ```
/// use ipc::civil::MessagePool;
///
/// let pool: MessagePool<Vec<u8>> = MessagePool::new(16, 64 << 10);
/// let mut message = pool.lend();
/// message.extend_from_slice(b"hello");
/// let place = message.as_ptr();
/// drop(message);
///
/// let again = pool.get();
/// assert!(again.is_empty() && again.as_ptr() == place);
/// pool.return_message(again);
/// ```
pub struct MessagePool<M> {
    pool: ArrayQueue<M>,
    largest: usize,
}

impl<M: Reset + Default> MessagePool<M> {
    /// Keeps up to `capacity` messages (0 is as 1) that [hold](Reset::held) at most `largest`
    /// bytes each.
    pub fn new(capacity: usize, largest: usize) -> MessagePool<M> {
        MessagePool { pool: ArrayQueue::new(capacity.max(1)), largest }
    }

    /// Gives a message that is as if new.
    pub fn get(&self) -> M {
        self.pool.pop().unwrap_or_default()
    }

    /// Takes a message back, and resets it. Returns false when it was dropped: there were enough,
    /// or it was too large.
    pub fn return_message(&self, mut message: M) -> bool {
        message.reset();
        message.held() <= self.largest && self.pool.push(message).is_ok()
    }

    /// Gives a message that comes back by itself.
    pub fn lend(&self) -> Pooled<'_, M> {
        Pooled { message: Some(self.get()), pool: self }
    }
}

impl<M> MessagePool<M> {
    /// Counts the messages that lie unused.
    pub fn len(&self) -> usize {
        self.pool.len()
    }

    /// Tells whether none does.
    pub fn is_empty(&self) -> bool {
        self.pool.is_empty()
    }
}

impl<M> fmt::Debug for MessagePool<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessagePool")
            .field("unused", &self.pool.len())
            .field("capacity", &self.pool.capacity())
            .finish_non_exhaustive()
    }
}

/// A message of a pool, which goes back when dropped.
#[derive(Debug)]
pub struct Pooled<'a, M: Reset + Default> {
    /// Taken when dropped, and not before.
    message: Option<M>,
    pool: &'a MessagePool<M>,
}

impl<M: Reset + Default> Deref for Pooled<'_, M> {
    type Target = M;

    fn deref(&self) -> &M {
        self.message.as_ref().expect("it is there until dropped")
    }
}

impl<M: Reset + Default> DerefMut for Pooled<'_, M> {
    fn deref_mut(&mut self) -> &mut M {
        self.message.as_mut().expect("it is there until dropped")
    }
}

impl<M: Reset + Default> Drop for Pooled<'_, M> {
    fn drop(&mut self) {
        if let Some(message) = self.message.take() {
            self.pool.return_message(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn it_is_bounded_in_number_and_size() {
        let pool: MessagePool<Vec<u8>> = MessagePool::new(2, 100);
        assert!(pool.return_message(vec![1; 100]));
        assert!(!pool.return_message(Vec::with_capacity(101)), "too large");
        assert!(pool.return_message(vec![2; 10]));
        assert!(!pool.return_message(vec![3; 10]), "there are enough");
        assert_eq!(pool.len(), 2);
        assert!(pool.get().is_empty() && pool.get().is_empty() && pool.is_empty());
        assert_eq!(pool.get().capacity(), 0, "a new one");
    }

    #[test]
    fn no_thread_gets_what_another_has() {
        let pool: MessagePool<Vec<u8>> = MessagePool::new(4, 1024);
        thread::scope(|scope| {
            for mark in 0..4 {
                let pool = &pool;
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        let mut message = pool.lend();
                        assert!(message.is_empty());
                        message.extend_from_slice(&[mark; 64]);
                        thread::yield_now();
                        assert!(message.iter().all(|byte| *byte == mark));
                    }
                });
            }
        });
        assert!(pool.len() <= 4);
    }
}
