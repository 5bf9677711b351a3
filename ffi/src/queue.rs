//! Reliable queues: putting messages in, and taking them out.

#![allow(unsafe_code)] // exports

use std::{
    collections::HashMap,
    ffi::{c_char, c_int, c_void},
    ptr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use ipc_core::{
    Status, WaitHandler,
    queue::{Delivery, QueueConsumer, QueueError, QueueProducer, SendOptions},
};

use crate::{
    boundary::{self, UserData, guard},
    error::{Failure, IPC_OK},
    message::run_callback,
    response::Buffer,
    runtime::{self, Runtime},
    types::{IPC_WAIT_FOREVER, PriorityLevel},
};

/// Names a queue that this process has opened; never given twice.
#[allow(non_camel_case_types)] // its name in C
pub type queue_id_t = u64;

/// Flag of ipc_queue_open: dead letters are taken, instead of messages.
pub const IPC_QUEUE_DEAD: u32 = 1;

/// Most queues that a process has open.
const MOST: usize = 4096;
/// Of these, whose messages handlers get: each has a thread.
const MOST_HANDLED: u32 = 64;
/// How long storing may take when nothing else is said.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than any process runs, and no more than clocks can count.
const FOREVER: Duration = Duration::from_hours(100 * 365 * 24);

/// A message that was received, for ipc_queue_ack and the like.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct QueueDelivery {
    /// Of the message in its queue; never another's.
    pub message_id: u64,
    /// Who sent it. With sequence it names the message wherever it was sent from.
    pub producer: u64,
    /// The sender's own number for it.
    pub sequence: u64,
    /// How often it was given out, with this time.
    pub attempt: u32,
    /// Its priority.
    pub priority: u32,
}

/// Handles a message of a queue: size bytes at data, until it returns; delivery is for
/// ipc_queue_ack and the like, and may be copied. status is not IPC_OK when no more will come, and
/// data and delivery are NULL then.
pub type DeliveryHandler = Option<
    unsafe extern "C" fn(
        queue: queue_id_t,
        status: c_int,
        data: *const c_void,
        size: usize,
        delivery: *const QueueDelivery,
        user_data: *mut c_void,
    ),
>;

/// Opens a queue of the service "ipc.queue", to send, to receive or both. Its name has 1 to 64
/// letters, digits, - _ and . and begins with a letter or a digit. flags is 0, or IPC_QUEUE_DEAD.
///
/// IPC_EINVAL: a NULL, no valid name, an unknown flag. IPC_ENOENT: there is no such queue, and none
/// may be made. IPC_EACCES: this process has no right to it. IPC_EQUOTA: 4096 are open already.
/// IPC_ETIMEDOUT: nobody serves queues for 30 s. IPC_ENORUNTIME: ipcd is gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_queue_open(
    queue_name: *const c_char,
    flags: u32,
    queue: *mut queue_id_t,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 to 3 of the boundary.
        let (name, queue) = unsafe { (boundary::name(queue_name)?, boundary::out(queue)?) };
        if flags & !IPC_QUEUE_DEAD != 0 {
            return Err(Status::INVALID.into());
        }
        let runtime = runtime::current()?;
        let producer = QueueProducer::open(&runtime.node, name)?;
        let open = Open {
            name: name.to_owned(),
            dead: flags & IPC_QUEUE_DEAD != 0,
            producer,
            consumer: Mutex::new(None),
            is_closed: AtomicBool::new(false),
            handled: Mutex::new(None),
        };
        queue.set(runtime.queues.add(open)?);
        Ok(IPC_OK)
    })
}

