//! Tokens: signed and verified here, where there is a clock and there are random numbers.

use ipc::{
    ServiceId, Status,
    control::{Reply, TOKEN_BYTES},
};

use crate::{
    notes::unix_us,
    token::{self, AuthToken, IssueError, TokenKey, Wanted},
};

/// Signs a token of one that serves at this epoch; 0 for one that serves nothing.
pub(super) fn issue(key: &TokenKey, wanted: Wanted, allowed: u64, epoch: u64) -> Reply {
    let made = token::nonce_at(epoch).and_then(|nonce| {
        token::issue(key, wanted, allowed, now_s(), nonce).map_err(|error| match error {
            IssueError::Invalid => Status::INVALID,
            IssueError::Denied => Status::ACCESS,
            IssueError::Forked => Status::FORKED,
        })
    });
    match made {
        Ok(token) => Reply::Token { token: Box::new(token.to_bytes()) },
        Err(status) => Reply::Refused(status),
    }
}

/// Says what a token is worth, or that it is worth nothing.
pub(super) fn check(
    key: &TokenKey,
    token: &[u8; TOKEN_BYTES],
    presenters: &[ServiceId],
    audience: &[ServiceId],
    allowed: u64,
) -> Reply {
    let verified = AuthToken::from_bytes(token).and_then(|token| {
        let presenter = presenters.iter().find(|id| **id == token.subject);
        let presenter = presenter.copied().unwrap_or(ServiceId::NONE);
        token::verify(&key.public(), &token, presenter, audience, now_s())
    });
    match verified.map(|permissions| permissions & allowed) {
        Ok(permissions) if permissions != 0 => Reply::Permitted { permissions },
        Ok(_) | Err(_) => Reply::Refused(Status::AUTH),
    }
}

fn now_s() -> u64 {
    unix_us() / 1_000_000
}
