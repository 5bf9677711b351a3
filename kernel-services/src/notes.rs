//! What is to be recorded, and the way to who records it.
//!
//! Whoever notes something never waits: the queue has a bound, and what finds it full is counted.
//! Who records (`audit`) says so in its log. An embedded runtime has nobody who records.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::{SystemTime, UNIX_EPOCH},
};

/// Notes that wait for who records them: about 1 MiB.
pub(crate) const QUEUE: usize = 4096;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "node", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "node", serde(rename_all = "snake_case"))]
#[cfg_attr(
    not(feature = "node"),
    allow(dead_code, unreachable_pub, reason = "nobody supervises, and no log shows it")
)]
pub enum Kind {
    /// A right was used for the first time on a channel.
    Grant,
    /// A right was missing.
    Denial,
    /// A name was registered.
    Registered,
    /// A process ended.
    Died,
    /// ipcd killed a process.
    Killed,
    /// A service was started again.
    Restarted,
    /// A service will not be started again.
    GaveUp,
    /// The node file was read again.
    Reload,
    /// An operator's command.
    Admin,
    /// A token was issued.
    Token,
    /// A channel was closed, since its right was taken away.
    Revoked,
    /// The log was opened, by a new run of ipcd.
    Opened,
    /// The end of the log was unfinished or damaged, and was cut off to a file beside it.
    Torn,
    /// The log ended before the record that `audit.head` names.
    Truncated,
    /// Records could not be kept: the file could not be written for too long.
    Lost,
}

#[cfg(feature = "node")]
impl Kind {
    /// Tells whether it says that the log itself has suffered.
    pub fn is_incident(self) -> bool {
        matches!(self, Kind::Torn | Kind::Truncated | Kind::Lost)
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) kind: Kind,
    /// Who did it, or to whom it happened.
    pub(crate) subject: String,
    pub(crate) object: String,
    pub(crate) operation: Cow<'static, str>,
    pub(crate) verdict: Option<bool>,
    pub(crate) because: String,
}

impl Note {
    /// Begins a note; the rest is empty.
    pub(crate) fn new(kind: Kind, subject: impl Into<String>) -> Note {
        Note {
            kind,
            subject: subject.into(),
            object: String::new(),
            operation: Cow::Borrowed(""),
            verdict: None,
            because: String::new(),
        }
    }
}

/// A note, and when it was made: Unix time in microseconds.
pub(crate) type Dated = (u64, Note);

/// Where notes go.
#[derive(Clone, Debug)]
pub(crate) struct Notes {
    out: SyncSender<Dated>,
    lost: Arc<AtomicU64>,
}

impl Notes {
    /// Passes a note on, or counts it as lost.
    pub(crate) fn take(&self, note: Note) {
        match self.out.try_send((unix_us(), note)) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Makes a queue of notes: its two ends, and the count of what it had no room for.
#[cfg_attr(not(feature = "node"), allow(dead_code, reason = "an embedded runtime records nothing"))]
pub(crate) fn queue() -> (Notes, Receiver<Dated>, Arc<AtomicU64>) {
    let (out, notes) = sync_channel(QUEUE);
    let lost = Arc::<AtomicU64>::default();
    (Notes { out, lost: Arc::clone(&lost) }, notes, lost)
}

/// Reads the wall clock, in microseconds since 1970.
pub(crate) fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
