//! The runtime's replies, as packets.

use super::{
    Entry, MAX_PACKET, MOST_CHANGES, Malformed, Reply, events,
    regions::RegionReply,
    wire::{Reader, Writer},
};
use crate::error::Status;

/// Lays out a reply as one packet. Pages must have been cut with [`page_fits`](super::page_fits).
pub fn encode_reply(sequence: u32, reply: &Reply) -> Vec<u8> {
    let status = match reply {
        Reply::Refused(status) => *status,
        _ => Status::OK,
    };
    let mut out = Writer::new(reply_verb(reply), sequence, status);
    match reply {
        Reply::Welcome { node, kernel_pid } => {
            out.u32(node.get());
            out.u32(*kernel_pid);
        }
        Reply::Registered { instance, name, ticket } => {
            out.u32(instance.get());
            out.u32(name.get());
            out.raw(ticket);
        }
        Reply::Done | Reply::Refused(_) => {}
        Reply::Found { name } => out.u32(name.get()),
        Reply::Connected(introduction) | Reply::Incoming(introduction) => {
            out.introduction(introduction);
        }
        Reply::Page { entries, next } => {
            out.u32(*next);
            out.u32(entries.len() as u32);
            for entry in entries {
                out.entry(entry);
            }
        }
        Reply::State { pid, uptime_ms, nodes, services, channels } => {
            out.u32(*pid);
            out.u64(*uptime_ms);
            out.u32(*nodes);
            out.u32(*services);
            out.u64(*channels);
        }
        Reply::Answer { length } => out.u64(*length),
        Reply::Revoked { channel } => out.u64(*channel),
        Reply::Board { node, pid, segment, next } => {
            out.u32(node.get());
            out.u32(*pid);
            out.u32(*segment);
            out.u64(*next);
        }
        Reply::Payloads { instance, bytes, for_ms } => {
            out.u32(instance.get());
            out.u32(*bytes);
            out.u32(*for_ms);
        }
        Reply::Trace { instance, every_us, for_ms } => {
            out.u32(instance.get());
            out.u32(*every_us);
            out.u32(*for_ms);
        }
        Reply::Token { token } => out.raw(&**token),
        Reply::Permitted { permissions } => out.u64(*permissions),
        Reply::PublicKey { key } => out.raw(key),
        Reply::Group(group) => out.group(group),
        Reply::Promote { instance, epoch } => {
            out.u32(instance.get());
            out.u64(*epoch);
        }
        Reply::Yield { instance } => out.u32(instance.get()),
        Reply::Changes { next, changes } => {
            out.u64(*next);
            out.u32(changes.len() as u32);
            for change in changes {
                out.change(change);
            }
        }
        Reply::Failure(failure) => out.failure(failure),
        Reply::Probe { instance, number } => {
            out.u32(instance.get());
            out.u32(*number);
        }
        Reply::Standing(standing) => out.standing(standing),
        Reply::Region(reply) => reply.write(&mut out),
        Reply::Topic { .. }
        | Reply::Ring { .. }
        | Reply::Bus(_)
        | Reply::Topics { .. }
        | Reply::Listeners { .. } => {
            events::encode_reply(&mut out, reply);
        }
        Reply::Kept { next, name } => {
            out.u64(*next);
            out.name(name);
        }
    }
    out.bytes
}

