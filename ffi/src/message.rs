//! Messages in the hands of C: lent to a callback, retained beyond it, answered.
//!
//! C gets the address of a [`Page`], and only by that address is a message known again: the page
//! of the callback that runs on this thread, or one that the program retains. A copy of the
//! struct, or any other pointer, is refused without a look at what it points to.

#![allow(unsafe_code)] // pages that C reads, and a thread's pointer to what it has on its stack

mod page;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ffi::{c_int, c_void},
    ptr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipc_core::{Loan, Request, Retained, Status, Transport, View};

use self::page::{Page, Payload};
use crate::{
    boundary::{self, guard, guard_or},
    error::{Failure, IPC_OK},
    process::Process,
    runtime,
    types::{Message, MessageType, PriorityLevel},
};

/// Answers a call with size bytes; NULL with size 0 is an empty answer. Never waits: a caller that
/// does not take its answers has them queued up to a bound, and then loses its channel. A message
/// that was retained may be answered by any thread.
///
/// IPC_EINVAL: request is not the pointer that a handler got, or one that was retained; or it is a
/// one-way message, or a response. IPC_EALREADY: it was answered before. IPC_EMSGSIZE: size is over
/// the caller's max_payload; it is not answered yet. IPC_EPEERDIED: the caller is gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_reply(
    request: *const Message,
    data: *const c_void,
    size: usize,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        answer(request, Answer::Data(unsafe { boundary::bytes(data, size) }?))
    })
}

/// Ends the caller's call with an error: one of the service's own (at most IPC_EUSER, -1000), which
/// reaches the caller unchanged, or one of this header's.
///
/// IPC_EINVAL: status is neither; otherwise as ipc_reply.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_reply_error(request: *const Message, status: c_int) -> c_int {
    guard(|| {
        let status = Status::from_code(status);
        let is_error = status != Status::OK && Status::ALL.contains(&status);
        if !is_error && !status.is_user() {
            return Err(Status::INVALID.into());
        }
        answer(request, Answer::Error(status))
    })
}

/// Keeps a message beyond its callback, until the matching ipc_message_release; counted. Returns
/// msg, or NULL when that is not a message of a running callback, or one that is retained. Read
/// msg->payload anew: a long payload moves.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_message_retain(msg: *const Message) -> *const Message {
    guard_or(ptr::null(), || {
        let Ok(process) = Process::here() else { return ptr::null() };
        let retained = match with_current(msg, |current| current.retain(&process.kept)) {
            Some(retained) => retained,
            None => process.kept.add(msg),
        };
        if retained { msg } else { ptr::null() }
    })
}

/// Undoes one ipc_message_retain. The last one ends the message; if nobody answered it, its caller
/// gets IPC_ENOREPLY. NULL, or what is no retained message, is ignored.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_message_release(msg: *const Message) {
    guard_or((), || {
        if let Ok(process) = Process::here() {
            process.kept.release(msg);
        }
    });
}

/// A message whose payload the library owns.
#[derive(Debug)]
pub(crate) enum Owned {
    Request(Retained),
    Response(Vec<u8>),
}

impl Owned {
    fn payload(&self) -> &[u8] {
        match self {
            Owned::Request(request) => request.payload(),
            Owned::Response(payload) => payload,
        }
    }

    fn view(&self) -> Option<&View> {
        match self {
            Owned::Request(request) => request.view(),
            Owned::Response(_) => None,
        }
    }

    fn lend(&self, size: usize) -> Result<Loan, Failure> {
        match self {
            Owned::Request(request) => Ok(request.loan(size)?),
            Owned::Response(_) => Err(Status::INVALID.into()),
        }
    }

    fn answer(&self, answer: Answer<'_>) -> Result<(), Failure> {
        match (self, answer) {
            (Owned::Request(request), Answer::Data(data)) => Ok(request.reply(data)?),
            (Owned::Request(request), Answer::Loan(loan)) => Ok(request.reply_loaned(loan)?),
            (Owned::Request(request), Answer::Error(status)) => Ok(request.reply_error(status)?),
            (Owned::Response(_), _) => Err(Status::INVALID.into()),
        }
    }
}

