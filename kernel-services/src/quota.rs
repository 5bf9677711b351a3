//! What everybody holds, charged to who holds it. Pure.
//!
//! A supervised service pays from two accounts, its own and its user's; any other process from its
//! user's. A charge fits both or is made to neither. What was charged comes back as a [`Charge`],
//! which cannot be copied and is used up by [`Ledger::release`]: nothing is released twice, and
//! what is never released shows in [`Ledger::assert_settled`].
//!
//! # What the broker asks
//! - `Accepted`: [`Payer`] is made and kept in the session; one half-open and one descriptor (two
//!   with a pidfd) are charged, the half-open released at `Hello` or the end.
//! - each packet: [`Ledger::admit`]; one over the rate is refused with `QUOTA`.
//! - `Register`: a name, kept with the instance. `Connect`: a half-open until answered, with the
//!   descriptors held meanwhile; then a channel and the bytes of both lanes, kept with the channel
//!   and released when either end reports its end or dies.
//! - a new node file: [`Ledger::limit_users`], [`Ledger::limit_services`]; who holds more than the
//!   new limit keeps it and gets nothing more.
//! - teardown, after everything was released: [`Ledger::assert_settled`].

use std::{collections::HashMap, fmt, sync::Arc};

/// What ipcd lets somebody hold at a time; `None` is the runtime's own bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Names served.
    pub names: Option<u32>,
    /// Channels open.
    pub channels: Option<u32>,
    /// Descriptors that ipcd holds for it.
    pub descriptors: Option<u32>,
    /// Bytes of shared memory that it handed over.
    pub shared_bytes: Option<u64>,
    /// Connections that have not greeted, and connects unanswered.
    pub half_open: Option<u32>,
    /// Control messages a second, with a burst of as many.
    pub messages_per_second: Option<u32>,
}

/// The runtime's own bounds, which hold where a quota says nothing.
pub const BOUNDS: Quota = Quota {
    names: Some(16_384),
    channels: Some(65_536),
    descriptors: Some(16_384),
    shared_bytes: Some(16 << 30),
    half_open: Some(4096),
    messages_per_second: Some(1_000_000),
};

impl Quota {
    /// Gives the limit of a kind.
    fn limit(&self, kind: Kind) -> u64 {
        let of = |quota: &Quota| match kind {
            Kind::Names => quota.names.map(u64::from),
            Kind::Channels => quota.channels.map(u64::from),
            Kind::Descriptors => quota.descriptors.map(u64::from),
            Kind::SharedBytes => quota.shared_bytes,
            Kind::HalfOpen => quota.half_open.map(u64::from),
            Kind::Messages => quota.messages_per_second.map(u64::from),
        };
        of(self).or(of(&BOUNDS)).unwrap_or(u64::MAX)
    }
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Names served.
    Names,
    /// Channels open.
    Channels,
    /// Descriptors that ipcd holds.
    Descriptors,
    /// Bytes of shared memory.
    SharedBytes,
    /// Connections that have not greeted, and connects unanswered.
    HalfOpen,
    /// Control messages a second: see [`Ledger::admit`]. Never held.
    Messages,
}

impl Kind {
    /// All that can be held.
    pub const HELD: [Kind; 5] =
        [Kind::Names, Kind::Channels, Kind::Descriptors, Kind::SharedBytes, Kind::HalfOpen];

    /// Names it in the plural, as the node file does.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Names => "names",
            Kind::Channels => "channels",
            Kind::Descriptors => "descriptors",
            Kind::SharedBytes => "shared_bytes",
            Kind::HalfOpen => "half_open",
            Kind::Messages => "messages_per_second",
        }
    }
}

/// An account.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Account {
    /// Of a user: all its processes together.
    User(u32),
    /// Of a supervised service: all its replicas together.
    Service(Arc<str>),
}