fn reply_verb(reply: &Reply) -> u16 {
    match reply {
        Reply::Welcome { .. } => 101,
        Reply::Registered { .. } => 102,
        Reply::Done => 103,
        Reply::Found { .. } => 104,
        Reply::Connected(_) => 105,
        Reply::Incoming(_) => 106,
        Reply::Page { .. } => 107,
        Reply::State { .. } => 108,
        Reply::Refused(_) => 109,
        Reply::Answer { .. } => 110,
        Reply::Revoked { .. } => 111,
        Reply::Board { .. } => 112,
        Reply::Trace { .. } => 113,
        Reply::Token { .. } => 120,
        Reply::Permitted { .. } => 121,
        Reply::PublicKey { .. } => 122,
        Reply::Group(_) => 150,
        Reply::Promote { .. } => 151,
        Reply::Yield { .. } => 152,
        Reply::Changes { .. } => 153,
        Reply::Failure(_) => 154,
        Reply::Probe { .. } => 155,
        Reply::Standing(_) => 156,
        Reply::Region(reply) => reply.verb(),
        Reply::Topic { .. } => 140,
        Reply::Ring { .. } => 142,
        Reply::Bus(_) => 143,
        Reply::Topics { .. } => 144,
        Reply::Listeners { .. } => 168,
        Reply::Kept { .. } => 160,
        Reply::Payloads { .. } => 162,
    }
}

/// Reads a reply from a packet, with its sequence.
///
/// # Errors
/// [`Malformed`] for every packet that [`encode_reply`] could not have made.
pub fn decode_reply(bytes: &[u8]) -> Result<(u32, Reply), Malformed> {
    let (mut input, head) = Reader::new(bytes)?;
    let reply = match head.verb {
        101 => Reply::Welcome { node: input.id()?, kernel_pid: input.u32()? },
        102 => {
            Reply::Registered { instance: input.id()?, name: input.id()?, ticket: input.take()? }
        }
        103 => Reply::Done,
        104 => Reply::Found { name: input.id()? },
        105 => Reply::Connected(Box::new(input.introduction()?)),
        106 => Reply::Incoming(Box::new(input.introduction()?)),
        107 => {
            let next = input.u32()?;
            let count = input.u32()? as usize;
            if count > MAX_PACKET / Entry::FIXED {
                return Err(Malformed::Field);
            }
            let entries = (0..count).map(|_| input.entry()).collect::<Result<_, _>>()?;
            Reply::Page { entries, next }
        }
        108 => Reply::State {
            pid: input.u32()?,
            uptime_ms: input.u64()?,
            nodes: input.u32()?,
            services: input.u32()?,
            channels: input.u64()?,
        },
        109 => Reply::Refused(Status::from_code(head.status)),
        110 => Reply::Answer { length: input.u64()? },
        111 => Reply::Revoked { channel: input.u64()? },
        112 => Reply::Board {
            node: input.id()?,
            pid: input.u32()?,
            segment: input.u32()?,
            next: input.u64()?,
        },
        113 => Reply::Trace { instance: input.id()?, every_us: input.u32()?, for_ms: input.u32()? },
        120 => Reply::Token { token: Box::new(input.take()?) },
        121 => Reply::Permitted { permissions: input.u64()? },
        122 => Reply::PublicKey { key: input.take()? },
        150 => Reply::Group(input.group()?),
        151 => Reply::Promote { instance: input.id()?, epoch: input.u64()? },
        152 => Reply::Yield { instance: input.id()? },
        153 => {
            let next = input.u64()?;
            let count = input.u32()? as usize;
            if count > MOST_CHANGES {
                return Err(Malformed::Field);
            }
            let changes = (0..count).map(|_| input.change()).collect::<Result<_, _>>()?;
            Reply::Changes { next, changes }
        }
        154 => Reply::Failure(input.failure()?),
        155 => Reply::Probe { instance: input.id()?, number: input.u32()? },
        156 => Reply::Standing(input.standing()?),
        145..=148 => Reply::Region(RegionReply::read(head.verb, &mut input)?),
        140..=144 | 168 => events::decode_reply(head.verb, &mut input)?,
        160 => Reply::Kept { next: input.u64()?, name: input.name()? },
        162 => Reply::Payloads { instance: input.id()?, bytes: input.u32()?, for_ms: input.u32()? },
        verb => return Err(Malformed::Verb(verb)),
    };
    if head.status != 0 && !matches!(reply, Reply::Refused(_)) {
        return Err(Malformed::Field);
    }
    input.end()?;
    Ok((head.sequence, reply))
}
