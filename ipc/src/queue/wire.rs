//! What `ipc-queue` and its callers say to each other: the payloads of ordinary calls.
//!
//! ```text
//!  0    1    2        4        5      8                16
//!  ┌────┬────┬────────┬────────┬──────┬────────────────┬───────┬─────────┐
//!  │verb│ver.│ flags  │ length │ 0    │ who            │ queue │ rest …  │
//!  └────┴────┴────────┴────────┴──────┴────────────────┴───────┴─────────┘
//! ```
//! Numbers are little-endian. `who` is the producer or the consumer, as it has chosen by chance;
//! `queue` is a name of `length` bytes. What comes behind it depends on the verb; a message's
//! payload stands last, as it is. `docs/queues.md` has every verb with its answer and errors.

use crate::Status;

/// The version that this library speaks.
pub const VERSION: u8 = 1;
/// Longest name of a queue.
pub const MAX_QUEUE: usize = 64;
/// Most messages that are settled by one request.
pub const MAX_ITEMS: usize = 1024;

/// Flag of `Put`: wait for room, until the call's deadline.
pub const WAIT: u16 = 1;
/// Flag: dead letters are meant.
pub const DEAD: u16 = 2;

/// `OP_SEND`: the right to put messages in, as a bit of the caller's permissions.
pub const MAY_PUT: u64 = 1 << 1;
/// `OP_SUBSCRIBE`: the right to take them out.
pub const MAY_TAKE: u64 = 1 << 3;
/// `OP_ADMIN`: the right to look at queues, redrive and purge them.
pub const MAY_MANAGE: u64 = 1 << 5;

/// Checks the name of a queue: 1 to 64 of `a-z A-Z 0-9 - _ .`, the first a letter or digit.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn check_queue(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > MAX_QUEUE {
        return Err("a queue's name has 1 to 64 characters");
    }
    if !name.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return Err("a queue's name begins with a letter or a digit");
    }
    if name.bytes().any(|byte| !byte.is_ascii_alphanumeric() && !b"-_.".contains(&byte)) {
        return Err("a queue's name has letters, digits, - _ and . only");
    }
    Ok(())
}

/// What a consumer says of messages that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Done with: they are gone for good.
    Ack,
    /// Somebody is to try again, after so many ms.
    Nack(u32),
    /// It needs them for so many ms more.
    Extend(u32),
    /// Nobody is to try again: dead letters.
    Bury,
    /// It has these and no others.
    Hold,
}

/// What is asked of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask<'a> {
    /// Whether there is such a queue; it is made where that is allowed. Answer: [`Terms`].
    Open,
    /// Stores a message. Answer: its id, or 0 where it was stored before.
    Put {
        /// The producer's number for it; it counts from 1.
        sequence: u64,
        /// Before it may be taken.
        delay_ms: u32,
        /// 0 to 4.
        priority: u8,
        /// Whether it may wait for room.
        waits: bool,
        /// What it says.
        payload: &'a [u8],
    },
    /// Leases messages. Answer: [`Message`]s.
    Take {
        /// At most.
        most: u16,
        /// How long to wait for the first.
        wait_ms: u32,
        /// Of payload, beyond the first message's.
        bytes: u32,
        /// Whether dead letters are meant.
        dead: bool,
    },
    /// Says what becomes of messages. Answer: a byte for each, 0 where it was the consumer's.
    Settle {
        /// Of all of them.
        verdict: Verdict,
        /// By id and attempt; at most [`MAX_ITEMS`].
        items: Vec<(u64, u32)>,
    },
    /// The consumer goes. Answer: how many messages it had.
    Leave,
    /// How queues stand: this one, or all from it on where `all` says so. Answer: [`Account`]s.
    List {
        /// The name is where to begin, and may be empty.
        all: bool,
    },
    /// Looks at messages with ids above one. Answer: [`Message`]s, which nobody gets by that.
    Peek {
        /// Above this id.
        above: u64,
        /// At most.
        most: u16,
        /// Whether dead letters are meant.
        dead: bool,
    },
    /// Makes messages of dead letters. Answer: of how many.
    Redrive {
        /// At most.
        most: u32,
    },
    /// Throws away what nobody has. Answer: how many.
    Purge {
        /// Whether only dead letters are meant.
        dead: bool,
    },
}

