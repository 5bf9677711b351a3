//! The functions of `ipc.h` as C sees them, each behind one that lends it what the header asks for:
//! pointers to as many bytes as are named, in blocks of their own, so that `ASan` sees
//! every byte too many. Each result is held against what the header says.

#![allow(unsafe_code)] // calls C functions

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char, c_int, c_void},
    ptr,
};

// Linked for its symbols; what they look like is said here once more, as the header does.
use ipc_capi as _;
pub(crate) use ipc_capi::types::{Config, Message};

pub(crate) const EINVAL: c_int = -1;
pub(crate) const ENOMEM: c_int = -2;
pub(crate) const ETIMEDOUT: c_int = -3;
pub(crate) const ENOENT: c_int = -4;
pub(crate) const EEXIST: c_int = -5;
pub(crate) const EACCES: c_int = -6;
pub(crate) const EAUTH: c_int = -7;
pub(crate) const EPEERDIED: c_int = -8;
pub(crate) const EMAYBE: c_int = -9;
pub(crate) const EFULL: c_int = -11;
pub(crate) const EMSGSIZE: c_int = -12;
pub(crate) const EQUOTA: c_int = -13;
pub(crate) const ENORUNTIME: c_int = -14;
pub(crate) const ENOTINIT: c_int = -15;
pub(crate) const EREENTRANT: c_int = -17;
pub(crate) const ENOREPLY: c_int = -18;
pub(crate) const EALREADY: c_int = -19;
pub(crate) const ECANCELED: c_int = -20;
pub(crate) const ENOTSUP: c_int = -23;
pub(crate) const EPROTO: c_int = -25;
pub(crate) const ESYS: c_int = -27;
pub(crate) const EUSER: c_int = -1000;

pub(crate) type Callback = extern "C" fn(c_int, *const Message, *mut c_void);
pub(crate) type Handler = extern "C" fn(*const Message, *mut c_void);

unsafe extern "C" {
    fn ipc_init(config: *const Config) -> c_int;
    safe fn ipc_shutdown() -> c_int;
    fn ipc_register_service(name: *const c_char, id: *mut u32) -> c_int;
    fn ipc_register_service_ex(name: *const c_char, flags: u32, id: *mut u32) -> c_int;
    safe fn ipc_unregister_service(id: u32) -> c_int;
    fn ipc_discover_service(name: *const c_char, id: *mut u32) -> c_int;
    fn ipc_wait_service(name: *const c_char, timeout_ms: u32, id: *mut u32) -> c_int;
    fn ipc_call(
        dest: u32,
        request: *const c_void,
        size: usize,
        response: *mut *mut c_void,
        response_size: *mut usize,
        timeout_ms: u32,
    ) -> c_int;
    fn ipc_call_into(
        dest: u32,
        request: *const c_void,
        size: usize,
        buffer: *mut c_void,
        capacity: usize,
        response_size: *mut usize,
        timeout_ms: u32,
    ) -> c_int;
    fn ipc_free(response: *mut c_void);
    fn ipc_send_async(
        dest: u32,
        data: *const c_void,
        size: usize,
        callback: Option<Callback>,
    ) -> c_int;
    fn ipc_send_async_ex(
        dest: u32,
        data: *const c_void,
        size: usize,
        priority: u32,
        timeout_ms: u32,
        callback: Option<Callback>,
        user_data: *mut c_void,
        message_id: *mut u64,
    ) -> c_int;
    safe fn ipc_cancel(message_id: u64) -> c_int;
    safe fn ipc_receive_async(source: u32, handler: Option<Handler>) -> c_int;
    fn ipc_receive_async_ex(source: u32, handler: Option<Handler>, user_data: *mut c_void)
    -> c_int;
    fn ipc_reply(request: *const Message, data: *const c_void, size: usize) -> c_int;
    fn ipc_reply_error(request: *const Message, status: c_int) -> c_int;
    fn ipc_message_retain(message: *const Message) -> *const Message;
    fn ipc_message_release(message: *const Message);
    safe fn ipc_poll(timeout_ms: u32) -> c_int;
    safe fn ipc_run() -> c_int;
    safe fn ipc_stop() -> c_int;
    safe fn ipc_fd() -> c_int;
    safe fn ipc_strerror(status: c_int) -> *const c_char;
    safe fn ipc_errno(status: c_int) -> c_int;
    safe fn ipc_last_os_error() -> c_int;
    safe fn ipc_version() -> *const c_char;
}

