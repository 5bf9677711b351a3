//! Tokens: signed statements that a service may do something with another, until a time.
//!
//! The runtime signs with Ed25519 (RFC 8032). Who holds its public key verifies without asking;
//! nobody else can issue. An [`AuthToken`] says whom it is for (`subject`), with whom it counts
//! (`audience`), what for, and until when:
//!
//! ```text
//!  0        4        8        12       16               24               32       48        112
//!  ┌────────┬────────┬────────┬────────┬────────────────┬────────────────┬────────┬─────────┐
//!  │version │subject │audience│ zero   │ permissions    │ expiry, Unix s │ nonce  │signature│
//!  └────────┴────────┴────────┴────────┴────────────────┴────────────────┴────────┴─────────┘
//! ```
//! That is C's `auth_token_t`, in little-endian. Signed is [`DOMAIN`] and then the fields in that
//! order without the zero, 44 bytes: no other statement under the same key begins alike.
//!
//! # Rules
//! - The first half of the nonce is the epoch at which the subject serves a name, or 0. A token of
//!   one that was passed over since is refused by the runtime; who verifies without asking it does
//!   not know.
//! - Granted is what was asked for *and* the policy allows, never more; nothing left is a refusal.
//! - A lifetime is 1 s to [`MOST_LIFETIME_S`], in whole seconds, rounded up, cut at the most.
//! - Issuer and verifier read one machine's clock, so an expired token has no grace: it ends when
//!   its second begins. A clock that was set back would lengthen tokens; therefore one that ends
//!   over [`MOST_LIFETIME_S`] + [`SKEW_S`] from now is refused as well.
//! - Ids are never reused, within a runtime directory: a token ends with its subject at the
//!   latest, and with the directory's key.
//! - A token is not spent by use, and whoever has its bytes could show them: it only counts from
//!   the channel of its subject, whom the runtime names. So the verifier says who presents it.
//! - What a verifier compares and checks is public. Signing takes constant time.
//!
//! # What the broker asks
//! - `ipc_request_token(dest, permissions, lifetime)`: [`issue`] with the node's appearance as
//!   subject, `dest` as audience, `Policy::permitted` as what is allowed, and fresh random bytes;
//!   `ACCESS` for [`IssueError::Denied`], else `INVALID`; recorded as kind `token`.
//! - `ipc_authenticate_service(id, token)`: [`verify`] with `id` as presenter and the caller as
//!   audience (its instances' ids, and those of their names); `AUTH` for any [`Refusal`]. What
//!   counts is the token's permissions *and* `Policy::permitted` of today: so a reload revokes.
//! - The key is read once, at the start: [`TokenKey::open`] in the runtime directory. A forked
//!   child has none.

mod key;

use ed25519_dalek::{Signature, VerifyingKey};
use ipc::ServiceId;

pub use key::{KeyError, TokenKey};

use crate::security::Operation;

/// The only version.
pub const VERSION: u32 = 1;
/// Bytes of a token.
pub const TOKEN_BYTES: usize = 112;
/// Longest lifetime, in seconds: a day.
pub const MOST_LIFETIME_S: u64 = 86_400;
/// How far a clock may have been set back before tokens issued earlier are refused, in seconds.
pub const SKEW_S: u64 = 60;
/// What every signed statement of this kind begins with.
pub const DOMAIN: &[u8; 24] = b"libipc auth_token_t v1\0\0";

const FIELDS: usize = 44;

/// A token, as C's `auth_token_t` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthToken {
    /// [`VERSION`].
    pub version: u32,
    /// Whom it is for.
    pub subject: ServiceId,
    /// With whom it counts.
    pub audience: ServiceId,
    /// [`Operation`] bits.
    pub permissions: u64,
    /// When it has ended, in seconds since 1970.
    pub expiry_time: u64,
    /// Makes every token another one.
    pub nonce: [u8; 16],
    /// Ed25519, over all the rest.
    pub signature: [u8; 64],
}