/// A request, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The producer or consumer; 0 where neither is meant.
    pub who: u64,
    /// The queue's name.
    pub queue: &'a str,
    /// What is asked.
    pub ask: Ask<'a>,
}

/// Lays out a request, in place of what `out` had.
pub fn encode_ask(asked: &Asked<'_>, out: &mut Vec<u8>) {
    let (verb, flags) = verb_of(&asked.ask);
    out.clear();
    out.extend_from_slice(&[verb, VERSION]);
    out.extend_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(&[asked.queue.len() as u8, 0, 0, 0]);
    out.extend_from_slice(&asked.who.to_le_bytes());
    out.extend_from_slice(asked.queue.as_bytes());
    match &asked.ask {
        Ask::Open | Ask::Leave | Ask::List { .. } | Ask::Purge { .. } => {}
        Ask::Put { sequence, delay_ms, priority, payload, .. } => {
            out.extend_from_slice(&sequence.to_le_bytes());
            out.extend_from_slice(&delay_ms.to_le_bytes());
            out.extend_from_slice(&[*priority, 0, 0, 0]);
            out.extend_from_slice(payload);
        }
        Ask::Take { most, wait_ms, bytes, .. } => {
            out.extend_from_slice(&u32::from(*most).to_le_bytes());
            out.extend_from_slice(&wait_ms.to_le_bytes());
            out.extend_from_slice(&bytes.to_le_bytes());
        }
        Ask::Settle { verdict, items } => {
            let (kind, ms) = match verdict {
                Verdict::Ack => (0_u32, 0),
                Verdict::Nack(ms) => (1, *ms),
                Verdict::Extend(ms) => (2, *ms),
                Verdict::Bury => (3, 0),
                Verdict::Hold => (4, 0),
            };
            out.extend_from_slice(&kind.to_le_bytes());
            out.extend_from_slice(&ms.to_le_bytes());
            for (id, attempt) in items {
                out.extend_from_slice(&id.to_le_bytes());
                out.extend_from_slice(&attempt.to_le_bytes());
            }
        }
        Ask::Peek { above, most, .. } => {
            out.extend_from_slice(&above.to_le_bytes());
            out.extend_from_slice(&u32::from(*most).to_le_bytes());
        }
        Ask::Redrive { most } => out.extend_from_slice(&most.to_le_bytes()),
    }
}

/// The verb's number, and the flags.
fn verb_of(ask: &Ask<'_>) -> (u8, u16) {
    let dead = |dead: bool| if dead { DEAD } else { 0 };
    match ask {
        Ask::Open => (1, 0),
        Ask::Put { waits, .. } => (2, if *waits { WAIT } else { 0 }),
        Ask::Take { dead: it, .. } => (3, dead(*it)),
        Ask::Settle { .. } => (4, 0),
        Ask::Leave => (5, 0),
        Ask::List { all } => (6, if *all { WAIT } else { 0 }),
        Ask::Peek { dead: it, .. } => (7, dead(*it)),
        Ask::Redrive { .. } => (8, 0),
        Ask::Purge { dead: it } => (9, dead(*it)),
    }
}