/// Fails the input when a function gives a number that its text in the header does not.
pub(crate) fn documented(function: &str, number: c_int, errors: &[c_int]) -> c_int {
    // EFORK is left out: nobody forks here.
    let usual = [ENOTINIT, ENOMEM];
    let is_known = number >= 0 || usual.contains(&number) || errors.contains(&number);
    assert!(is_known, "{function} returned {number} ({})", text(number));
    number
}

/// The errors of a call: the service's own are any that the service chose.
pub(crate) fn documented_of_call(function: &str, number: c_int) -> c_int {
    let known = [EINVAL, ENOENT, ETIMEDOUT, EMSGSIZE, EFULL, EPEERDIED, EMAYBE, ENOREPLY];
    let own = if number <= EUSER { number } else { ECANCELED };
    documented(function, number, &[&known[..], &[own]].concat())
}

/// Bytes that C lends, or NULL.
#[derive(Debug)]
pub(crate) enum Lent {
    /// NULL, and a size.
    Null(usize),
    /// A block of just so many bytes.
    Block(Box<[u8]>),
    /// Bytes, and a size that no object has.
    Impossible(Box<[u8]>, usize),
}

impl Lent {
    pub(crate) fn parts(&self) -> (*const c_void, usize) {
        match self {
            Lent::Null(size) => (ptr::null(), *size),
            Lent::Block(bytes) => (bytes.as_ptr().cast(), bytes.len()),
            Lent::Impossible(bytes, over) => {
                (bytes.as_ptr().cast(), (isize::MAX as usize).saturating_add(1 + over))
            }
        }
    }
}

/// An out-parameter: a block of its own that is written on success only, or NULL.
#[derive(Debug)]
struct Out<T>(Option<Box<T>>, T);

impl<T: Copy + PartialEq + std::fmt::Debug> Out<T> {
    fn new(is_there: bool, before: T) -> Out<T> {
        Out(is_there.then(|| Box::new(before)), before)
    }

    fn pointer(&mut self) -> *mut T {
        self.0.as_deref_mut().map_or(ptr::null_mut(), ptr::from_mut)
    }

    /// What was written; nothing after an error.
    fn after(self, number: c_int) -> Option<T> {
        let now = self.0.map(|now| *now);
        if number < 0 {
            assert!(now.is_none_or(|now| now == self.1), "written after {number}: {now:?}");
            return None;
        }
        now
    }
}

/// A string that C lends, or NULL.
fn string(name: Option<&CStr>) -> *const c_char {
    name.map_or(ptr::null(), CStr::as_ptr)
}

/// Connects. `size` bytes of the configuration are lent.
pub(crate) fn init(config: Option<&Config>) -> c_int {
    let known = [EINVAL, ENORUNTIME, EACCES, ENOTSUP, EPROTO, EQUOTA, ESYS];
    let Some(config) = config else {
        // SAFETY: NULL asks for the defaults.
        return documented("ipc_init", unsafe { ipc_init(ptr::null()) }, &known);
    };
    // As many bytes as it says, at least the four that say it, at most those of a size in range;
    // what is behind the struct is zero.
    let size = (config.size as usize).clamp(4, 4096);
    let mut block = vec![0_u64; size.div_ceil(8)].into_boxed_slice();
    // SAFETY: as many bytes as the shorter of both has.
    unsafe {
        let from = ptr::from_ref(config).cast::<u8>();
        ptr::copy_nonoverlapping(from, block.as_mut_ptr().cast(), size.min(size_of::<Config>()));
    }
    // SAFETY: as many bytes as the first member says, or a size that is refused for what it is;
    // `runtime_dir` is NULL or a string, of those who call this.
    documented("ipc_init", unsafe { ipc_init(block.as_ptr().cast()) }, &known)
}

pub(crate) fn shutdown() -> c_int {
    documented("ipc_shutdown", ipc_shutdown(), &[EREENTRANT])
}

pub(crate) fn register(name: Option<&CStr>, flags: Option<u32>, wants_id: bool) -> Option<u32> {
    let mut id = Out::new(wants_id, 4711);
    // SAFETY: a string or NULL, a place or NULL.
    let number = unsafe {
        match flags {
            None => ipc_register_service(string(name), id.pointer()),
            Some(flags) => ipc_register_service_ex(string(name), flags, id.pointer()),
        }
    };
    id.after(documented("ipc_register_service", number, &[EINVAL, EEXIST, EQUOTA, ENORUNTIME]))
}

