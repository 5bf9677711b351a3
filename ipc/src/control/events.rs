//! The packets of the event bus.

use crate::ServiceId;

use super::{
    HEAD, MAX_PACKET, Malformed, Reply, Request, check_name,
    wire::{Reader, Writer},
};

/// Flag of [`Request::Subscribe`]: it may sleep, so that publishers have to wake it.
pub const SUBSCRIBER_SLEEPS: u32 = 1;

/// Flag of [`Reply::Topic`]: publishers wait for subscribers that do not say otherwise.
pub const TOPIC_RELIABLE: u32 = 1;

/// What a [`BusNote`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum BusStep {
    /// A subscriber is reliable in a ring; comes with its cursor page. Passed on to the publisher.
    Cursor = 1,
    /// The publisher waits for that subscriber from `value`, a position, on. Passed on to it.
    Held = 2,
    /// The publisher has given that subscriber up. Passed on to it.
    Cut = 3,
    /// That subscriber is gone, or not reliable any more. Passed on to the publisher.
    Left = 4,
    /// A ring is no more: its publisher says so, or its subscribers are told; `value` is 1 where
    /// it stays for who comes.
    Withdrawn = 5,
    /// A subscriber of the topic has left it.
    Unsubscribed = 6,
    /// To a publisher: `value` says whether any subscriber of the ring may sleep.
    Sleepers = 7,
    /// To a publisher: go on in another ring, which not everybody is given that has this one.
    Rotate = 8,
    /// To a subscriber: the topic is forbidden to it. To a publisher: the ring is.
    Revoked = 9,
    /// A subscriber has lost `value` events of the topic so far, in all.
    Lost = 10,
}

impl BusStep {
    /// Finds the step of a number.
    pub fn from_number(number: u32) -> Option<BusStep> {
        use BusStep::{
            Cursor, Cut, Held, Left, Lost, Revoked, Rotate, Sleepers, Unsubscribed, Withdrawn,
        };
        let all =
            [Cursor, Held, Cut, Left, Withdrawn, Unsubscribed, Sleepers, Rotate, Revoked, Lost];
        all.into_iter().find(|it| *it as u32 == number)
    }
}

/// Something about a ring, or a subscription to a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusNote {
    /// What.
    pub step: BusStep,
    /// The topic.
    pub topic: u32,
    /// The ring: its publisher's node above, the publisher's number below; 0 where none is meant.
    pub ring: u64,
    /// The reliable subscriber: its node above, its own number below; 0 where none is meant.
    pub subscriber: u64,
    /// As the step says.
    pub value: u64,
}

/// Describes one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicEntry {
    /// Its number.
    pub id: u32,
    /// Bytes of each publisher's ring.
    pub bytes: u64,
    /// Rings that are published in.
    pub publishers: u32,
    /// Nodes that subscribe.
    pub subscribers: u32,
    /// Subscribers that publishers wait for.
    pub reliable: u32,
    /// Whether a publisher's last events stay when it is gone.
    pub retained: bool,
    /// Its name.
    pub name: String,
}

impl TopicEntry {
    /// Bytes of an entry without those of its name.
    const FIXED: usize = 5 * 4 + 8 + 2;
}

/// Most of them in one page.
pub const MOST_LISTENERS: usize = 128;

/// Describes a node that subscribes to a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its anonymous id.
    pub node: ServiceId,
    /// Its process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Whether publishers have to wake it.
    pub sleeps: bool,
    /// Rings whose publishers wait for it.
    pub reliable: u32,
    /// Events of the topic that it has lost since it subscribed, as it says: those that were
    /// overwritten before it read them.
    pub lost: u64,
}

/// Tells how many of the entries, from the first, fit into one packet.
pub fn topics_fit(entries: &[TopicEntry]) -> usize {
    let mut room = MAX_PACKET - HEAD - 8;
    let fits = |entry: &&TopicEntry| {
        let size = TopicEntry::FIXED + entry.name.len();
        let fits = size <= room;
        room = room.saturating_sub(size);
        fits
    };
    entries.iter().take_while(fits).count()
}

pub(super) fn encode_request(out: &mut Writer, request: &Request) {
    match request {
        Request::Topic { id, name } => {
            out.u32(*id);
            out.name(name);
        }
        Request::Advertise { topic, ring, follows, name } => {
            out.u32(*topic);
            out.u32(*ring);
            out.u32(*follows);
            out.name(name);
        }
        Request::Subscribe { topic, flags, name } => {
            out.u32(*topic);
            out.u32(*flags);
            out.name(name);
        }
        Request::Bus(note) => write_note(out, note),
        Request::Topics { after } => out.u32(*after),
        Request::Listeners { topic, after } => {
            out.u32(*topic);
            out.u32(*after);
        }
        _ => {}
    }
}

