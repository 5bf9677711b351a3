//! The nodes' requests, as packets.

use super::{
    Malformed, Request, events,
    regions::RegionRequest,
    wire::{Reader, Writer},
};
use crate::error::Status;

/// Lays out a request as one packet.
pub fn encode_request(sequence: u32, request: &Request) -> Vec<u8> {
    let mut out = Writer::new(request_verb(request), sequence, Status::OK);
    match request {
        Request::Hello { asymmetric, encrypts, key } => {
            out.u32(u32::from(*asymmetric));
            out.u32(u32::from(*encrypts));
            out.raw(key);
        }
        Request::Register { flags, claim_instance, claim_name, ticket, name } => {
            out.u32(*flags);
            out.u32(*claim_instance);
            out.u32(*claim_name);
            out.raw(ticket);
            out.name(name);
        }
        Request::Unregister { instance } => out.u32(instance.get()),
        Request::Discover { name } | Request::Wait { name } | Request::Keep { name } => {
            out.name(name);
        }
        Request::Forget { request } => out.u32(*request),
        Request::Connect { dest, geometry } => {
            out.u32(dest.get());
            out.geometry(*geometry);
        }
        Request::ConnectBySocket { dest } => out.u32(dest.get()),
        Request::Accept { channel, status } => {
            out.u64(*channel);
            out.i32(status.code());
        }
        Request::List { after } => out.u32(*after),
        Request::Ping | Request::PublicKey | Request::SharesNoMemory => {}
        Request::Topic { .. }
        | Request::Advertise { .. }
        | Request::Subscribe { .. }
        | Request::Bus(_)
        | Request::Topics { .. }
        | Request::Listeners { .. } => events::encode_request(&mut out, request),
        Request::Command { text } => out.text(text),
        Request::Closed { channel } => out.u64(*channel),
        Request::Board { segment } => out.u32(*segment),
        Request::Boards { after } | Request::Kept { after } | Request::History { after } => {
            out.u64(*after);
        }
        Request::Payloads { instance, bytes, for_ms } => {
            out.u32(instance.get());
            out.u32(*bytes);
            out.u32(*for_ms);
        }
        Request::Trace { instance, every_us, for_ms } => {
            out.u32(instance.get());
            out.u32(*every_us);
            out.u32(*for_ms);
        }
        Request::Holds { serves, introduction } => {
            out.u32(u32::from(*serves));
            out.introduction(introduction);
        }
        Request::Verify { src, dest, operation } => {
            out.u32(src.get());
            out.u32(dest.get());
            out.u32(*operation);
        }
        Request::IssueToken { dest, permissions, lifetime_ms } => {
            out.u32(dest.get());
            out.u64(*permissions);
            out.u32(*lifetime_ms);
        }
        Request::CheckToken { presenter, token } => {
            out.u32(presenter.get());
            out.raw(&**token);
        }
        Request::Promoted { instance, epoch } => {
            out.u32(instance.get());
            out.u64(*epoch);
        }
        Request::Trigger { failed, backup } => {
            out.u32(failed.get());
            out.u32(backup.get());
        }
        Request::Suspect { instance, mark } => {
            out.u32(instance.get());
            out.u32(*mark);
        }
        Request::Detect { service } | Request::Standing { service } => out.u32(service.get()),
        Request::Configure(plan) => out.plan(plan),
        Request::Pulse { instance, number, busy_us } => {
            out.u32(instance.get());
            out.u32(*number);
            out.u64(*busy_us);
        }
        Request::Region(request) => request.write(&mut out),
    }
    out.bytes
}

impl Request {
    /// Whether a [`Request::Forget`] withdraws it, while it is not answered.
    pub(crate) fn may_be_forgotten(&self) -> bool {
        matches!(
            self,
            Request::Wait { .. } | Request::Connect { .. } | Request::ConnectBySocket { .. }
        )
    }
}

