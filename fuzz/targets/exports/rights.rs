//! Rights, tokens, counts and envelopes: what is made with any arguments, and then altered by a
//! byte, is taken for what it is.

#![allow(unsafe_code)] // calls into C

use std::{
    ffi::{CString, c_char, c_int, c_void},
    ptr,
};

use ipc_capi::{
    session::Session,
    stats::CommunicationStats,
    types::{AuthToken, EncryptionKey},
};

use super::abi::{
    self, EACCES, EAUTH, EINVAL, EMSGSIZE, ENOENT, ENORUNTIME, EPROTO, EQUOTA, ESYS, Lent, Message,
};

unsafe extern "C" {
    safe fn ipc_verify_permissions(src: u32, dest: u32, operation: u32) -> c_int;
    fn ipc_request_token(
        dest: u32,
        permissions: u64,
        lifetime_ms: u32,
        token: *mut AuthToken,
    ) -> c_int;
    fn ipc_authenticate_service(id: u32, token: *mut AuthToken) -> c_int;
    fn ipc_get_stats(id: u32, stats: *mut CommunicationStats) -> c_int;
    fn ipc_trace_begin(traceparent: *const c_char) -> c_int;
    safe fn ipc_trace_end() -> c_int;
    fn ipc_trace_current(text: *mut c_char, capacity: usize) -> c_int;
    fn ipc_get_session(id: u32, session: *mut Session) -> c_int;
    fn ipc_encrypt_message(msg: *mut Message, key: *mut EncryptionKey) -> c_int;
    fn ipc_decrypt_message(msg: *mut Message, key: *mut EncryptionKey) -> c_int;
    fn ipc_free(response: *mut c_void);
}

/// Bytes that an envelope adds to what is in it.
const ENVELOPE: usize = 44;

/// What an action needs.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) what: u8,
    /// Who asks, and whom it is about.
    pub(crate) ids: [u32; 2],
    pub(crate) number: u32,
    /// The byte that is altered.
    pub(crate) at: u16,
    pub(crate) data: Lent,
}

pub(crate) fn act(choice: &Choice) {
    let Choice { what, ids: [id, dest], number, at, data } = choice;
    match what % 4 {
        0 if what & 64 != 0 => trace(*what, data, usize::from(*at)),
        0 => {
            let number = ipc_verify_permissions(*id, *dest, *number);
            let known = [EACCES, EINVAL, ENOENT, ENORUNTIME, EQUOTA];
            abi::documented("ipc_verify_permissions", number, &known);
        }
        1 => token(*what, [*id, *dest], *number, usize::from(*at)),
        2 if what & 16 == 0 => stats(*what, *id, *number),
        2 => session(*what, *id, *number),
        _ => envelope(*what, data, usize::from(*at)),
    }
}

/// Asks for a token, alters a byte or none, and shows it to this process.
fn token(what: u8, [id, dest]: [u32; 2], number: u32, at: usize) {
    // SAFETY: a struct of numbers.
    let mut token: AuthToken = unsafe { std::mem::zeroed() };
    let place = if what & 4 == 0 { &raw mut token } else { ptr::null_mut() };
    // SAFETY: a place or NULL.
    let given = unsafe { ipc_request_token(dest, u64::from(number >> 24), number, place) };
    let known = [EACCES, EINVAL, ENOENT, ENORUNTIME, EQUOTA];
    if abi::documented("ipc_request_token", given, &known) < 0 {
        assert_eq!(token.version, 0, "written after {given}");
    }
    let altered = what & 8 != 0;
    if altered {
        // SAFETY: a byte of a struct of numbers.
        unsafe { *(&raw mut token).cast::<u8>().add(at % size_of::<AuthToken>()) ^= 1 | what };
    }
    // SAFETY: a token or NULL.
    let number = unsafe { ipc_authenticate_service(id, place) };
    abi::documented("ipc_authenticate_service", number, &[EINVAL, EAUTH, ENORUNTIME, EQUOTA]);
    // Bytes 12 to 16 are padding, which is nobody's.
    let counts = !(12..16).contains(&(at % size_of::<AuthToken>()));
    assert!(number < 0 || given == 0 && !(altered && counts), "a forged token counts");
}

/// Asks for counts, into just as many bytes as the struct says that it has.
fn stats(what: u8, id: u32, size: u32) {
    let own = size_of::<CommunicationStats>();
    let size = if what & 8 == 0 { own } else { size as usize % 4096 };
    let mut block = vec![0xAAAA_AAAA_AAAA_AAAA_u64; size.max(4).div_ceil(8)].into_boxed_slice();
    let stats = block.as_mut_ptr().cast::<CommunicationStats>();
    // SAFETY: at least the four bytes of `size`, or NULL; as many as they say otherwise.
    let number = unsafe {
        (&raw mut (*stats).size).write(size as u32);
        ipc_get_stats(id, if what & 4 == 0 { stats } else { ptr::null_mut() })
    };
    abi::documented("ipc_get_stats", number, &[EINVAL, ENOENT]);
    assert!(number < 0 || size >= own, "counts in {size} bytes");
}

