//! The file that declares queues.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use ipc::queue::wire::check_queue;
use serde::Deserialize;

use crate::{log, machine::Limits};

/// What `ipc-queue` serves.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The name that it serves.
    pub service: String,
    /// Where journals are; a relative path begins at the file's directory.
    pub directory: PathBuf,
    /// Whether journals may be written by `io_uring`.
    pub io_uring: bool,
    /// How many queues callers may make by naming them; they are in memory.
    pub on_demand: u32,
    /// How many of them processes of one user may make; by default all.
    pub on_demand_per_user: Option<u32>,
    /// What holds for queues that do not say otherwise.
    pub defaults: Terms,
    /// The queues, by name.
    pub queue: BTreeMap<String, Terms>,
}

/// What holds for a queue; what is not said is as in `defaults`, or as [`Limits`] has it.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Terms {
    durability: Option<Durability>,
    messages: Option<u32>,
    bytes: Option<u64>,
    message_bytes: Option<u32>,
    lease_ms: Option<u32>,
    attempts: Option<u32>,
    producers: Option<u32>,
    waiting: Option<u32>,
    segment_bytes: Option<u64>,
}

/// What a queue's messages outlive.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Producers, consumers, and `ipc-queue` itself.
    #[default]
    Memory,
    /// The machine, too.
    Journalled,
}

/// A queue, with all that holds for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declared {
    /// What its messages outlive.
    pub durability: Durability,
    /// What it may hold.
    pub limits: Limits,
    /// Bytes of its segments.
    pub segment_bytes: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            service: ipc::queue::SERVICE.to_owned(),
            directory: PathBuf::from("journal"),
            io_uring: true,
            on_demand: 0,
            on_demand_per_user: None,
            defaults: Terms::default(),
            queue: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// A text for people: what is wrong, and where.
    pub fn read(path: &Path) -> Result<Config, String> {
        let shown = path.display();
        let text = fs::read_to_string(path).map_err(|error| format!("{shown}: {error}"))?;
        let mut config = Config::parse(&text).map_err(|error| format!("{shown}: {error}"))?;
        if let (true, Some(parent)) = (config.directory.is_relative(), path.parent()) {
            config.directory = parent.join(&config.directory);
        }
        Ok(config)
    }

    /// Reads and checks what a file has.
    ///
    /// # Errors
    /// As for [`read`](Config::read).
    pub fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.declare(Terms::default()).map_err(|error| format!("[defaults]: {error}"))?;
        for (name, terms) in &config.queue {
            check_queue(name).map_err(|error| format!("[queue.{name:?}]: {error}"))?;
            config.declare(*terms).map_err(|error| format!("[queue.{name}]: {error}"))?;
        }
        Ok(config)
    }

    /// Says what holds for a queue of these terms.
    ///
    /// # Errors
    /// A sentence about the value that is out of its range.
    pub fn declare(&self, terms: Terms) -> Result<Declared, &'static str> {
        let (of, or, base) = (terms, self.defaults, Limits::default());
        let limits = Limits {
            messages: of.messages.or(or.messages).unwrap_or(base.messages),
            bytes: of.bytes.or(or.bytes).unwrap_or(base.bytes),
            message_bytes: of.message_bytes.or(or.message_bytes).unwrap_or(base.message_bytes),
            lease_ms: of.lease_ms.or(or.lease_ms).unwrap_or(base.lease_ms),
            attempts: of.attempts.or(or.attempts).unwrap_or(base.attempts),
            producers: of.producers.or(or.producers).unwrap_or(base.producers),
            waiting: of.waiting.or(or.waiting).unwrap_or(base.waiting),
        };
        let segment_bytes = of.segment_bytes.or(or.segment_bytes).unwrap_or(log::SEGMENT);
        check(&limits, segment_bytes)?;
        let durability = of.durability.or(or.durability).unwrap_or_default();
        Ok(Declared { durability, limits, segment_bytes })
    }
}

fn check(limits: &Limits, segment_bytes: u64) -> Result<(), &'static str> {
    let rules = [
        ((1..=10_000_000).contains(&limits.messages), "messages must be from 1 to 10000000"),
        (limits.bytes <= 16 << 30, "bytes must be at most 17179869184"),
        (
            limits.message_bytes <= 64 << 20 && u64::from(limits.message_bytes) <= limits.bytes,
            "message_bytes must be at most 67108864, and at most bytes",
        ),
        (limits.lease_ms >= 1, "lease_ms must be at least 1"),
        (limits.attempts >= 1, "attempts must be at least 1"),
        ((1..=16_384).contains(&limits.producers), "producers must be from 1 to 16384"),
        ((1..=65_536).contains(&limits.waiting), "waiting must be from 1 to 65536"),
        (
            (128 << 10..=256 << 20).contains(&segment_bytes) && segment_bytes.is_multiple_of(4096),
            "segment_bytes must be a multiple of 4096 from 131072 to 268435456",
        ),
    ];
    rules.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, rule)| Err(rule))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_has_its_own_terms_or_the_defaults() {
        let config = Config::parse(
            "on_demand = 3\non_demand_per_user = 2\n[defaults]\nattempts = 9\n\
             [queue.orders]\ndurability = \
             \"journalled\"\nmessages = 7\n[queue.\"a.b\"]\n",
        )
        .expect("it is right");
        let orders = config.declare(config.queue["orders"]).expect("checked");
        assert_eq!(orders.durability, Durability::Journalled);
        assert_eq!((orders.limits.messages, orders.limits.attempts), (7, 9));
        assert_eq!(orders.limits.lease_ms, Limits::default().lease_ms);
        assert_eq!((config.on_demand, &*config.service), (3, "ipc.queue"));
        assert_eq!(config.on_demand_per_user, Some(2));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, said) in [
            ("[queue.orders]\nmessages = 0", "[queue.orders]: messages must be from 1"),
            ("[queue.\"a b\"]", "a queue's name has letters"),
            ("[queue.x]\nmesages = 1", "unknown field `mesages`"),
            ("[defaults]\nsegment_bytes = 1", "[defaults]: segment_bytes"),
            ("[queue.x]\nbytes = 10", "message_bytes must be"),
        ] {
            let error = Config::parse(text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