fn request_verb(request: &Request) -> u16 {
    match request {
        Request::Hello { .. } => 1,
        Request::Register { .. } => 2,
        Request::Unregister { .. } => 3,
        Request::Discover { .. } => 4,
        Request::Wait { .. } => 5,
        Request::Forget { .. } => 6,
        Request::Connect { .. } => 7,
        Request::Accept { .. } => 8,
        Request::List { .. } => 9,
        Request::Ping => 10,
        Request::Command { .. } => 11,
        Request::Closed { .. } => 12,
        Request::Board { .. } => 13,
        Request::Boards { .. } => 14,
        Request::Trace { .. } => 15,
        Request::Holds { .. } => 30,
        Request::Verify { .. } => 20,
        Request::IssueToken { .. } => 21,
        Request::CheckToken { .. } => 22,
        Request::PublicKey => 23,
        Request::Promoted { .. } => 50,
        Request::Trigger { .. } => 51,
        Request::History { .. } => 52,
        Request::Suspect { .. } => 53,
        Request::Detect { .. } => 54,
        Request::Configure(_) => 55,
        Request::Pulse { .. } => 56,
        Request::Standing { .. } => 57,
        Request::Region(request) => request.verb(),
        Request::Topic { .. } => 40,
        Request::Advertise { .. } => 41,
        Request::Subscribe { .. } => 42,
        Request::Bus(_) => 43,
        Request::Topics { .. } => 44,
        Request::Keep { .. } => 60,
        Request::Kept { .. } => 61,
        Request::Payloads { .. } => 62,
        Request::ConnectBySocket { .. } => 66,
        Request::SharesNoMemory => 67,
        Request::Listeners { .. } => 68,
    }
}

/// Reads a request from a packet, with its sequence.
///
/// # Errors
/// [`Malformed`] for every packet that [`encode_request`] could not have made.
pub fn decode_request(bytes: &[u8]) -> Result<(u32, Request), Malformed> {
    let (mut input, head) = Reader::new(bytes)?;
    let request = match head.verb {
        1 => Request::Hello {
            asymmetric: input.bool()?,
            encrypts: input.bool()?,
            key: input.take()?,
        },
        2 => Request::Register {
            flags: input.u32()?,
            claim_instance: input.u32()?,
            claim_name: input.u32()?,
            ticket: input.take()?,
            name: input.name()?,
        },
        3 => Request::Unregister { instance: input.id()? },
        4 => Request::Discover { name: input.name()? },
        5 => Request::Wait { name: input.name()? },
        6 => Request::Forget { request: input.u32()? },
        7 => Request::Connect { dest: input.id()?, geometry: input.geometry()? },
        8 => Request::Accept { channel: input.u64()?, status: Status::from_code(input.i32()?) },
        9 => Request::List { after: input.u32()? },
        10 => Request::Ping,
        11 => Request::Command { text: input.text()? },
        12 => Request::Closed { channel: input.u64()? },
        13 => Request::Board { segment: input.u32()? },
        14 => Request::Boards { after: input.u64()? },
        15 => {
            Request::Trace { instance: input.id()?, every_us: input.u32()?, for_ms: input.u32()? }
        }
        30 => Request::Holds { serves: input.bool()?, introduction: input.introduction()? },
        20 => Request::Verify { src: input.id()?, dest: input.id()?, operation: input.u32()? },
        21 => Request::IssueToken {
            dest: input.id()?,
            permissions: input.u64()?,
            lifetime_ms: input.u32()?,
        },
        22 => Request::CheckToken { presenter: input.id()?, token: Box::new(input.take()?) },
        23 => Request::PublicKey,
        50 => Request::Promoted { instance: input.id()?, epoch: input.u64()? },
        51 => Request::Trigger { failed: input.id()?, backup: input.id()? },
        52 => Request::History { after: input.u64()? },
        53 => Request::Suspect { instance: input.id()?, mark: input.u32()? },
        54 => Request::Detect { service: input.id()? },
        55 => Request::Configure(input.plan()?),
        56 => Request::Pulse { instance: input.id()?, number: input.u32()?, busy_us: input.u64()? },
        57 => Request::Standing { service: input.id()? },
        45..=49 => Request::Region(RegionRequest::read(head.verb, &mut input)?),
        40..=44 | 68 => events::decode_request(head.verb, &mut input)?,
        60 => Request::Keep { name: input.name()? },
        61 => Request::Kept { after: input.u64()? },
        62 => {
            Request::Payloads { instance: input.id()?, bytes: input.u32()?, for_ms: input.u32()? }
        }
        66 => Request::ConnectBySocket { dest: input.id()? },
        67 => Request::SharesNoMemory,
        verb => return Err(Malformed::Verb(verb)),
    };
    if head.status != 0 {
        return Err(Malformed::Field);
    }
    input.end()?;
    Ok((head.sequence, request))
}