impl fmt::Display for Account {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Account::User(uid) => write!(to, "user {uid}"),
            Account::Service(name) => write!(to, "service {name}"),
        }
    }
}

/// Who pays: a user, and the supervised service where it is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payer {
    accounts: [Option<Account>; 2],
}

impl Payer {
    /// Names the accounts of a process.
    pub fn new(uid: u32, service: Option<&str>) -> Payer {
        let service = service.map(|name| Account::Service(name.into()));
        // The narrower first: who is over both is told of its own.
        Payer { accounts: [service, Some(Account::User(uid))] }
    }

    fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.accounts.iter().flatten()
    }
}

/// Why a charge was refused; nothing was charged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{who} holds {held} of {limit} {}, and {asked} more were asked for: release some, or raise \
     its quota", kind.name()
)]
pub struct Over {
    /// Whose account has no room.
    pub who: Account,
    /// For what.
    pub kind: Kind,
    /// What it may hold.
    pub limit: u64,
    /// What it holds.
    pub held: u64,
    /// What was asked for.
    pub asked: u64,
}

/// A receipt for what is held. Give it back with [`Ledger::release`].
#[derive(Debug)]
#[must_use = "what is never released is charged for ever"]
pub struct Charge {
    payer: Payer,
    kind: Kind,
    amount: u64,
}

impl Charge {
    /// Says of what.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Says how much.
    pub fn amount(&self) -> u64 {
        self.amount
    }
}

/// All accounts.
#[derive(Debug, Default)]
pub struct Ledger {
    users: Quota,
    services: HashMap<Arc<str>, Quota>,
    books: HashMap<Account, Book>,
}

/// What one account holds.
#[derive(Debug, Default)]
struct Book {
    held: [u64; Kind::HELD.len()],
    bucket: Option<Bucket>,
}

/// Control messages that may still come now, in billionths, so that the refill of a nanosecond is
/// the rate itself.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: u64,
    at_ns: u64,
}

const MESSAGE: u64 = 1_000_000_000;

impl Bucket {
    /// Gives the level at a time. A clock that went back adds nothing.
    fn refilled(self, rate: u64, now_ns: u64) -> Bucket {
        // A second fills it whatever it held, so longer times need not be multiplied.
        let passed = now_ns.saturating_sub(self.at_ns).min(MESSAGE);
        let level = self.level.saturating_add(passed.saturating_mul(rate));
        Bucket { level: level.min(full(rate)), at_ns: self.at_ns.max(now_ns) }
    }
}

fn full(rate: u64) -> u64 {
    rate.saturating_mul(MESSAGE)
}

impl Ledger {
    /// Starts with nothing held; `users` limits each user.
    pub fn new(users: Quota) -> Ledger {
        Ledger { users, services: HashMap::new(), books: HashMap::new() }
    }

    /// Sets what each user may hold, from now on.
    pub fn limit_users(&mut self, quota: Quota) {
        self.users = quota;
    }

    /// Sets what each service may hold, from now on.
    pub fn limit_services(&mut self, services: HashMap<Arc<str>, Quota>) {
        self.services = services;
    }

    /// Charges all accounts of a payer, or none.
    ///
    /// # Errors
    /// [`Over`]: the account that has no room; or [`Kind::Messages`], which cannot be held.
    pub fn charge(&mut self, payer: &Payer, kind: Kind, amount: u64) -> Result<Charge, Over> {
        for account in payer.accounts() {
            let (held, limit) = (self.held(account, kind), self.limit(account, kind));
            let fits = held.checked_add(amount).is_some_and(|sum| sum <= limit);
            if !fits || place(kind).is_none() {
                let who = account.clone();
                return Err(Over { who, kind, limit, held, asked: amount });
            }
        }
        for account in payer.accounts() {
            if let Some(held) = self.slot(account, kind) {
                *held += amount;
            }
        }
        Ok(Charge { payer: payer.clone(), kind, amount })
    }

