//! Rights: asking what one may do, and showing it to others.

#![allow(unsafe_code)] // exports

use std::ffi::c_int;

use ipc_core::{AuthToken as Bytes, ServiceId, Status};

use crate::{
    boundary::{self, guard},
    error::IPC_OK,
    runtime,
    types::{AuthToken, CryptoSignature, OperationType, permission_mask_t, service_id_t},
};

/// Asks whether src may do an operation with dest by the runtime's rules. src is any id of a
/// process that is there, 0 for this one; dest is a name's id or an instance's.
///
/// IPC_EACCES: it may not. IPC_EINVAL: no such operation. IPC_ENOENT: src or dest is nobody's id.
/// IPC_ENORUNTIME: ipcd is gone.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_verify_permissions(
    src: service_id_t,
    dest: service_id_t,
    op: OperationType,
) -> c_int {
    guard(|| {
        let node = &runtime::current()?.node;
        if node.may(ServiceId::new(src), ServiceId::new(dest), op.number())? {
            Ok(IPC_OK)
        } else {
            Err(Status::ACCESS.into())
        }
    })
}

/// Asks for a token, which says to dest what this process may do with it: those of the permissions
/// that the rules allow. It ends after lifetime_ms, rounded up to seconds, a day at most; and with
/// this process's id. It is worth nothing in the hands of others, so it may travel in any message.
///
/// IPC_EACCES: the rules allow none of the permissions. IPC_EINVAL: a NULL, no or unknown
/// permissions, or no lifetime. IPC_ENOENT: dest is nobody's id. IPC_ENORUNTIME: ipcd is gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_request_token(
    dest: service_id_t,
    permissions: permission_mask_t,
    lifetime_ms: u32,
    token: *mut AuthToken,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let token = unsafe { boundary::out(token)? };
        let node = &runtime::current()?.node;
        let made = node.request_token(ServiceId::new(dest), permissions, lifetime_ms)?;
        token.set(read(&made));
        Ok(IPC_OK)
    })
}

/// Checks a token that the process id has shown to this one, whose service it is for: take id from
/// the source_service_id of the message in which it came. The token is not changed.
///
/// IPC_EINVAL: a NULL. IPC_EAUTH: it is forged, changed, expired, of another process or for
/// another, or one of its permissions was revoked; which of them is not told. IPC_ENORUNTIME: ipcd
/// is gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_authenticate_service(
    id: service_id_t,
    token: *mut AuthToken,
) -> c_int {
    guard(|| {
        // SAFETY: clauses 1 and 3 of the boundary.
        let token = unsafe { boundary::value(token)? };
        let node = &runtime::current()?.node;
        let granted = node.authenticate(ServiceId::new(id), &bytes(&token))?;
        if granted == token.permissions { Ok(IPC_OK) } else { Err(Status::AUTH.into()) }
    })
}

/// Takes a token apart: `docs/security.md` draws its bytes.
fn read(bytes: &Bytes) -> AuthToken {
    AuthToken {
        version: u32::from_le_bytes(part(bytes, 0)),
        subject: u32::from_le_bytes(part(bytes, 4)),
        audience: u32::from_le_bytes(part(bytes, 8)),
        permissions: u64::from_le_bytes(part(bytes, 16)),
        expiry_time: u64::from_le_bytes(part(bytes, 24)),
        nonce: part(bytes, 32),
        signature: CryptoSignature { bytes: part(bytes, 48) },
    }
}

fn part<const N: usize>(bytes: &Bytes, at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

fn bytes(token: &AuthToken) -> Bytes {
    let mut bytes = [0; size_of::<AuthToken>()];
    bytes[..4].copy_from_slice(&token.version.to_le_bytes());
    bytes[4..8].copy_from_slice(&token.subject.to_le_bytes());
    bytes[8..12].copy_from_slice(&token.audience.to_le_bytes());
    bytes[16..24].copy_from_slice(&token.permissions.to_le_bytes());
    bytes[24..32].copy_from_slice(&token.expiry_time.to_le_bytes());
    bytes[32..48].copy_from_slice(&token.nonce);
    bytes[48..].copy_from_slice(&token.signature.bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_same_in_both_languages() {
        let mut made: Bytes = std::array::from_fn(|at| at as u8);
        made[12..16].fill(0);
        assert_eq!(bytes(&read(&made)), made);
    }
}