pub(crate) fn unregister(id: u32) -> c_int {
    documented("ipc_unregister_service", ipc_unregister_service(id), &[ENOENT])
}

pub(crate) fn discover(name: Option<&CStr>, wait: Option<u32>, wants_id: bool) -> Option<u32> {
    let mut id = Out::new(wants_id, 4711);
    let number = match wait {
        None => {
            // SAFETY: a string or NULL, a place or NULL.
            let number = unsafe { ipc_discover_service(string(name), id.pointer()) };
            documented("ipc_discover_service", number, &[EINVAL, ENOENT, ENORUNTIME])
        }
        Some(timeout_ms) => {
            // SAFETY: as above.
            let number = unsafe { ipc_wait_service(string(name), timeout_ms, id.pointer()) };
            let known = [EINVAL, ENOENT, ENORUNTIME, ETIMEDOUT, ECANCELED];
            documented("ipc_wait_service", number, &known)
        }
    };
    id.after(number)
}

/// Calls, and frees the response. `wants` says which of both out-parameters are there.
pub(crate) fn call(dest: u32, request: &Lent, wants: [bool; 2], timeout_ms: u32) -> c_int {
    let (data, size) = request.parts();
    let mut response = Out::new(wants[0], ptr::null_mut());
    let mut length = Out::new(wants[1], 4711);
    // SAFETY: lent as the header asks; the out-parameters are places or NULL.
    let number =
        unsafe { ipc_call(dest, data, size, response.pointer(), length.pointer(), timeout_ms) };
    documented_of_call("ipc_call", number);
    let (response, length) = (response.after(number), length.after(number));
    if let Some((response, length)) = response.zip(length) {
        read(response.cast(), length);
        // SAFETY: a response, once.
        unsafe { ipc_free(response) };
    }
    number
}

pub(crate) fn call_into(
    dest: u32,
    request: &Lent,
    capacity: Option<usize>,
    wants_size: bool,
    timeout_ms: u32,
) -> c_int {
    let (data, size) = request.parts();
    let mut buffer = vec![0xAA_u8; capacity.unwrap_or(0)].into_boxed_slice();
    let place = capacity.map_or(ptr::null_mut(), |_| buffer.as_mut_ptr().cast());
    let mut length = Out::new(wants_size, 4711);
    // SAFETY: lent as the header asks; NULL goes with the capacity 0 or 9.
    let number = unsafe {
        let capacity = if capacity.is_some() { buffer.len() } else { size & 9 };
        ipc_call_into(dest, data, size, place, capacity, length.pointer(), timeout_ms)
    };
    documented_of_call("ipc_call_into", number);
    if number == EMSGSIZE {
        // Written when it is the response that is too large, which need not be the case.
        assert!(length.0.is_none_or(|now| *now == 4711 || *now > buffer.len()));
    } else if let Some(length) = length.after(number) {
        assert!(length <= buffer.len(), "more than fits");
    }
    number
}

pub(crate) fn free_nothing() {
    // SAFETY: NULL is ignored.
    unsafe { ipc_free(ptr::null_mut()) };
}

pub(crate) fn send(dest: u32, data: &Lent, callback: Option<Callback>) -> c_int {
    let (data, size) = data.parts();
    // SAFETY: lent as the header asks.
    let number = unsafe { ipc_send_async(dest, data, size, callback) };
    documented("ipc_send_async", number, &UNSENT)
}

/// What sending comes to, where nothing was sent.
pub(crate) const UNSENT: [c_int; 7] =
    [EFULL, EINVAL, ENOENT, EMSGSIZE, EPEERDIED, EAUTH, ETIMEDOUT];

/// Sends; gives the number, and the message's id where it was asked for.
pub(crate) fn send_ex(
    dest: u32,
    data: &Lent,
    [priority, timeout_ms]: [u32; 2],
    callback: Option<Callback>,
    user_data: usize,
    wants_id: bool,
) -> (c_int, Option<u64>) {
    let (data, size) = data.parts();
    let mut id = Out::new(wants_id, 4711);
    let user_data = ptr::without_provenance_mut(user_data);
    // SAFETY: lent as the header asks; `user_data` is a number, for the callback.
    let number = unsafe {
        let id = id.pointer();
        ipc_send_async_ex(dest, data, size, priority, timeout_ms, callback, user_data, id)
    };
    documented("ipc_send_async_ex", number, &UNSENT);
    (number, id.after(number))
}