/// Reads a request.
///
/// # Errors
/// `PROTOCOL` for another version, `INVALID` for what [`encode_ask`] cannot have made, and for a
/// name that [`check_queue`] refuses.
pub fn decode_ask(bytes: &[u8]) -> Result<Asked<'_>, Status> {
    let mut input = Input(bytes);
    let [verb, version] = input.take()?;
    if version != VERSION {
        return Err(Status::PROTOCOL);
    }
    let flags = u16::from_le_bytes(input.take()?);
    let [length, zeros @ ..] = input.take::<4>()?;
    let who = input.u64()?;
    let name = input.split(usize::from(length))?;
    let queue = std::str::from_utf8(name).map_err(|_| Status::INVALID)?;
    let names_all = verb == 6 && flags == WAIT;
    if zeros != [0; 3] || flags & !(WAIT | DEAD) != 0 {
        return Err(Status::INVALID);
    }
    if !(names_all && queue.is_empty()) {
        check_queue(queue).map_err(|_| Status::INVALID)?;
    }
    let (waits, dead) = (flags & WAIT != 0, flags & DEAD != 0);
    let ask = match verb {
        1 => Ask::Open,
        2 => {
            let (sequence, delay_ms) = (input.u64()?, input.u32()?);
            let [priority, _, _, _] = input.take()?;
            if priority > 4 {
                return Err(Status::INVALID);
            }
            let payload = std::mem::take(&mut input.0);
            Ask::Put { sequence, delay_ms, priority, waits, payload }
        }
        3 => Ask::Take { most: input.u16()?, wait_ms: input.u32()?, bytes: input.u32()?, dead },
        4 => Ask::Settle { verdict: input.verdict()?, items: input.items()? },
        5 => Ask::Leave,
        6 => Ask::List { all: waits },
        7 => Ask::Peek { above: input.u64()?, most: input.u16()?, dead },
        8 => Ask::Redrive { most: input.u32()? },
        9 => Ask::Purge { dead },
        _ => return Err(Status::INVALID),
    };
    input.end()?;
    let asked = Asked { who, queue, ask };
    // Flags that mean nothing here.
    if verb_of(&asked.ask).1 == flags { Ok(asked) } else { Err(Status::INVALID) }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Status> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Status::INVALID)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn split(&mut self, length: usize) -> Result<&'a [u8], Status> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Status::INVALID)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, Status> {
        u16::try_from(self.u32()?).map_err(|_| Status::INVALID)
    }

    fn u32(&mut self) -> Result<u32, Status> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Status> {
        self.take().map(u64::from_le_bytes)
    }

    fn verdict(&mut self) -> Result<Verdict, Status> {
        Ok(match (self.u32()?, self.u32()?) {
            (0, 0) => Verdict::Ack,
            (1, ms) => Verdict::Nack(ms),
            (2, ms) => Verdict::Extend(ms),
            (3, 0) => Verdict::Bury,
            (4, 0) => Verdict::Hold,
            _ => return Err(Status::INVALID),
        })
    }

    fn items(&mut self) -> Result<Vec<(u64, u32)>, Status> {
        if self.0.len() > MAX_ITEMS * 12 {
            return Err(Status::INVALID);
        }
        let mut items = Vec::with_capacity(self.0.len() / 12);
        while !self.0.is_empty() {
            items.push((self.u64()?, self.u32()?));
        }
        Ok(items)
    }

    fn end(&self) -> Result<(), Status> {
        if self.0.is_empty() { Ok(()) } else { Err(Status::INVALID) }
    }
}

/// What holds for a queue: the answer to [`Ask::Open`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Bytes of a message at most.
    pub message_bytes: u32,
    /// How long a consumer has a message.
    pub lease_ms: u32,
    /// How often it is given out.
    pub attempts: u32,
    /// Whether it outlives the machine.
    pub is_journalled: bool,
}

/// Lays out terms.
pub fn encode_terms(terms: &Terms, out: &mut Vec<u8>) {
    out.clear();
    let words =
        [terms.message_bytes, terms.lease_ms, terms.attempts, u32::from(terms.is_journalled)];
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

/// Reads terms.
///
/// # Errors
/// `PROTOCOL` where there are none.
pub fn decode_terms(bytes: &[u8]) -> Result<Terms, Status> {
    let mut input = Input(bytes);
    let mut read = || -> Result<Terms, Status> {
        Ok(Terms {
            message_bytes: input.u32()?,
            lease_ms: input.u32()?,
            attempts: input.u32()?,
            is_journalled: input.u32()? != 0,
        })
    };
    read().map_err(|_| Status::PROTOCOL)
}

/// A message, in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Of this queue; never reused.
    pub id: u64,
    /// How often it was given out, with this time.
    pub attempt: u32,
    /// 0 to 4.
    pub priority: u8,
    /// Who sent it; 0 for who did not say.
    pub producer: u64,
    /// That one's number for it.
    pub sequence: u64,
    /// What it says.
    pub payload: &'a [u8],
}