pub(super) fn decode_request(verb: u16, input: &mut Reader<'_>) -> Result<Request, Malformed> {
    Ok(match verb {
        40 => {
            let (id, name) = (input.u32()?, input.text()?);
            if !name.is_empty() {
                check_name(&name).map_err(|_| Malformed::Name)?;
            }
            Request::Topic { id, name }
        }
        41 => Request::Advertise {
            topic: input.u32()?,
            ring: input.u32()?,
            follows: input.u32()?,
            name: input.name()?,
        },
        42 => Request::Subscribe { topic: input.u32()?, flags: input.u32()?, name: input.name()? },
        43 => Request::Bus(read_note(input)?),
        44 => Request::Topics { after: input.u32()? },
        68 => Request::Listeners { topic: input.u32()?, after: input.u32()? },
        verb => return Err(Malformed::Verb(verb)),
    })
}

pub(super) fn encode_reply(out: &mut Writer, reply: &Reply) {
    match reply {
        Reply::Topic { id, bytes, flags, name } => {
            out.u32(*id);
            out.u64(*bytes);
            out.u32(*flags);
            out.name(name);
        }
        Reply::Ring { topic, ring, follows, publisher, pid } => {
            out.u32(*topic);
            out.u64(*ring);
            out.u64(*follows);
            out.u32(publisher.get());
            out.u32(*pid);
        }
        Reply::Bus(note) => write_note(out, note),
        Reply::Topics { entries, next } => {
            out.u32(*next);
            out.u32(entries.len() as u32);
            for entry in entries {
                out.u32(entry.id);
                out.u64(entry.bytes);
                out.u32(entry.publishers);
                out.u32(entry.subscribers);
                out.u32(entry.reliable);
                out.u32(u32::from(entry.retained));
                out.name(&entry.name);
            }
        }
        Reply::Listeners { entries, next } => {
            out.u32(*next);
            out.u32(entries.len() as u32);
            for entry in entries {
                out.u32(entry.node.get());
                out.u32(entry.pid);
                out.u32(entry.uid);
                out.u32(u32::from(entry.sleeps));
                out.u32(entry.reliable);
                out.u64(entry.lost);
            }
        }
        _ => {}
    }
}

pub(super) fn decode_reply(verb: u16, input: &mut Reader<'_>) -> Result<Reply, Malformed> {
    Ok(match verb {
        140 => Reply::Topic {
            id: input.u32()?,
            bytes: input.u64()?,
            flags: input.u32()?,
            name: input.name()?,
        },
        142 => Reply::Ring {
            topic: input.u32()?,
            ring: input.u64()?,
            follows: input.u64()?,
            publisher: input.id()?,
            pid: input.u32()?,
        },
        143 => Reply::Bus(read_note(input)?),
        144 => {
            let next = input.u32()?;
            let count = input.u32()? as usize;
            if count > MAX_PACKET / TopicEntry::FIXED {
                return Err(Malformed::Field);
            }
            let entries = (0..count).map(|_| read_entry(input)).collect::<Result<_, _>>()?;
            Reply::Topics { entries, next }
        }
        168 => {
            let next = input.u32()?;
            let count = input.u32()? as usize;
            if count > MOST_LISTENERS {
                return Err(Malformed::Field);
            }
            let entries = (0..count).map(|_| read_listener(input)).collect::<Result<_, _>>()?;
            Reply::Listeners { entries, next }
        }
        verb => return Err(Malformed::Verb(verb)),
    })
}

fn read_entry(input: &mut Reader<'_>) -> Result<TopicEntry, Malformed> {
    Ok(TopicEntry {
        id: input.u32()?,
        bytes: input.u64()?,
        publishers: input.u32()?,
        subscribers: input.u32()?,
        reliable: input.u32()?,
        retained: input.bool()?,
        name: input.name()?,
    })
}

fn read_listener(input: &mut Reader<'_>) -> Result<Listener, Malformed> {
    Ok(Listener {
        node: input.id()?,
        pid: input.u32()?,
        uid: input.u32()?,
        sleeps: input.bool()?,
        reliable: input.u32()?,
        lost: input.u64()?,
    })
}

fn write_note(out: &mut Writer, note: &BusNote) {
    out.u32(note.step as u32);
    out.u32(note.topic);
    out.u64(note.ring);
    out.u64(note.subscriber);
    out.u64(note.value);
}

fn read_note(input: &mut Reader<'_>) -> Result<BusNote, Malformed> {
    Ok(BusNote {
        step: BusStep::from_number(input.u32()?).ok_or(Malformed::Field)?,
        topic: input.u32()?,
        ring: input.u64()?,
        subscriber: input.u64()?,
        value: input.u64()?,
    })
}