impl AuthToken {
    /// Writes the bytes drawn above.
    pub fn to_bytes(&self) -> [u8; TOKEN_BYTES] {
        let fields = self.fields();
        let mut bytes = [0; TOKEN_BYTES];
        bytes[..12].copy_from_slice(&fields[..12]);
        bytes[16..48].copy_from_slice(&fields[12..]);
        bytes[48..].copy_from_slice(&self.signature);
        bytes
    }

    /// Reads the bytes drawn above; believes none of them yet.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] for another length, or where the zero is none.
    pub fn from_bytes(bytes: &[u8]) -> Result<AuthToken, Refusal> {
        let bytes: &[u8; TOKEN_BYTES] = bytes.try_into().map_err(|_| Refusal::Malformed)?;
        if bytes[12..16] != [0; 4] {
            return Err(Refusal::Malformed);
        }
        Ok(AuthToken {
            version: u32::from_le_bytes(part(bytes, 0)),
            subject: ServiceId::new(u32::from_le_bytes(part(bytes, 4))),
            audience: ServiceId::new(u32::from_le_bytes(part(bytes, 8))),
            permissions: u64::from_le_bytes(part(bytes, 16)),
            expiry_time: u64::from_le_bytes(part(bytes, 24)),
            nonce: part(bytes, 32),
            signature: part(bytes, 48),
        })
    }

    fn fields(&self) -> [u8; FIELDS] {
        let mut fields = [0; FIELDS];
        fields[..4].copy_from_slice(&self.version.to_le_bytes());
        fields[4..8].copy_from_slice(&self.subject.get().to_le_bytes());
        fields[8..12].copy_from_slice(&self.audience.get().to_le_bytes());
        fields[12..20].copy_from_slice(&self.permissions.to_le_bytes());
        fields[20..28].copy_from_slice(&self.expiry_time.to_le_bytes());
        fields[28..].copy_from_slice(&self.nonce);
        fields
    }

    /// Gives what is signed.
    fn statement(&self) -> [u8; DOMAIN.len() + FIELDS] {
        let mut statement = [0; DOMAIN.len() + FIELDS];
        statement[..DOMAIN.len()].copy_from_slice(DOMAIN);
        statement[DOMAIN.len()..].copy_from_slice(&self.fields());
        statement
    }
}

/// Copies `N` bytes at a fixed place.
fn part<const N: usize>(bytes: &[u8; TOKEN_BYTES], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

/// What a token is asked to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Who asks; known from its connection.
    pub subject: ServiceId,
    /// With whom it is to count.
    pub audience: ServiceId,
    /// [`Operation`] bits asked for.
    pub permissions: u64,
    /// How long, in milliseconds.
    pub lifetime_ms: u32,
}

/// Why no token was issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// Subject, audience, permissions or lifetime is 0, or the permissions have unknown bits.
    #[error("a token needs a subject, an audience, known permissions and a lifetime")]
    Invalid,
    /// The policy allows nothing of what was asked for.
    #[error("no rule allows any of the permissions asked for: see `ipctl policy check`")]
    Denied,
    /// This process is a forked child, and has no key.
    #[error("a forked child has no key to sign with")]
    Forked,
}

/// Issues a token, signed by `key`, for what of `wanted` is in `allowed`; `now_s` is Unix time.
/// `nonce` is 16 random bytes: see [`random_nonce`].
///
/// # Errors
/// [`IssueError`], by its variants.
pub fn issue(
    key: &TokenKey,
    wanted: Wanted,
    allowed: u64,
    now_s: u64,
    nonce: [u8; 16],
) -> Result<AuthToken, IssueError> {
    let Wanted { subject, audience, permissions, lifetime_ms } = wanted;
    let known = permissions != 0 && permissions & !Operation::MASK == 0;
    if subject == ServiceId::NONE || audience == ServiceId::NONE || !known || lifetime_ms == 0 {
        return Err(IssueError::Invalid);
    }
    let granted = permissions & allowed;
    if granted == 0 {
        return Err(IssueError::Denied);
    }
    let lifetime_s = u64::from(lifetime_ms).div_ceil(1000).min(MOST_LIFETIME_S);
    let mut token = AuthToken {
        version: VERSION,
        subject,
        audience,
        permissions: granted,
        expiry_time: now_s.saturating_add(lifetime_s),
        nonce,
        signature: [0; 64],
    };
    token.signature = key.sign(&token.statement()).ok_or(IssueError::Forked)?;
    Ok(token)
}

