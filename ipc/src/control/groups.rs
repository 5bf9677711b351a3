//! What is told of the groups that serve names.

use super::{HEAD, MAX_PACKET, Malformed};
use crate::ServiceId;

/// Most members of a group that anybody is told of.
pub const MOST_MEMBERS: usize = 64;

/// Most of those who stand by that may serve by themselves, by their order: who stands further
/// behind waits for the runtime.
pub const MOST_PLACES: usize = 16;

/// Who serves a name, and who stands by for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Id of the name.
    pub name: ServiceId,
    /// The last epoch that was reserved for anybody before this was told. Who stands by at a rank
    /// (from 1) of the order owns the epoch of that rank behind this one: nobody else ever serves
    /// at it.
    pub epoch: u64,
    /// The epoch at which the first of the members serves; 0 while nobody is known to.
    pub served_at: u64,
    /// Epochs below this are reserved durably: a standby may take them by itself.
    pub limit: u64,
    /// The `SERVICE_*` bits that all members have.
    pub flags: u32,
    /// Whether a standby may take the name by itself; else the runtime says who.
    pub ordered: bool,
    /// When a caller that waits suspects who serves.
    pub health: HealthCheck,
    /// Instances in their order: the first serves, the others stand by. At most
    /// [`MOST_MEMBERS`].
    pub members: Vec<ServiceId>,
}

/// How it is found out that who serves a name hangs. All times in milliseconds.
///
/// ```
/// use ipc::HealthCheck;
///
/// let check = HealthCheck { busy_ms: 500, ..HealthCheck::default() };
/// assert_eq!(check.silence_ms(), 15);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// A caller that has heard nothing for so long asks whether anybody is there: 1 to 60,000.
    pub interval_ms: u32,
    /// How long an answer to that may take: 1 to 60,000.
    pub timeout_ms: u32,
    /// So many answers missed one after another are a suspicion: 1 to 100.
    pub threshold: u32,
    /// How long who serves may be in handlers without coming round: up to 3,600,000; 0 for any
    /// time.
    pub busy_ms: u32,
}

impl Default for HealthCheck {
    /// 10 ms, 5 ms, 3, and no limit for handlers.
    fn default() -> HealthCheck {
        HealthCheck { interval_ms: 10, timeout_ms: 5, threshold: 3, busy_ms: 0 }
    }
}

impl HealthCheck {
    /// The longest interval and timeout.
    const LONGEST_MS: u32 = 60_000;
    /// The highest threshold.
    const MOST_MISSED: u32 = 100;
    /// The longest limit for handlers.
    const LONGEST_BUSY_MS: u32 = 3_600_000;

    /// Whether all of it lies in its ranges.
    pub fn is_valid(&self) -> bool {
        let times = [self.interval_ms, self.timeout_ms];
        times.iter().all(|ms| (1..=Self::LONGEST_MS).contains(ms))
            && (1..=Self::MOST_MISSED).contains(&self.threshold)
            && self.busy_ms <= Self::LONGEST_BUSY_MS
    }

    /// How long who is asked may be silent before it is suspected.
    pub fn silence_ms(&self) -> u32 {
        self.timeout_ms.saturating_mul(self.threshold)
    }
}

/// Who serves a name when who did does not any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum FailoverStrategy {
    /// The next in the order, by itself, the moment it sees all before it dead. Who comes back
    /// stands by as the last.
    #[default]
    HotStandby = 0,
    /// The same, and the first of the order takes the name back when it is there again.
    Priority = 1,
    /// The next behind who served last, all round. The runtime says who.
    RoundRobin = 2,
    /// The one whose process serves the fewest channels. The runtime says who.
    LeastLoaded = 3,
    /// Nobody, until somebody [triggers](crate::Node::trigger_failover) it.
    Manual = 4,
}

impl FailoverStrategy {
    /// All of them, by their numbers.
    pub const ALL: [FailoverStrategy; 5] = [
        FailoverStrategy::HotStandby,
        FailoverStrategy::Priority,
        FailoverStrategy::RoundRobin,
        FailoverStrategy::LeastLoaded,
        FailoverStrategy::Manual,
    ];

    /// Reads its number: a `failover_strategy_t`.
    pub fn from_number(number: u32) -> Option<FailoverStrategy> {
        FailoverStrategy::ALL.get(number as usize).copied()
    }

    /// Whether a standby may take the name by itself.
    pub fn is_ordered(self) -> bool {
        matches!(self, FailoverStrategy::HotStandby | FailoverStrategy::Priority)
    }

    /// Its name, as node files and `ipctl` have it.
    pub fn word(self) -> &'static str {
        match self {
            FailoverStrategy::HotStandby => "hot_standby",
            FailoverStrategy::Priority => "priority",
            FailoverStrategy::RoundRobin => "round_robin",
            FailoverStrategy::LeastLoaded => "least_loaded",
            FailoverStrategy::Manual => "manual",
        }
    }
}