    /// Gives back what was charged.
    ///
    /// # Panics
    /// In debug builds, when another ledger made the charge.
    pub fn release(&mut self, charge: Charge) {
        let Charge { payer, kind, amount } = charge;
        for account in payer.accounts() {
            if let Some(held) = self.slot(account, kind) {
                debug_assert!(*held >= amount, "released what {account} does not hold");
                *held = held.saturating_sub(amount);
            }
        }
    }

    /// Takes one control message out of the buckets of all accounts of a payer, or of none.
    ///
    /// A bucket holds a second's messages and is full at first.
    ///
    /// # Errors
    /// [`Over`]: the account whose bucket is empty; `held` is its limit.
    pub fn admit(&mut self, payer: &Payer, now_ns: u64) -> Result<(), Over> {
        for account in payer.accounts() {
            let limit = self.limit(account, Kind::Messages);
            let book = self.books.entry(account.clone()).or_default();
            let before = book.bucket.unwrap_or(Bucket { level: full(limit), at_ns: now_ns });
            let bucket = before.refilled(limit, now_ns);
            book.bucket = Some(bucket);
            if bucket.level < MESSAGE {
                let who = account.clone();
                return Err(Over { who, kind: Kind::Messages, limit, held: limit, asked: 1 });
            }
        }
        for account in payer.accounts() {
            if let Some(bucket) = self.books.get_mut(account).and_then(|it| it.bucket.as_mut()) {
                bucket.level -= MESSAGE;
            }
        }
        Ok(())
    }

    /// Says what an account holds of a kind.
    pub fn held(&self, account: &Account, kind: Kind) -> u64 {
        let book = self.books.get(account);
        place(kind).and_then(|place| Some(book?.held[place])).unwrap_or(0)
    }

    /// Says what an account may hold of a kind.
    pub fn limit(&self, account: &Account, kind: Kind) -> u64 {
        match account {
            Account::User(_) => self.users.limit(kind),
            Account::Service(name) => self.services.get(name).unwrap_or(&BOUNDS).limit(kind),
        }
    }

    /// Lists what is held, by account and kind, without zeros.
    pub fn holdings(&self) -> Vec<(Account, Kind, u64)> {
        let mut all: Vec<_> = (self.books.iter())
            .flat_map(|(account, book)| {
                let held = Kind::HELD.into_iter().zip(book.held);
                held.map(|(kind, amount)| (account.clone(), kind, amount))
            })
            .filter(|(_, _, amount)| *amount > 0)
            .collect();
        all.sort_by(|one, other| (&one.0, place(one.1)).cmp(&(&other.0, place(other.1))));
        all
    }

    /// Forgets the accounts that hold nothing and whose bucket is full again: they are as new.
    pub fn forget_idle(&mut self, now_ns: u64) {
        let (users, services) = (self.users, &self.services);
        self.books.retain(|account, book| {
            let quota = match account {
                Account::User(_) => &users,
                Account::Service(name) => services.get(name).unwrap_or(&BOUNDS),
            };
            let rate = quota.limit(Kind::Messages);
            let drawn = book.bucket.is_some_and(|it| it.refilled(rate, now_ns).level < full(rate));
            drawn || book.held.iter().any(|&held| held > 0)
        });
    }

    /// Checks at teardown that everything was released.
    ///
    /// # Panics
    /// When something is still held: it says what, and by whom.
    pub fn assert_settled(&self) {
        let left = self.holdings();
        assert!(left.is_empty(), "charged and never released: {left:?}");
    }

    fn slot(&mut self, account: &Account, kind: Kind) -> Option<&mut u64> {
        let place = place(kind)?;
        Some(&mut self.books.entry(account.clone()).or_default().held[place])
    }
}

/// Gives the place of a kind in [`Kind::HELD`].
fn place(kind: Kind) -> Option<usize> {
    Kind::HELD.iter().position(|&it| it == kind)
}

#[cfg(test)]
mod tests;