/// Sends a message, and waits until it is stored: it is given to a consumer at least once from then
/// on, whoever crashes. timeout_ms: how long that may take, room in a full queue included; with 0
/// a full queue is IPC_EFULL at once, and all else may take 30 s. While ipc-queue is restarted that
/// is waited for, and the message is stored once. *message_id is its id in the queue, 0 where an
/// attempt whose answer was lost had stored it; message_id may be NULL.
///
/// IPC_EINVAL: a NULL, no such priority. IPC_ENOENT: no such open queue. IPC_EFULL: the queue is
/// full. IPC_EMSGSIZE: it takes no message as large. IPC_ENOMEM: there is no room to store it.
/// IPC_EACCES. IPC_EQUOTA: too many wait for room. With these it was not stored. IPC_ETIMEDOUT: it
/// may have been. IPC_EIO: the disk failed, and it may have been: nobody can say before ipc-queue
/// is restarted. IPC_ECANCELED: ipc_shutdown was called; it may have been.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_queue_send(
    queue: queue_id_t,
    data: *const c_void,
    size: usize,
    priority: PriorityLevel,
    timeout_ms: u32,
    message_id: *mut u64,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let (data, message_id) =
            unsafe { (boundary::bytes(data, size)?, boundary::optional_out(message_id)) };
        let priority = priority.priority().ok_or(Status::INVALID)?;
        let timeout = match timeout_ms {
            0 => PATIENCE,
            IPC_WAIT_FOREVER => FOREVER,
            ms => Duration::from_millis(ms.into()),
        };
        let waits_for_room = timeout_ms != 0;
        let options = SendOptions { priority, timeout, waits_for_room, ..SendOptions::default() };
        let open = runtime::current()?.queues.get(queue)?;
        let receipt = open.producer.send(data, &options)?;
        if let Some(message_id) = message_id {
            message_id.set(receipt.id);
        }
        Ok(IPC_OK)
    })
}

/// Takes the next message, waiting up to timeout_ms for one, and a second more at most where
/// ipc-queue is there and does not answer; IPC_WAIT_FOREVER for as long as it takes. *data is freed
/// by ipc_free. The message is this process's for the queue's lease, and is given to others after
/// that, unless it is acknowledged or extended; and at once if this process dies or closes the
/// queue. Threads that wait on one queue are served one after another, and none waits longer than
/// it said. The first call for a queue may take 30 s to find who serves it.
///
/// IPC_EINVAL: a NULL. IPC_ENOENT: no such open queue. IPC_ETIMEDOUT: no message came. IPC_EACCES.
/// IPC_EQUOTA: too many wait for messages. IPC_ECANCELED: ipc_shutdown was called, or the queue was
/// closed meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_queue_receive(
    queue: queue_id_t,
    data: *mut *mut c_void,
    size: *mut usize,
    delivery: *mut QueueDelivery,
    timeout_ms: u32,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let (data, size, delivery) =
            unsafe { (boundary::out(data)?, boundary::out(size)?, boundary::out(delivery)?) };
        let runtime = runtime::current()?;
        let consumer = runtime.queues.get(queue)?.consumer(&runtime)?;
        let it = consumer.receive(wait_of(timeout_ms))?.ok_or(Status::TIMED_OUT)?;
        delivery.set(described(&it));
        size.set(it.payload().len());
        data.set(Buffer::of(it.payload()).into_c());
        Ok(IPC_OK)
    })
}

/// Acknowledges a message that ipc_queue_receive gave: when this returns IPC_OK it is gone for
/// good.
///
/// IPC_EINVAL: a NULL. IPC_ENOENT: no such open queue. IPC_ESTALE: the message is not this
/// process's any more. IPC_ENOMEM: that could not be stored, and it is not acknowledged. IPC_EIO:
/// the disk failed. IPC_ETIMEDOUT. With these two it may be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_queue_ack(queue: queue_id_t, delivery: *const QueueDelivery) -> c_int {
    // SAFETY: the caller's promises are the same.
    unsafe { settle(queue, delivery, QueueConsumer::ack) }
}

/// Gives a message back, for this or another process to try again, not before delay_ms. After the
/// queue's attempts it is a dead letter instead.
///
/// As ipc_queue_ack.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_queue_nack(
    queue: queue_id_t,
    delivery: *const QueueDelivery,
    delay_ms: u32,
) -> c_int {
    let delay = Duration::from_millis(delay_ms.into());
    // SAFETY: the caller's promises are the same.
    unsafe { settle(queue, delivery, |consumer, it| consumer.nack(it, delay)) }
}