/// What a callback is called with, beside its page.
#[derive(Debug)]
pub(crate) enum Body<'a> {
    /// A request as it comes from the ring.
    Fresh(Request<'a>),
    Owned(Owned),
    /// Retained by the callback that runs.
    Kept(Arc<Letter>),
    /// Only while a callback retains it.
    Moving,
}

impl Body<'_> {
    fn payload(&self) -> &[u8] {
        match self {
            Body::Fresh(request) => request.payload(),
            Body::Owned(owned) => owned.payload(),
            Body::Kept(letter) => letter.owned.payload(),
            Body::Moving => &[],
        }
    }

    fn view(&self) -> Option<&View> {
        match self {
            Body::Fresh(request) => request.view(),
            Body::Owned(owned) => owned.view(),
            Body::Kept(letter) => letter.owned.view(),
            Body::Moving => None,
        }
    }

    fn lend(&self, size: usize) -> Result<Loan, Failure> {
        match self {
            Body::Fresh(request) => Ok(request.loan(size)?),
            Body::Owned(owned) => owned.lend(size),
            Body::Kept(letter) => letter.owned.lend(size),
            Body::Moving => Err(Status::INVALID.into()),
        }
    }

    fn answer(&self, answer: Answer<'_>) -> Result<(), Failure> {
        match (self, answer) {
            (Body::Fresh(request), Answer::Data(data)) => Ok(request.reply(data)?),
            (Body::Fresh(request), Answer::Loan(loan)) => Ok(request.reply_loaned(loan)?),
            (Body::Fresh(request), Answer::Error(status)) => Ok(request.reply_error(status)?),
            (Body::Owned(owned), answer) => owned.answer(answer),
            (Body::Kept(letter), answer) => letter.owned.answer(answer),
            (Body::Moving, _) => Err(Status::INVALID.into()),
        }
    }
}

/// A retained message.
#[derive(Debug)]
pub(crate) struct Letter {
    page: Page,
    owned: Owned,
}

/// What a caller is answered with.
pub(crate) enum Answer<'a> {
    Data(&'a [u8]),
    Loan(Loan),
    Error(Status),
}

/// The message whose callback runs on this thread.
struct Current<'a> {
    address: *const Message,
    /// Moves into the letter when the message is retained.
    page: Cell<Option<Page>>,
    body: RefCell<Body<'a>>,
}

impl Current<'_> {
    /// Retains the message for the program, and once more for the callback that runs.
    fn retain(&self, kept: &Kept) -> bool {
        let mut body = self.body.borrow_mut();
        if matches!(*body, Body::Kept(_)) {
            return kept.add(self.address);
        }
        let Some(mut page) = self.page.take() else { return false };
        let owned = match std::mem::replace(&mut *body, Body::Moving) {
            Body::Fresh(request) => Owned::Request(request.retain()),
            Body::Owned(owned) => owned,
            Body::Kept(_) | Body::Moving => return false,
        };
        if !is_lent_to_c(owned.view()) {
            page.point_at(owned.payload());
        }
        let letter = Arc::new(Letter { page, owned });
        kept.insert(&letter);
        *body = Body::Kept(letter);
        true
    }
}

thread_local! {
    /// The page that this thread used last.
    static SPARE: Cell<Option<Page>> = const { Cell::new(None) };
    /// Points into the stack frame of whoever runs a callback, it runs, else NULL.
    static CURRENT: Cell<*const Current<'static>> = const { Cell::new(ptr::null()) };
}

/// Tells whether a callback runs on this thread.
pub(crate) fn in_callback() -> bool {
    CURRENT.try_with(|current| !current.get().is_null()).unwrap_or(false)
}

