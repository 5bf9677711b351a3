//! What nodes and the runtime say to each other about shared regions: verbs 45 to 49.

use super::{
    Malformed, TICKET_BYTES, Ticket,
    wire::{Reader, Writer},
};
use crate::ServiceId;

/// What a node asks of the runtime about regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionRequest {
    /// Enters a region of this node; carries its memory. Answer: [`RegionReply::Created`].
    Create {
        /// Bytes that its users see.
        size: u64,
        /// The id that it had under an earlier run of the runtime, or 0.
        claim: u64,
        /// What came with that id; zeros where none is claimed.
        ticket: Ticket,
    },
    /// Lets somebody map a region of this node, or not any more. Carries the memory, sealed for
    /// good, unless it takes a grant back. Answer: `Done`.
    Grant {
        /// The region.
        region: u64,
        /// Any id of whom it is for.
        to: ServiceId,
        /// What they may do.
        access: Access,
    },
    /// Asks for a region. Answer: [`RegionReply::Mapped`], with the memory and, where the kernel
    /// has it, a pidfd of the owner. A node that has it from before a restart of the runtime
    /// carries its memory, and is answered only if it may not have it any more.
    Map {
        /// The region.
        region: u64,
    },
    /// A node lets go of a region once; the owner of it for good. Never answered.
    Unmap {
        /// The region.
        region: u64,
    },
    /// Asks for the next region, for operators. Answer: [`RegionReply::Entry`], or `Done` when
    /// there are no more.
    List {
        /// 0, or the region before.
        after: u64,
    },
}

/// What a grant lets others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing any more.
    None = 0,
    /// Read; the kernel lets nobody but the owner write.
    Read = 1,
    /// Write, too: what stands in such a region is arbitrary bytes.
    Write = 2,
}

/// What the runtime answers about regions, and what it says by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionReply {
    /// Answer to `Create`.
    Created {
        /// Its id; never used again.
        region: u64,
        /// Shown with a claim of the id, it proves that the region is this process's.
        ticket: Ticket,
    },
    /// Answer to `Map`.
    Mapped {
        /// The region.
        region: u64,
        /// Bytes that its users see.
        size: u64,
        /// Whether the memory may be mapped writable.
        writable: bool,
        /// The owner: its instance, or its anonymous id.
        owner: ServiceId,
        /// The owner's process.
        owner_pid: u32,
        /// The owner's user.
        owner_uid: u32,
    },
    /// Answer to `List`.
    Entry(RegionEntry),
    /// Sent by itself to who has mapped a region: nothing will come of it any more.
    Ended {
        /// The region.
        region: u64,
        /// Whether the grant was taken back; otherwise the owner is gone.
        revoked: bool,
    },
}

/// Describes a region to an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionEntry {
    /// Its id.
    pub region: u64,
    /// Bytes that its users see.
    pub size: u64,
    /// Bytes of its memory.
    pub bytes: u64,
    /// The owner's node, or 0 when it is gone.
    pub owner: ServiceId,
    /// The owner's process.
    pub pid: u32,
    /// The owner's user.
    pub uid: u32,
    /// Grants made and not taken back.
    pub grants: u32,
    /// Nodes other than the owner that have mapped it.
    pub holders: u32,
    /// What was granted; nothing before the first grant.
    pub access: Access,
}

impl Access {
    fn read(input: &mut Reader<'_>) -> Result<Access, Malformed> {
        match input.u32()? {
            0 => Ok(Access::None),
            1 => Ok(Access::Read),
            2 => Ok(Access::Write),
            _ => Err(Malformed::Field),
        }
    }
}

impl RegionRequest {
    /// Whether a descriptor may come with it.
    pub fn may_carry(&self) -> bool {
        match self {
            RegionRequest::Create { .. } | RegionRequest::Map { .. } => true,
            RegionRequest::Grant { access, .. } => *access != Access::None,
            RegionRequest::Unmap { .. } | RegionRequest::List { .. } => false,
        }
    }