/// Keeps a message for lease_ms from now on, instead of what is left of its lease.
///
/// As ipc_queue_ack.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_queue_extend(
    queue: queue_id_t,
    delivery: *const QueueDelivery,
    lease_ms: u32,
) -> c_int {
    let lease = Duration::from_millis(lease_ms.into());
    // SAFETY: the caller's promises are the same.
    unsafe { settle(queue, delivery, |consumer, it| consumer.extend(it, lease)) }
}

/// Has the messages of a queue handled by handler, one after another, inside ipc_poll and ipc_run:
/// as if ipc_queue_receive were called for each. They make ipc_fd readable. The handler, or who it
/// tells, acknowledges each; it may do so at once, within the handler. A handler replaces the one
/// before; NULL ends that, and a message that has come and is not handled yet is given to others
/// when the queue is closed, or its lease ends. When messages cannot be received any more the
/// handler is told so by its status, and not called again. A restart of ipc-queue is waited for. A
/// thread waits on behalf of each queue; at most 64 are handled so.
///
/// IPC_ENOENT: no such open queue. IPC_EACCES. IPC_EQUOTA: 64 are handled. IPC_ESYS: there is no
/// thread to be had.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_queue_handle(
    queue: queue_id_t,
    handler: DeliveryHandler,
    user_data: *mut c_void,
) -> c_int {
    guard(|| {
        let runtime = runtime::current()?;
        let open = runtime.queues.get(queue)?;
        // Outside the lock: its end takes a lock of the loop's, whose handlers may be here, too.
        let before = open.handled().take();
        drop(before);
        let Some(function) = handler else { return Ok(IPC_OK) };
        let consumer = open.consumer(&runtime)?;
        let place = runtime.queues.place()?;
        let user_data = UserData(user_data);
        let handling = runtime.server.handle_deliveries(&consumer, move |delivered| {
            let user_data = user_data;
            let (status, data, size, delivery) = match &delivered {
                Ok(it) => {
                    (IPC_OK, it.payload().as_ptr().cast(), it.payload().len(), Some(described(it)))
                }
                Err(error) => (error.status().code(), ptr::null(), 0, None),
            };
            let delivery = delivery.as_ref().map_or(ptr::null(), ptr::from_ref);
            run_callback(|| {
                // SAFETY: C gave this function for this purpose; what it gets is lent to it.
                unsafe { function(queue, status, data, size, delivery, user_data.0) }
            });
        });
        let now = Handled { _handler: handling?, _place: place };
        // Of two at once one is replaced by the other.
        let before = open.handled().replace(now);
        drop(before);
        if open.is_closed.load(Ordering::SeqCst) {
            let late = open.handled().take();
            drop(late);
        }
        Ok(IPC_OK)
    })
}

/// Closes a queue. What was received and not acknowledged is given to others at once. A thread that
/// waits in ipc_queue_receive is told IPC_ECANCELED. It may take a second where ipc-queue does not
/// answer.
///
/// IPC_ENOENT: no such open queue.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_queue_close(queue: queue_id_t) -> c_int {
    guard(|| {
        let open = runtime::current()?.queues.remove(queue)?;
        let handled = open.handled().take();
        drop(handled);
        open.close();
        Ok(IPC_OK)
    })
}

/// # Safety
/// Clauses 1 and 3 of the boundary.
unsafe fn settle(
    queue: queue_id_t,
    delivery: *const QueueDelivery,
    how: impl FnOnce(&QueueConsumer, &Delivery) -> Result<(), QueueError>,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary; a delivery has nothing but numbers.
        let delivery = unsafe { boundary::value(delivery)? };
        let runtime = runtime::current()?;
        let consumer = runtime.queues.get(queue)?.consumer(&runtime)?;
        how(&consumer, &Delivery::from_parts(delivery.message_id, delivery.attempt))?;
        Ok(IPC_OK)
    })
}