/// Runs a callback that gets no message.
pub(crate) fn run_callback(callback: impl FnOnce()) {
    let nothing =
        Current { address: ptr::null(), page: Cell::new(None), body: RefCell::new(Body::Moving) };
    run_with(&nothing, callback);
}

#[inline]
fn run_with(current: &Current<'_>, callback: impl FnOnce()) {
    struct Leave<'a>(&'a Cell<*const Current<'static>>);
    impl Drop for Leave<'_> {
        fn drop(&mut self) {
            self.0.set(ptr::null());
        }
    }
    CURRENT.with(|place| {
        let _leave = Leave(place);
        place.set(ptr::from_ref(current).cast());
        callback();
    });
}

/// Room for one message after another. Where there is none at hand, this thread's last is taken.
#[derive(Debug, Default)]
pub(crate) struct Desk(Option<Page>);

impl Desk {
    /// Runs a callback with a message. An unanswered request that was not retained is answered
    /// with `NO_REPLY` when it is dropped here.
    #[inline]
    pub(crate) fn deliver(
        &mut self,
        head: &Head,
        body: Body<'_>,
        callback: impl FnOnce(*const Message),
    ) {
        let mut page = self.0.take().unwrap_or_else(spare_page);
        page.write(
            head,
            match body.view() {
                Some(view) if is_lent_to_c(Some(view)) => Payload::Elsewhere(view.len()),
                _ => Payload::Bytes(body.payload()),
            },
        );
        let address = page.address();
        let current = Current { address, page: Cell::new(Some(page)), body: RefCell::new(body) };
        run_with(&current, || callback(address));
        self.0 = current.page.take();
        if self.0.is_none()
            && let Ok(process) = Process::here()
        {
            process.kept.release(address);
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if let Some(page) = self.0.take() {
            // A thread that is ending drops it.
            let _ = SPARE.try_with(|spare| spare.set(Some(page)));
        }
    }
}

#[cold]
fn spare_page() -> Page {
    SPARE.try_with(Cell::take).ok().flatten().unwrap_or_else(Page::new)
}

/// Runs `body` with the current message of this thread, if `msg` is it.
fn with_current<R>(msg: *const Message, body: impl FnOnce(&Current<'_>) -> R) -> Option<R> {
    let current = CURRENT.try_with(Cell::get).unwrap_or(ptr::null());
    // SAFETY: not NULL only while `run_with`, further up this thread's stack, runs its callback;
    // its `Current` lives until after that. The lifetime that was erased covers this call, and
    // `body` cannot keep what it is lent: it is generic over that lifetime.
    let current = unsafe { current.as_ref() }?;
    (current.address == msg).then(|| body(current))
}

/// Whether C reads this payload by ipc_message_read alone.
#[inline]
fn is_lent_to_c(view: Option<&View>) -> bool {
    view.is_some() && runtime::current().is_ok_and(|runtime| runtime.bulk_views)
}

/// Does something with a message that runs, or is retained.
fn with_message<R>(
    msg: *const Message,
    fresh: impl FnOnce(&Body<'_>) -> R,
    kept: impl FnOnce(&Owned) -> R,
) -> Result<R, Failure> {
    if msg.is_null() {
        return Err(Status::INVALID.into());
    }
    if let Some(done) = with_current(msg, |current| fresh(&current.body.borrow())) {
        return Ok(done);
    }
    runtime::current()?;
    let letter = Process::here()?.kept.find(msg).ok_or(Status::INVALID)?;
    Ok(kept(&letter.owned))
}

/// Lends memory for the answer to a request.
pub(crate) fn lend(msg: *const Message, size: usize) -> Result<Loan, Failure> {
    with_message(msg, |body| body.lend(size), |owned| owned.lend(size))?
}

/// Copies a part of a payload; returns how much there was.
pub(crate) fn read(
    msg: *const Message,
    offset: usize,
    target: &mut [u8],
) -> Result<usize, Failure> {
    let target = RefCell::new(target);
    with_message(
        msg,
        |body| part(body.view(), || body.payload(), offset, &mut target.borrow_mut()),
        |owned| part(owned.view(), || owned.payload(), offset, &mut target.borrow_mut()),
    )
}

/// Copies bytes from `offset` on, out of a view if there is one.
fn part<'a>(
    view: Option<&View>,
    payload: impl FnOnce() -> &'a [u8],
    offset: usize,
    target: &mut [u8],
) -> usize {
    if let Some(view) = view {
        return view.read_at(offset, target);
    }
    let rest = payload().get(offset..).unwrap_or(&[]);
    let length = rest.len().min(target.len());
    target[..length].copy_from_slice(&rest[..length]);
    length
}

/// Answers the caller of a message that runs, or is retained.
pub(crate) fn answer(msg: *const Message, answer: Answer<'_>) -> Result<c_int, Failure> {
    if msg.is_null() {
        return Err(Status::INVALID.into());
    }
    let mut answer = Some(answer);
    let answered = with_current(msg, |current| {
        answer.take().map(|answer| current.body.borrow().answer(answer))
    });
    match (answered.flatten(), answer) {
        (Some(answered), _) => answered?,
        (None, Some(answer)) => {
            runtime::current()?;
            let letter = Process::here()?.kept.find(msg).ok_or(Status::INVALID)?;
            letter.owned.answer(answer)?;
        }
        (None, None) => {}
    }
    Ok(IPC_OK)
}

/// The messages that a program retains, by their addresses.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<HashMap<usize, (Arc<Letter>, u32)>>);

impl Kept {
    /// Enters a letter with two holders: the program, and the callback in which it is retained.
    fn insert(&self, letter: &Arc<Letter>) {
        self.lock().insert(letter.page.address().addr(), (Arc::clone(letter), 2));
    }

    fn add(&self, msg: *const Message) -> bool {
        let mut letters = self.lock();
        let Some((_, holders)) = letters.get_mut(&msg.addr()) else { return false };
        match holders.checked_add(1) {
            Some(more) => *holders = more,
            None => return false,
        }
        true
    }

    fn find(&self, msg: *const Message) -> Option<Arc<Letter>> {
        self.lock().get(&msg.addr()).map(|(letter, _)| Arc::clone(letter))
    }

    fn release(&self, msg: *const Message) {
        let mut letters = self.lock();
        let Some((_, holders)) = letters.get_mut(&msg.addr()) else { return };
        *holders -= 1;
        if *holders == 0 {
            let last = letters.remove(&msg.addr());
            // Its drop may answer the caller: not under the lock.
            drop(letters);
            drop(last);
        }
    }

    /// Ends the callers' waiting when the runtime ends. The messages stay readable.
    pub(crate) fn answer_all(&self) {
        let letters: Vec<_> = self.lock().values().map(|(letter, _)| Arc::clone(letter)).collect();
        for letter in letters {
            // Fails where it was answered, or where nobody waits.
            let _ = letter.owned.answer(Answer::Error(Status::NO_REPLY));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, (Arc<Letter>, u32)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What differs from message to message, beside the payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) message_id: u64,
    pub(crate) source: u32,
    pub(crate) dest: u32,
    pub(crate) kind: MessageType,
    pub(crate) priority: PriorityLevel,
    pub(crate) timestamp: u64,
    pub(crate) deadline_ns: u64,
    /// At which a request was taken.
    pub(crate) epoch: u64,
    pub(crate) uid: u32,
    pub(crate) transport: Transport,
    /// Of the session, on an encrypted channel.
    pub(crate) fingerprint: Option<[u8; 32]>,
}

impl Head {
    /// Describes a request that was received.
    #[inline]
    pub(crate) fn of(request: &Request<'_>) -> Head {
        let peer = request.peer();
        let kind = if request.is_one_way() { MessageType::EVENT } else { MessageType::REQUEST };
        Head {
            message_id: request.message_id(),
            source: peer.id.get(),
            dest: request.dest().get(),
            kind,
            priority: request.priority().into(),
            timestamp: request.received_ns(),
            deadline_ns: request.deadline_ns().unwrap_or(0),
            epoch: request.epoch(),
            uid: peer.uid,
            transport: peer.transport,
            fingerprint: request.fingerprint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{page::INLINE, *};

    fn deliver(payload: &[u8], callback: impl FnOnce(*const Message)) {
        let head = Head {
            message_id: 1,
            source: 2,
            dest: 3,
            kind: MessageType::RESPONSE,
            priority: ipc_core::Priority::Normal.into(),
            timestamp: 4,
            deadline_ns: 5,
            epoch: 7,
            uid: 6,
            transport: Transport::Socket,
            fingerprint: None,
        };
        let body = Body::Owned(Owned::Response(payload.to_vec()));
        Desk::default().deliver(&head, body, callback);
    }

    fn bytes_of(msg: *const Message) -> Vec<u8> {
        // SAFETY: the tests pass messages that are lent or retained.
        let message = unsafe { *msg };
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(message.payload, message.payload_size as usize) }
            .to_vec()
    }

    #[test]
    fn a_callback_sees_its_message_and_is_known_to_run() {
        for size in [0, 1, INLINE, INLINE + 1, 5000] {
            let payload: Vec<u8> = (0..size).map(|at| at as u8).collect();
            let mut seen = None;
            assert!(!in_callback());
            deliver(&payload, |msg| {
                assert!(in_callback());
                seen = Some(bytes_of(msg));
            });
            assert_eq!(seen, Some(payload));
        }
        assert!(!in_callback());
    }

    #[test]
    fn a_message_names_its_trace_and_the_next_one_none() {
        let routing = || {
            let mut seen = None;
            // SAFETY: lent to this callback.
            deliver(b"x", |msg| seen = Some(unsafe { (*msg).routing }));
            seen.expect("delivered")
        };
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = text.parse().expect("a context");
        let traced = ipc_core::trace::within(context, routing);
        assert_eq!((traced.trace_id[0], traced.trace_id[15]), (0x0a, 0x9c));
        assert_eq!((traced.span_id[0], traced.span_id[7]), (0xb7, 0x31));
        let other = routing();
        assert_eq!((other.trace_id, other.span_id), ([0; 16], [0; 8]));
    }

    #[test]
    fn a_response_is_no_request_and_a_copy_no_message() {
        let _process = Process::here_or_new();
        deliver(b"pong", |msg| {
            // SAFETY: lent to this callback.
            let copy = unsafe { *msg };
            assert_eq!(ipc_reply_error(msg, -1000), Status::INVALID.code());
            // Not the one that is lent; whether it is retained is asked of a runtime.
            assert_eq!(ipc_reply_error(&raw const copy, -1000), Status::NOT_INIT.code());
            assert!(ipc_message_retain(&raw const copy).is_null());
        });
    }

    #[test]
    fn a_retained_message_stays_until_its_last_release() {
        let process = Process::here_or_new();
        let payload = vec![7; 300];
        let mut kept = ptr::null();
        deliver(&payload, |msg| {
            kept = ipc_message_retain(msg);
            assert_eq!(kept, msg);
            assert_eq!(ipc_message_retain(msg), msg);
            ipc_message_release(msg);
        });
        assert_eq!(bytes_of(kept), payload);
        ipc_message_release(kept);
        assert!(process.kept.find(kept).is_none());
        ipc_message_release(kept);
        assert!(ipc_message_retain(kept).is_null());
    }

    #[test]
    fn releasing_too_often_inside_the_callback_does_no_harm_there() {
        let _process = Process::here_or_new();
        deliver(b"still here", |msg| {
            ipc_message_retain(msg);
            for _ in 0..5 {
                ipc_message_release(msg);
            }
            assert_eq!(bytes_of(msg), b"still here");
        });
    }
}
