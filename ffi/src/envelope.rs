//! Single messages under a key of the program's own.

#![allow(unsafe_code)] // exports

use std::ffi::c_int;

use ipc_core::{Status, session};

use crate::{
    boundary::{self, guard},
    error::{Failure, IPC_OK},
    process::Process,
    response::Buffer,
    types::{EncryptionKey, Message},
};

/// Puts msg->payload into an envelope that who has the key can open, anywhere and at any time:
/// XChaCha20-Poly1305 under a random nonce, 44 bytes more. msg->payload is then a buffer of the
/// library, for ipc_free; the old payload stays yours. msg may be any struct of yours; only its
/// payload is looked at. The key is not changed or kept. An envelope does not tell when or how
/// often it was sent: between services, encrypted channels do.
///
/// IPC_EINVAL: a NULL. IPC_EMSGSIZE: the payload is longer than 2^32 - 45 bytes. IPC_ESYS: no
/// random numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_encrypt_message(msg: *mut Message, key: *mut EncryptionKey) -> c_int {
    // SAFETY: clauses 1 and 3 of the boundary.
    guard(|| unsafe { replace(msg, key, |key, text| Ok(session::seal_envelope(key, text)?)) })
}

/// Takes the payload out of the envelope that msg->payload is. msg->payload is then a buffer of the
/// library, for ipc_free; the old payload stays yours. The key is not changed or kept.
///
/// IPC_EAUTH: it was altered, or the key is another. IPC_EPROTO: it is no envelope, or one of a
/// later version. Then msg is as it was. IPC_EINVAL: a NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_decrypt_message(msg: *mut Message, key: *mut EncryptionKey) -> c_int {
    // SAFETY: clauses 1 and 3 of the boundary.
    guard(|| unsafe { replace(msg, key, |key, text| Ok(session::open_envelope(key, text)?)) })
}

/// Replaces a message's payload by what `change` makes of it.
///
/// # Safety
/// C keeps clauses 1 and 3 of the boundary.
unsafe fn replace(
    msg: *mut Message,
    key: *const EncryptionKey,
    change: impl FnOnce(&[u8; 32], &[u8]) -> Result<Vec<u8>, Failure>,
) -> Result<c_int, Failure> {
    Process::here()?;
    // SAFETY: the same clauses.
    let (key, mut changed, out) =
        unsafe { (boundary::bytes(key.cast(), 32)?, boundary::value(msg)?, boundary::out(msg)?) };
    let key = key.first_chunk().ok_or(Failure::from(Status::INVALID))?;
    // SAFETY: the same clauses, for what the message says of its payload.
    let text = unsafe { boundary::bytes(changed.payload.cast(), changed.payload_size as usize) }?;
    let bytes = change(key, text)?;
    let size = u32::try_from(bytes.len()).map_err(|_| Failure::from(Status::MESSAGE_SIZE))?;
    changed.payload = Buffer::of(&bytes).into_c().cast();
    changed.payload_size = size;
    out.set(changed);
    Ok(IPC_OK)
}