/// Bytes of a message in an answer, beside its payload.
pub const MESSAGE_BYTES: usize = 36;

/// Appends a message to an answer.
pub fn encode_message(message: &Message<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(&message.id.to_le_bytes());
    out.extend_from_slice(&message.producer.to_le_bytes());
    out.extend_from_slice(&message.sequence.to_le_bytes());
    out.extend_from_slice(&message.attempt.to_le_bytes());
    out.extend_from_slice(&[message.priority, 0, 0, 0]);
    out.extend_from_slice(&(message.payload.len() as u32).to_le_bytes());
    out.extend_from_slice(message.payload);
}

/// Reads the messages of an answer.
///
/// # Errors
/// `PROTOCOL` for what is no such answer.
pub fn decode_messages(bytes: &[u8]) -> Result<Vec<Message<'_>>, Status> {
    let mut input = Input(bytes);
    let mut messages = Vec::new();
    while !input.0.is_empty() {
        messages.push(message(&mut input).map_err(|_| Status::PROTOCOL)?);
    }
    Ok(messages)
}

fn message<'a>(input: &mut Input<'a>) -> Result<Message<'a>, Status> {
    let (id, producer, sequence) = (input.u64()?, input.u64()?, input.u64()?);
    let attempt = input.u32()?;
    let [priority, _, _, _] = input.take()?;
    let length = input.u32()? as usize;
    Ok(Message { id, attempt, priority, producer, sequence, payload: input.split(length)? })
}

/// How a queue stands, and what it did since its process began: the answer to [`Ask::List`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// The queue.
    pub name: String,
    /// Whether it outlives the machine.
    pub is_journalled: bool,
    /// In the order of [`Account::FIGURES`].
    pub figures: [u64; 15],
}

impl Account {
    /// What the figures are, by name. Up to `segments` they say how it stands, then what was done.
    pub const FIGURES: [&'static str; 15] = [
        "ready",
        "delayed",
        "leased",
        "dead",
        "bytes",
        "takers",
        "putters",
        "segments",
        "stored",
        "delivered",
        "acked",
        "returned",
        "died",
        "duplicates",
        "refused",
    ];

    /// Gives a figure by its name.
    pub fn figure(&self, name: &str) -> Option<u64> {
        let index = Account::FIGURES.iter().position(|it| *it == name)?;
        Some(self.figures[index])
    }
}

/// Appends an account to an answer.
pub fn encode_account(account: &Account, out: &mut Vec<u8>) {
    out.extend_from_slice(&[account.name.len() as u8, u8::from(account.is_journalled)]);
    out.extend_from_slice(account.name.as_bytes());
    for figure in account.figures {
        out.extend_from_slice(&figure.to_le_bytes());
    }
}

/// Reads the accounts of an answer.
///
/// # Errors
/// `PROTOCOL` for what is no such answer.
pub fn decode_accounts(bytes: &[u8]) -> Result<Vec<Account>, Status> {
    let mut input = Input(bytes);
    let mut accounts = Vec::new();
    while !input.0.is_empty() {
        accounts.push(account(&mut input).map_err(|_| Status::PROTOCOL)?);
    }
    Ok(accounts)
}

fn account(input: &mut Input<'_>) -> Result<Account, Status> {
    let [length, is_journalled] = input.take()?;
    let name = std::str::from_utf8(input.split(usize::from(length))?);
    let name = name.map_err(|_| Status::INVALID)?.to_owned();
    let mut figures = [0; 15];
    for figure in &mut figures {
        *figure = input.u64()?;
    }
    Ok(Account { name, is_journalled: is_journalled != 0, figures })
}