/// Who is to serve a name, in which order, and when who does is passed over.
///
/// ```
/// use ipc::{FailoverPlan, HealthCheck, ServiceId, FailoverStrategy};
///
/// let plan = FailoverPlan {
///     service: ServiceId::new(7),
///     strategy: FailoverStrategy::Priority,
///     health: HealthCheck::default(),
///     order: vec![ServiceId::new(9), ServiceId::new(8)],
/// };
/// # let _ = plan;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailoverPlan {
    /// The name, or an instance of it.
    pub service: ServiceId,
    /// Who is next.
    pub strategy: FailoverStrategy,
    /// When who serves is suspected.
    pub health: HealthCheck,
    /// Instances of the name in their order, the primary first; those that are not named come
    /// behind, in the order in which they registered. At most [`MOST_MEMBERS`](crate::control).
    pub order: Vec<ServiceId>,
}

/// What ended an instance, or does not let it serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FailureKind {
    /// Nothing: it serves, or stands by.
    None = 0,
    /// Its process died.
    Crashed = 1,
    /// Its process lives, and does not answer.
    Hung = 2,
    /// Its connection to the runtime was lost.
    Unreachable = 3,
    /// It let go of the name in order.
    Stopped = 4,
}

impl FailureKind {
    /// Reads its number: a `failure_kind_t`.
    pub fn from_number(number: u32) -> Option<FailureKind> {
        use FailureKind::{Crashed, Hung, None as Nothing, Stopped, Unreachable};
        let all = [Nothing, Crashed, Hung, Unreachable, Stopped];
        all.get(number as usize).copied()
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessEnd {
    /// With this exit status, 0 to 255.
    Exit(u8),
    /// By this signal.
    Signal(u8),
}

impl ProcessEnd {
    /// Its number in a packet; 0 is for what is not known.
    pub(super) fn number(end: Option<ProcessEnd>) -> u32 {
        match end {
            None => 0,
            Some(ProcessEnd::Exit(status)) => 0x100 | u32::from(status),
            Some(ProcessEnd::Signal(signal)) => 0x200 | u32::from(signal),
        }
    }

    /// Reads that number.
    pub(super) fn from_number(number: u32) -> Result<Option<ProcessEnd>, Malformed> {
        let low = number as u8;
        match number >> 8 {
            0 if low == 0 => Ok(None),
            1 => Ok(Some(ProcessEnd::Exit(low))),
            2 => Ok(Some(ProcessEnd::Signal(low))),
            _ => Err(Malformed::Field),
        }
    }
}

/// What is known of an instance's failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it was; none where the instance is well.
    pub kind: FailureKind,
    /// Whose it was.
    pub instance: ServiceId,
    /// The last epoch at which it served; 0 where it never did.
    pub epoch: u64,
    /// When the runtime knew of it: `CLOCK_MONOTONIC` in ns; 0 where it is well.
    pub detected_at_ns: u64,
    /// When the runtime last knew it to be well, in the same time.
    pub last_seen_ns: u64,
    /// How its process ended, where that has and this runtime is its parent: it has started it as a
    /// service of its node file.
    pub end: Option<ProcessEnd>,
}

/// How a name is configured, and how it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Id of the name.
    pub name: ServiceId,
    /// Who serves it, or 0.
    pub serves: ServiceId,
    /// The last epoch that was told.
    pub epoch: u64,
    /// Who is next.
    pub strategy: FailoverStrategy,
    /// When who serves is suspected.
    pub health: HealthCheck,
    /// Whether that was configured.
    pub configured: bool,
    /// Whether who serves is suspected now.
    pub suspected: bool,
    /// Suspicions that callers had in this run, those that were none included.
    pub suspicions: u64,
}

/// Changes that fit one packet.
pub const MOST_CHANGES: usize = (MAX_PACKET - HEAD - 12) / Change::BYTES;

impl Change {
    /// Bytes of one in a packet.
    const BYTES: usize = 8 + 3 * 4 + 8 + 4 + 8 + 3 * 4;
}

/// Why a name changed hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Cause {
    /// The first that came.
    First = 0,
    /// Who served died, or left without a word.
    Died = 1,
    /// Who served let the name go in order.
    Left = 2,
    /// An operator, or a program, asked for it.
    Triggered = 3,
    /// Who served did not answer.
    Hung = 4,
    /// One that goes before it in the order was there.
    Preferred = 5,
}

/// One change of hands of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Counts all changes of this run, from 1.
    pub number: u64,
    /// Id of the name.
    pub name: ServiceId,
    /// Who served before, or 0.
    pub from: ServiceId,
    /// Who serves now.
    pub to: ServiceId,
    /// At this epoch.
    pub epoch: u64,
    /// Why.
    pub cause: Cause,
    /// When the runtime knew of it: `CLOCK_MONOTONIC` in ns.
    pub at_ns: u64,
    /// From the order to the word that it is done, in µs; 0 where a standby went first.
    pub took_us: u32,
    /// From the first word of a suspicion to the runtime's own finding, in µs; 0 without one.
    pub detected_us: u32,
    /// From the runtime's word to that of who serves now that it does, in µs; 0 where a standby
    /// went first, or has not said it yet.
    pub promoted_us: u32,
}

impl Cause {
    /// Reads its number.
    pub fn from_number(number: u32) -> Option<Cause> {
        use Cause::{Died, First, Hung, Left, Preferred, Triggered};
        [First, Died, Left, Triggered, Hung, Preferred].into_iter().find(|it| *it as u32 == number)
    }
}