/// Draws a nonce from the system.
///
/// # Errors
/// `IO` when the system gives no random bytes; only before it has finished booting.
pub fn random_nonce() -> Result<[u8; 16], ipc::Status> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(|_| ipc::Status::IO)?;
    Ok(nonce)
}

/// Makes a nonce that says at which epoch the subject of a token serves, if it serves a name: eight
/// bytes of that, and eight that are random.
///
/// # Errors
/// As [`random_nonce`].
pub fn nonce_at(epoch: u64) -> Result<[u8; 16], ipc::Status> {
    let mut nonce = random_nonce()?;
    nonce[..8].copy_from_slice(&epoch.to_le_bytes());
    Ok(nonce)
}

/// Gives the epoch at which the subject of a token served a name when it was issued, if it did. Not
/// believed before the token is verified.
pub fn epoch_of(token: &AuthToken) -> Option<u64> {
    let mut epoch = [0; 8];
    epoch.copy_from_slice(&token.nonce[..8]);
    Some(u64::from_le_bytes(epoch)).filter(|epoch| *epoch != 0)
}

/// Why a token does not count. In an answer all are `IPC_EAUTH`: a forger learns nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not the bytes of a token.
    #[error("not a token")]
    Malformed,
    /// Another version.
    #[error("a token of another version")]
    Version,
    /// Not signed by this runtime, or changed since.
    #[error("the signature does not hold")]
    Signature,
    /// Somebody else's.
    #[error("issued to another subject")]
    Subject,
    /// For use with somebody else.
    #[error("issued for another audience")]
    Audience,
    /// Its time is over.
    #[error("expired")]
    Expired,
    /// It ends later than any token can: the clock was set back.
    #[error("expires too far ahead: the clock was set back")]
    TooFarAhead,
}

/// A runtime's public key, by which tokens are verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Reads the 32 bytes of RFC 8032.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] for bytes that are no point of the curve, or a weak one, under which
    /// anything could be signed.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<PublicKey, Refusal> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| Refusal::Malformed)?;
        if key.is_weak() { Err(Refusal::Malformed) } else { Ok(PublicKey(key)) }
    }

    /// Gives the 32 bytes of RFC 8032.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Checks a signature strictly: one statement has one signature that holds.
    fn holds(&self, statement: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(statement, &Signature::from_bytes(signature)).is_ok()
    }
}

/// Verifies a token that `presenter` shows to `audience`; gives the permissions that it grants.
/// `now_s` is Unix time.
///
/// # Errors
/// [`Refusal`]; nothing in a token is looked at before its signature holds, save its version.
pub fn verify(
    key: &PublicKey,
    token: &AuthToken,
    presenter: ServiceId,
    audience: &[ServiceId],
    now_s: u64,
) -> Result<u64, Refusal> {
    if token.version != VERSION {
        return Err(Refusal::Version);
    }
    if !key.holds(&token.statement(), &token.signature) {
        return Err(Refusal::Signature);
    }
    if token.subject != presenter {
        return Err(Refusal::Subject);
    }
    if !audience.contains(&token.audience) {
        return Err(Refusal::Audience);
    }
    if token.expiry_time <= now_s {
        return Err(Refusal::Expired);
    }
    if token.expiry_time - now_s > MOST_LIFETIME_S + SKEW_S {
        return Err(Refusal::TooFarAhead);
    }
    Ok(token.permissions)
}

#[cfg(test)]
mod tests;