fn wait_of(timeout_ms: u32) -> Option<Duration> {
    (timeout_ms != IPC_WAIT_FOREVER).then(|| Duration::from_millis(timeout_ms.into()))
}

fn described(it: &Delivery) -> QueueDelivery {
    QueueDelivery {
        message_id: it.id(),
        producer: it.producer(),
        sequence: it.sequence(),
        attempt: it.attempt(),
        priority: u32::from(it.priority()),
    }
}

/// A queue that C has opened.
#[derive(Debug)]
struct Open {
    name: String,
    dead: bool,
    producer: QueueProducer,
    /// Made when something is first received.
    consumer: Mutex<Option<Arc<QueueConsumer>>>,
    is_closed: AtomicBool,
    /// While a handler gets its messages.
    handled: Mutex<Option<Handled>>,
}

/// That a handler gets a queue's messages, and its place among those that do.
#[derive(Debug)]
struct Handled {
    _handler: WaitHandler,
    _place: Place,
}

/// One of the queues that are handled, as long as it is kept.
#[derive(Debug)]
struct Place(Arc<AtomicU32>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Open {
    fn handled(&self) -> MutexGuard<'_, Option<Handled>> {
        self.handled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn consumer(&self, runtime: &Runtime) -> Result<Arc<QueueConsumer>, Failure> {
        let consumer = self.opened(runtime)?;
        // Who closed it meanwhile may have found none, or the lock taken.
        if self.is_closed.load(Ordering::SeqCst) {
            consumer.close();
            return Err(Status::NOT_FOUND.into());
        }
        Ok(consumer)
    }

    fn opened(&self, runtime: &Runtime) -> Result<Arc<QueueConsumer>, Failure> {
        let mut consumer = self.consumer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(consumer) = &*consumer {
            return Ok(Arc::clone(consumer));
        }
        let made = QueueConsumer::open(&runtime.node, &self.name)?;
        let made = Arc::new(if self.dead { made.of_dead_letters() } else { made });
        *consumer = Some(Arc::clone(&made));
        Ok(made)
    }

    fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        let consumer = match self.consumer.try_lock() {
            Ok(consumer) => consumer.clone(),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().clone(),
            // Who has it looks afterwards whether the queue is closed.
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(consumer) = consumer {
            consumer.close();
        }
    }
}

type Opened = (queue_id_t, HashMap<queue_id_t, Arc<Open>>);

/// The queues that a process has open, and how many of them are handled.
#[derive(Debug, Default)]
pub(crate) struct Queues(Mutex<Opened>, Arc<AtomicU32>);

impl Queues {
    fn all(&self) -> MutexGuard<'_, Opened> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, open: Open) -> Result<queue_id_t, Failure> {
        let mut all = self.all();
        if all.1.len() >= MOST {
            return Err(Status::QUOTA.into());
        }
        all.0 += 1;
        let id = all.0;
        all.1.insert(id, Arc::new(open));
        Ok(id)
    }

    /// A place among the queues whose messages handlers get.
    fn place(&self) -> Result<Place, Failure> {
        let one_more = |count| (count < MOST_HANDLED).then_some(count + 1);
        match self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
            Ok(_) => Ok(Place(Arc::clone(&self.1))),
            Err(_) => Err(Status::QUOTA.into()),
        }
    }

    fn get(&self, id: queue_id_t) -> Result<Arc<Open>, Failure> {
        self.all().1.get(&id).cloned().ok_or_else(|| Status::NOT_FOUND.into())
    }

    fn remove(&self, id: queue_id_t) -> Result<Arc<Open>, Failure> {
        self.all().1.remove(&id).ok_or_else(|| Status::NOT_FOUND.into())
    }

    /// Closes all of them.
    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut self.all().1);
        drop(all);
    }
}