/// Begins a trace by whatever text, looks where that led, and ends it.
fn trace(what: u8, data: &Lent, capacity: usize) {
    let (bytes, size) = data.parts();
    let bytes = if bytes.is_null() || size > 1 << 20 {
        Vec::new()
    } else {
        // SAFETY: as many as it says, of which these are copied.
        unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), size) }.to_vec()
    };
    let text = CString::new(bytes).unwrap_or_default();
    let traceparent = if what & 4 == 0 { ptr::null() } else { text.as_ptr() };
    // SAFETY: a string or NULL.
    let begun = unsafe { ipc_trace_begin(traceparent) };
    abi::documented("ipc_trace_begin", begun, &[EINVAL, EQUOTA]);
    let mut room = vec![0_u8; capacity];
    let place = if what & 8 == 0 { room.as_mut_ptr().cast() } else { ptr::null_mut() };
    // SAFETY: as many bytes as it says, or NULL.
    let number = unsafe { ipc_trace_current(place, capacity) };
    abi::documented("ipc_trace_current", number, &[EINVAL, EMSGSIZE, ENOENT]);
    assert!(number < 0 || capacity >= 56 && room[55] == 0, "no string");
    assert!(number != ENOENT || begun < 0, "within nothing after it was begun");
    if begun == 0 {
        assert_eq!(ipc_trace_end(), 0);
    }
}

/// Asks for a session in the same way. No channel here is encrypted.
fn session(what: u8, id: u32, size: u32) {
    let size = if what & 8 == 0 { size_of::<Session>() } else { size as usize % 4096 };
    let mut block = vec![0xAAAA_AAAA_AAAA_AAAA_u64; size.max(4).div_ceil(8)].into_boxed_slice();
    let session = block.as_mut_ptr().cast::<Session>();
    // SAFETY: at least the four bytes of `size`, or NULL; as many as they say otherwise.
    let number = unsafe {
        (&raw mut (*session).size).write(size as u32);
        ipc_get_session(id, if what & 4 == 0 { session } else { ptr::null_mut() })
    };
    abi::documented("ipc_get_session", number, &[EINVAL, ENOENT]);
    assert!(number < 0, "a session on a plain channel");
}

/// Seals bytes and opens them, whole or with a byte altered; or opens what is no envelope.
fn envelope(what: u8, data: &Lent, at: usize) {
    let mut key = EncryptionKey { bytes: [what; 32] };
    let place = if what & 4 == 0 { &raw mut key } else { ptr::null_mut() };
    // SAFETY: numbers and pointers, all of which may be zero.
    let mut message: Message = unsafe { std::mem::zeroed() };
    let (payload, size) = data.parts();
    // A message's size has four bytes: none of them is impossible.
    let Ok(stated) = u32::try_from(size) else { return };
    (message.payload, message.payload_size) = (payload.cast_mut().cast(), stated);
    let seals = what & 16 == 0;
    if seals {
        // SAFETY: as many bytes as it says, or NULL.
        let number = unsafe { ipc_encrypt_message(&raw mut message, place) };
        abi::documented("ipc_encrypt_message", number, &[EINVAL, EMSGSIZE, ESYS]);
        if number < 0 {
            assert_eq!(message.payload.cast_const().cast(), payload, "changed after {number}");
            return;
        }
        assert_eq!(message.payload_size as usize, size + ENVELOPE);
    }
    let (sealed, length) = (message.payload, message.payload_size as usize);
    let altered = seals && what & 8 != 0;
    if altered {
        // SAFETY: a buffer of the library's, so long.
        unsafe { *sealed.cast::<u8>().add(at % length) ^= 1 | what };
    }
    // SAFETY: as above.
    let number = unsafe { ipc_decrypt_message(&raw mut message, place) };
    abi::documented("ipc_decrypt_message", number, &[EINVAL, EMSGSIZE, EAUTH, EPROTO]);
    assert!(number < 0 || !altered, "an altered envelope opens");
    assert!(number == 0 || !seals || altered, "what was sealed does not open: {number}");
    // SAFETY: buffers of the library's, each once; the bytes lent where they are not replaced.
    unsafe {
        if number == 0 {
            assert_eq!(message.payload_size as usize + ENVELOPE, length);
            ipc_free(message.payload.cast());
        }
        if seals {
            ipc_free(sealed.cast());
        }
    }
}