    /// Whether it has an answer.
    pub fn is_answered(&self) -> bool {
        !matches!(self, RegionRequest::Unmap { .. })
    }

    pub(super) fn verb(&self) -> u16 {
        match self {
            RegionRequest::Create { .. } => 45,
            RegionRequest::Grant { .. } => 46,
            RegionRequest::Map { .. } => 47,
            RegionRequest::Unmap { .. } => 48,
            RegionRequest::List { .. } => 49,
        }
    }

    pub(super) fn write(&self, out: &mut Writer) {
        match self {
            RegionRequest::Create { size, claim, ticket } => {
                out.u64(*size);
                out.u64(*claim);
                out.raw(ticket);
            }
            RegionRequest::Grant { region, to, access } => {
                out.u64(*region);
                out.u32(to.get());
                out.u32(*access as u32);
            }
            RegionRequest::Map { region } | RegionRequest::Unmap { region } => out.u64(*region),
            RegionRequest::List { after } => out.u64(*after),
        }
    }

    pub(super) fn read(verb: u16, input: &mut Reader<'_>) -> Result<RegionRequest, Malformed> {
        Ok(match verb {
            45 => RegionRequest::Create {
                size: input.u64()?,
                claim: input.u64()?,
                ticket: input.take::<TICKET_BYTES>()?,
            },
            46 => RegionRequest::Grant {
                region: input.u64()?,
                to: input.id()?,
                access: Access::read(input)?,
            },
            47 => RegionRequest::Map { region: input.u64()? },
            48 => RegionRequest::Unmap { region: input.u64()? },
            49 => RegionRequest::List { after: input.u64()? },
            _ => return Err(Malformed::Verb(verb)),
        })
    }
}

impl RegionReply {
    pub(super) fn verb(&self) -> u16 {
        match self {
            RegionReply::Created { .. } => 145,
            RegionReply::Mapped { .. } => 146,
            RegionReply::Entry(_) => 147,
            RegionReply::Ended { .. } => 148,
        }
    }

    pub(super) fn write(&self, out: &mut Writer) {
        match self {
            RegionReply::Created { region, ticket } => {
                out.u64(*region);
                out.raw(ticket);
            }
            RegionReply::Mapped { region, size, writable, owner, owner_pid, owner_uid } => {
                out.u64(*region);
                out.u64(*size);
                out.u32(u32::from(*writable));
                out.u32(owner.get());
                out.u32(*owner_pid);
                out.u32(*owner_uid);
            }
            RegionReply::Entry(entry) => {
                for number in [entry.region, entry.size, entry.bytes] {
                    out.u64(number);
                }
                let RegionEntry { owner, pid, uid, grants, holders, access, .. } = *entry;
                for number in [owner.get(), pid, uid, grants, holders, access as u32] {
                    out.u32(number);
                }
            }
            RegionReply::Ended { region, revoked } => {
                out.u64(*region);
                out.u32(u32::from(*revoked));
            }
        }
    }

    pub(super) fn read(verb: u16, input: &mut Reader<'_>) -> Result<RegionReply, Malformed> {
        Ok(match verb {
            145 => RegionReply::Created { region: input.u64()?, ticket: input.take()? },
            146 => RegionReply::Mapped {
                region: input.u64()?,
                size: input.u64()?,
                writable: input.bool()?,
                owner: input.id()?,
                owner_pid: input.u32()?,
                owner_uid: input.u32()?,
            },
            147 => RegionReply::Entry(RegionEntry {
                region: input.u64()?,
                size: input.u64()?,
                bytes: input.u64()?,
                owner: input.id()?,
                pid: input.u32()?,
                uid: input.u32()?,
                grants: input.u32()?,
                holders: input.u32()?,
                access: Access::read(input)?,
            }),
            148 => RegionReply::Ended { region: input.u64()?, revoked: input.bool()? },
            _ => return Err(Malformed::Verb(verb)),
        })
    }
}