pub(crate) fn cancel(message_id: u64) -> c_int {
    documented("ipc_cancel", ipc_cancel(message_id), &[ENOENT])
}

pub(crate) fn receive(source: u32, handler: Option<Handler>, user_data: Option<usize>) -> c_int {
    let number = match user_data {
        None => ipc_receive_async(source, handler),
        // SAFETY: a number, for the handler.
        Some(data) => unsafe {
            ipc_receive_async_ex(source, handler, ptr::without_provenance_mut(data))
        },
    };
    documented("ipc_receive_async", number, &[])
}

pub(crate) fn reply(request: *const Message, data: &Lent) -> c_int {
    let (data, size) = data.parts();
    // SAFETY: lent as the header asks; any pointer may be tried as a message.
    let number = unsafe { ipc_reply(request, data, size) };
    documented("ipc_reply", number, &[EINVAL, EALREADY, EMSGSIZE, EPEERDIED])
}

pub(crate) fn reply_error(request: *const Message, status: c_int) -> c_int {
    // SAFETY: any pointer may be tried as a message.
    let number = unsafe { ipc_reply_error(request, status) };
    documented("ipc_reply_error", number, &[EINVAL, EALREADY, EPEERDIED])
}

/// Retains a message; whether that was possible.
pub(crate) fn retain(message: *const Message) -> bool {
    // SAFETY: any pointer may be tried as a message.
    let kept = unsafe { ipc_message_retain(message) };
    assert!(kept.is_null() || kept == message, "another message");
    !kept.is_null()
}

pub(crate) fn release(message: *const Message) {
    // SAFETY: any pointer may be tried as a message.
    unsafe { ipc_message_release(message) };
}

/// Reads all of a message that a callback runs for, or that is retained; gives a copy of it.
pub(crate) fn look(message: *const Message) -> Box<Message> {
    // SAFETY: says the header.
    let copy = Box::new(unsafe { *message });
    // In bulk memory, and IPC_BULK_VIEWS asked for: read in parts then.
    if !copy.payload.is_null() {
        read(copy.payload.cast_const(), copy.payload_size as usize);
    }
    copy
}

pub(crate) fn poll(timeout_ms: u32) -> c_int {
    documented("ipc_poll", ipc_poll(timeout_ms), &[ECANCELED, EREENTRANT])
}

/// Stops the loop before it runs, which then ends at once.
pub(crate) fn stopped_run() -> c_int {
    if stop() < 0 {
        return 0;
    }
    let number = documented("ipc_run", ipc_run(), &[ECANCELED, EREENTRANT]);
    assert!(number < 0, "it never returns 0");
    number
}

pub(crate) fn stop() -> c_int {
    documented("ipc_stop", ipc_stop(), &[])
}

pub(crate) fn fd() -> c_int {
    documented("ipc_fd", ipc_fd(), &[ESYS, EQUOTA])
}

/// What can be asked at any time.
pub(crate) fn ask(status: c_int) {
    assert!(!text(status).is_empty());
    assert_eq!(ipc_errno(status) == 0, status == 0 || (status == ESYS && ipc_last_os_error() == 0));
    assert!(ipc_last_os_error() >= 0);
    // SAFETY: the library's string stays.
    assert!(!unsafe { CStr::from_ptr(ipc_version()) }.is_empty());
}

fn text(status: c_int) -> &'static str {
    // SAFETY: never NULL, and stays.
    unsafe { CStr::from_ptr(ipc_strerror(status)) }.to_str().expect("English")
}

/// Reads every byte, for `ASan`.
fn read(bytes: *const u8, length: usize) {
    if length > 0 {
        // SAFETY: says the header.
        let bytes = unsafe { std::slice::from_raw_parts(bytes, length) };
        std::hint::black_box(bytes.iter().fold(0_u8, |sum, byte| sum ^ byte));
    }
}

/// Messages retained, and how often.
pub(crate) type Kept = BTreeMap<usize, u32>;