/// Reads an answer that is one number.
///
/// # Errors
/// `PROTOCOL` where it is none.
pub fn decode_number(bytes: &[u8]) -> Result<u64, Status> {
    bytes.try_into().map(u64::from_le_bytes).map_err(|_| Status::PROTOCOL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asks() -> impl Strategy<Value = (u64, String, Ask<'static>)> {
        let verdict = prop_oneof![
            Just(Verdict::Ack),
            any::<u32>().prop_map(Verdict::Nack),
            any::<u32>().prop_map(Verdict::Extend),
            Just(Verdict::Bury),
            Just(Verdict::Hold)
        ];
        let items = prop::collection::vec(any::<(u64, u32)>(), 0..20);
        let ask =
            prop_oneof![
                Just(Ask::Open),
                (any::<u64>(), any::<u32>(), 0..5_u8, any::<bool>()).prop_map(
                    |(sequence, delay_ms, priority, waits)| Ask::Put {
                        sequence,
                        delay_ms,
                        priority,
                        waits,
                        payload: b"what it says"
                    }
                ),
                (any::<u16>(), any::<u32>(), any::<u32>(), any::<bool>()).prop_map(
                    |(most, wait_ms, bytes, dead)| Ask::Take { most, wait_ms, bytes, dead }
                ),
                (verdict, items).prop_map(|(verdict, items)| Ask::Settle { verdict, items }),
                Just(Ask::Leave),
                any::<bool>().prop_map(|all| Ask::List { all }),
                (any::<u64>(), any::<u16>(), any::<bool>())
                    .prop_map(|(above, most, dead)| Ask::Peek { above, most, dead }),
                any::<u32>().prop_map(|most| Ask::Redrive { most }),
                any::<bool>().prop_map(|dead| Ask::Purge { dead }),
            ];
        (any::<u64>(), "[a-z0-9][a-zA-Z0-9._-]{0,63}", ask)
    }

    proptest! {
        #[test]
        fn what_is_asked_is_what_is_read((who, queue, ask) in asks()) {
            let asked = Asked { who, queue: &queue, ask };
            let mut bytes = Vec::new();
            encode_ask(&asked, &mut bytes);
            prop_assert_eq!(decode_ask(&bytes), Ok(asked.clone()));
            let is_put = matches!(asked.ask, Ask::Put { .. });
            for cut in 0..bytes.len() {
                // What is cut off is something else, or nothing.
                prop_assert!(decode_ask(&bytes[..cut]).is_err() || is_put || cut >= 16);
            }
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(asked) = decode_ask(&bytes) {
                let mut again = Vec::new();
                encode_ask(&asked, &mut again);
                prop_assert_eq!(decode_ask(&again), Ok(asked));
            }
            let _ = (decode_messages(&bytes), decode_accounts(&bytes), decode_terms(&bytes));
        }
    }

    #[test]
    fn answers_come_back() {
        let one =
            Message { id: 1, attempt: 2, priority: 3, producer: 4, sequence: 5, payload: b"six" };
        let mut bytes = Vec::new();
        encode_message(&one, &mut bytes);
        assert_eq!(bytes.len(), MESSAGE_BYTES + 3);
        encode_message(&Message { payload: b"", ..one }, &mut bytes);
        assert_eq!(decode_messages(&bytes), Ok(vec![one, Message { payload: b"", ..one }]));
        assert_eq!(decode_messages(&bytes[..bytes.len() - 1]), Err(Status::PROTOCOL));
        let account = Account { name: "a".to_owned(), is_journalled: true, figures: [7; 15] };
        bytes.clear();
        encode_account(&account, &mut bytes);
        assert_eq!(decode_accounts(&bytes), Ok(vec![account.clone()]));
        assert_eq!((account.figure("died"), account.figure("x")), (Some(7), None));
        let terms = Terms { message_bytes: 1, lease_ms: 2, attempts: 3, is_journalled: true };
        encode_terms(&terms, &mut bytes);
        assert_eq!(decode_terms(&bytes), Ok(terms));
    }
}
