//! A question to the runtime, and who sleeps until it has an answer.

use std::sync::Mutex;

use super::{
    core::{Answer, lock},
    refused,
};
use crate::{
    control::Reply,
    error::NodeError,
    sync::{AtomicU32, Ordering},
    wait::futex,
};

/// A question to the runtime, while it has no answer.
#[derive(Debug)]
pub(super) struct Ticket {
    done: AtomicU32,
    answer: Mutex<Option<Result<Answer, NodeError>>>,
}

impl Ticket {
    pub(super) fn new() -> Ticket {
        Ticket { done: AtomicU32::new(0), answer: Mutex::new(None) }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.done.load(Ordering::Acquire) == 1
    }

    /// What changes when it is settled.
    pub(super) fn word(&self) -> futex::Word<'_> {
        futex::Word { at: &self.done, value: 0, shared: false }
    }

    pub(super) fn settle(&self, answer: Result<Answer, NodeError>) {
        *lock(&self.answer) = Some(answer);
        self.done.store(1, Ordering::Release);
        futex::wake(&self.done, false, i32::MAX);
    }

    pub(super) fn take(&self) -> Result<Answer, NodeError> {
        loop {
            if let Some(answer) = lock(&self.answer).take() {
                return match answer {
                    Ok((reply @ Reply::Refused(_), _)) => Err(refused(&reply)),
                    other => other,
                };
            }
            // It is being settled: whoever took it out of the table is about to store it.
            futex::wait(self.word(), None);
        }
    }
}
