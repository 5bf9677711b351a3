//! Answers as bytes, on their way to who asked.

use std::cell::RefCell;

use ipc::{
    CallError, Request, Retained, Status,
    queue::wire::{MESSAGE_BYTES, Message, encode_message},
};

use crate::{
    failpoint::{At, reach},
    machine::{Answer, Delivery, Refusal, Trouble},
};

/// What can be answered.
pub(crate) trait Answerable {
    /// Sends the response.
    ///
    /// # Errors
    /// Those of the request.
    fn reply(&self, payload: &[u8]) -> Result<(), CallError>;

    /// Refuses.
    ///
    /// # Errors
    /// Those of the request.
    fn refuse(&self, status: Status) -> Result<(), CallError>;
}

impl Answerable for Request<'_> {
    fn reply(&self, payload: &[u8]) -> Result<(), CallError> {
        Request::reply(self, payload)
    }

    fn refuse(&self, status: Status) -> Result<(), CallError> {
        self.reply_error(status)
    }
}

impl Answerable for Retained {
    fn reply(&self, payload: &[u8]) -> Result<(), CallError> {
        Retained::reply(self, payload)
    }

    fn refuse(&self, status: Status) -> Result<(), CallError> {
        self.reply_error(status)
    }
}

thread_local! {
    static BYTES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Answers a request. Who is gone hears nothing, and what was leased to it is given back when its
/// channel's end is heard.
pub(crate) fn send(to: &impl Answerable, answer: &Answer) {
    let _ = match answer {
        Answer::Stored(number) | Answer::Count(number) => to.reply(&number.to_le_bytes()),
        Answer::Settled(told) => {
            let told: Vec<u8> = told.iter().map(|it| *it as u8).collect();
            to.reply(&told)
        }
        Answer::Messages(messages) => BYTES.with_borrow_mut(|bytes| {
            lay_out(messages, bytes);
            let sent = to.reply(bytes);
            // One large answer is not to be paid for by all that come after.
            if bytes.capacity() > 1 << 20 {
                *bytes = Vec::new();
            }
            sent
        }),
        Answer::Refused(refusal) => to.refuse(status(*refusal)),
    };
    reach(match answer {
        Answer::Messages(_) => At::TakeAnswered,
        Answer::Settled(_) => At::AckAnswered,
        _ => At::PutAnswered,
    });
}

/// Lays messages out.
pub(crate) fn lay_out(messages: &[Delivery], bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.reserve(messages.iter().map(|it| MESSAGE_BYTES + it.payload.len()).sum());
    for it in messages {
        let message = Message {
            id: it.id,
            attempt: it.attempt,
            priority: it.priority,
            producer: it.producer,
            sequence: it.sequence,
            payload: &it.payload,
        };
        encode_message(&message, bytes);
    }
}

fn status(refusal: Refusal) -> Status {
    match refusal {
        Refusal::Full => Status::FULL,
        Refusal::TooLarge => Status::MESSAGE_SIZE,
        Refusal::Stale => Status::STALE,
        Refusal::Crowded => Status::QUOTA,
        Refusal::Trouble(Trouble::NoRoom) => Status::NO_MEMORY,
        Refusal::Trouble(Trouble::Broken) => Status::IO,
    }
}
