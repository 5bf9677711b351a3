//! What a node may do, and how it shows that to others.

use super::{Node, PATIENCE, refused};
use crate::{
    ServiceId,
    control::{Reply, Request, TOKEN_BYTES},
    error::{NodeError, Status},
};

/// A signed statement of what a service may do with another, until a time: the bytes of C's
/// `auth_token_t`. `docs/security.md` draws them.
pub type AuthToken = [u8; TOKEN_BYTES];

impl Node {
    /// Asks whether `src` may do an operation with `dest`: a number of `operation_type_t`, such as
    /// 0 for a call. `src` is any id of a node that is there, or [`ServiceId::NONE`] for this one;
    /// `dest` is a name's id or an instance's.
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `NOT_FOUND` when either is nobody's id, `INVALID` for an unknown
    /// operation; those of a lost runtime.
    pub fn may(&self, src: ServiceId, dest: ServiceId, operation: u32) -> Result<bool, NodeError> {
        let request = Request::Verify { src, dest, operation };
        match self.shared.core.request(&request, &[], Some(PATIENCE)) {
            Ok((Reply::Done, _)) => Ok(true),
            Err(NodeError::Refused(Status::ACCESS)) => Ok(false),
            Ok((reply, _)) => Err(refused(&reply)),
            Err(error) => Err(error),
        }
    }

    /// Asks for a token that says to `dest` what this node may do with it: those of `permissions`
    /// (bits `1 << operation_type_t`) that the rules allow. It ends after `lifetime_ms`, rounded up
    /// to seconds, a day at most; and with this node's id.
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `ACCESS` when the rules allow none of them, `INVALID` for
    /// unknown permissions or no lifetime, `NOT_FOUND` when `dest` is nobody's id; those of a lost
    /// runtime.
    pub fn request_token(
        &self,
        dest: ServiceId,
        permissions: u64,
        lifetime_ms: u32,
    ) -> Result<AuthToken, NodeError> {
        let request = Request::IssueToken { dest, permissions, lifetime_ms };
        match self.shared.core.request(&request, &[], Some(PATIENCE))?.0 {
            Reply::Token { token } => Ok(*token),
            reply => Err(refused(&reply)),
        }
    }

    /// Asks what a token is worth with this node that `presenter` has shown: the permissions in it
    /// which the rules still allow. Take `presenter` from the message in which the token came.
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `AUTH` when it is forged, changed, expired, of somebody else or
    /// for somebody else, or its permissions were revoked: which of them is not told; those of a
    /// lost runtime.
    pub fn authenticate(&self, presenter: ServiceId, token: &AuthToken) -> Result<u64, NodeError> {
        let request = Request::CheckToken { presenter, token: Box::new(*token) };
        match self.shared.core.request(&request, &[], Some(PATIENCE))?.0 {
            Reply::Permitted { permissions } => Ok(permissions),
            reply => Err(refused(&reply)),
        }
    }

    /// Gives the runtime's public key (Ed25519, RFC 8032), by which anybody verifies tokens.
    ///
    /// # Errors
    /// Those of a lost runtime.
    pub fn public_key(&self) -> Result<[u8; 32], NodeError> {
        match self.shared.core.request(&Request::PublicKey, &[], Some(PATIENCE))?.0 {
            Reply::PublicKey { key } => Ok(key),
            reply => Err(refused(&reply)),
        }
    }
}
