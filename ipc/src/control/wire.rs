//! The fields of control packets, as bytes.

use super::{
    Cause, Change, Entry, FailoverPlan, FailoverStrategy, Failure, FailureKind, Group, HealthCheck,
    Introduction, MAX_COMMAND, MOST_MEMBERS, Malformed, ProcessEnd, Standing, VERSION, check_name,
};
use crate::{ServiceId, error::Status, layout::Geometry};

pub(super) struct Head {
    pub(super) verb: u16,
    pub(super) sequence: u32,
    pub(super) status: i32,
}

pub(super) struct Writer {
    pub(super) bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn new(verb: u16, sequence: u32, status: Status) -> Writer {
        let mut out = Writer { bytes: Vec::with_capacity(128) };
        out.u16(VERSION);
        out.u16(verb);
        out.u32(sequence);
        out.i32(status.code());
        out
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn i32(&mut self, value: i32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn name(&mut self, name: &str) {
        self.text(name);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.u16(text.len() as u16);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    pub(super) fn geometry(&mut self, geometry: Geometry) {
        self.u32(geometry.ordinary_cells());
        self.u32(geometry.ordinary_slab());
    }

    pub(super) fn introduction(&mut self, it: &Introduction) {
        self.u64(it.channel);
        self.u32(it.session);
        self.u64(it.start_ns);
        self.u32(u32::from(it.asymmetric));
        self.u32(it.peer.get());
        self.u32(it.peer_name.get());
        self.u32(it.peer_pid);
        self.u32(it.peer_uid);
        self.u32(it.dest.get());
        self.u32(it.dest_name.get());
        self.geometry(it.geometry);
        self.u64(it.permissions);
        self.u32(it.opener.get());
        self.u32(u32::from(it.encrypted));
        self.raw(&it.peer_key);
        self.bond(&it.bond);
    }

    pub(super) fn group(&mut self, it: &Group) {
        self.u32(it.name.get());
        self.u64(it.epoch);
        self.u64(it.served_at);
        self.u64(it.limit);
        self.u32(it.flags);
        self.u32(u32::from(it.ordered));
        self.health(&it.health);
        self.u32(it.members.len() as u32);
        it.members.iter().for_each(|member| self.u32(member.get()));
    }

    pub(super) fn health(&mut self, it: &HealthCheck) {
        for number in [it.interval_ms, it.timeout_ms, it.threshold, it.busy_ms] {
            self.u32(number);
        }
    }

    pub(super) fn plan(&mut self, it: &FailoverPlan) {
        self.u32(it.service.get());
        self.u32(it.strategy as u32);
        self.health(&it.health);
        self.u32(it.order.len() as u32);
        it.order.iter().for_each(|member| self.u32(member.get()));
    }

    pub(super) fn failure(&mut self, it: &Failure) {
        self.u32(it.kind as u32);
        self.u32(it.instance.get());
        self.u64(it.epoch);
        self.u64(it.detected_at_ns);
        self.u64(it.last_seen_ns);
        self.u32(ProcessEnd::number(it.end));
    }

    pub(super) fn standing(&mut self, it: &Standing) {
        self.u32(it.name.get());
        self.u32(it.serves.get());
        self.u64(it.epoch);
        self.u32(it.strategy as u32);
        self.health(&it.health);
        self.u32(u32::from(it.configured));
        self.u32(u32::from(it.suspected));
        self.u64(it.suspicions);
    }

    pub(super) fn change(&mut self, it: &Change) {
        self.u64(it.number);
        self.u32(it.name.get());
        self.u32(it.from.get());
        self.u32(it.to.get());
        self.u64(it.epoch);
        self.u32(it.cause as u32);
        self.u64(it.at_ns);
        self.u32(it.took_us);
        self.u32(it.detected_us);
        self.u32(it.promoted_us);
    }

    pub(super) fn entry(&mut self, entry: &Entry) {
        self.u32(entry.instance.get());
        self.u32(entry.name_id.get());
        self.u32(entry.pid);
        self.u32(entry.uid);
        self.u32(entry.rank);
        self.u32(entry.flags);
        self.u32(entry.channels);
        self.name(&entry.name);
    }
}

pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<(Reader<'a>, Head), Malformed> {
        let mut input = Reader { rest: bytes };
        let version = input.u16()?;
        if version != VERSION {
            return Err(Malformed::Version(version));
        }
        let head = Head { verb: input.u16()?, sequence: input.u32()?, status: input.i32()? };
        Ok((input, head))
    }

    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed::Short)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.take().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, Malformed> {
        self.take().map(i32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_le_bytes)
    }

    pub(super) fn bool(&mut self) -> Result<bool, Malformed> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed::Field),
        }
    }

    pub(super) fn id(&mut self) -> Result<ServiceId, Malformed> {
        self.u32().map(ServiceId::new)
    }

    pub(super) fn name(&mut self) -> Result<String, Malformed> {
        let name = self.bytes()?;
        let name = std::str::from_utf8(name).map_err(|_| Malformed::Name)?;
        check_name(name).map_err(|_| Malformed::Name)?;
        Ok(name.to_owned())
    }

    pub(super) fn text(&mut self) -> Result<String, Malformed> {
        let text = self.bytes()?;
        if text.len() > MAX_COMMAND {
            return Err(Malformed::Field);
        }
        String::from_utf8(text.to_vec()).map_err(|_| Malformed::Field)
    }

    /// So many bytes as a length before them says.
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::from(self.u16()?);
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(Malformed::Short)?;
        self.rest = rest;
        Ok(bytes)
    }

    pub(super) fn geometry(&mut self) -> Result<Geometry, Malformed> {
        Geometry::new(self.u32()?, self.u32()?).map_err(|_| Malformed::Field)
    }

    pub(super) fn introduction(&mut self) -> Result<Introduction, Malformed> {
        Ok(Introduction {
            channel: self.u64()?,
            session: self.u32()?,
            start_ns: self.u64()?,
            asymmetric: self.bool()?,
            peer: self.id()?,
            peer_name: self.id()?,
            peer_pid: self.u32()?,
            peer_uid: self.u32()?,
            dest: self.id()?,
            dest_name: self.id()?,
            geometry: self.geometry()?,
            permissions: self.u64()?,
            opener: self.id()?,
            encrypted: self.bool()?,
            peer_key: self.take()?,
            bond: self.bond()?,
        })
    }

    pub(super) fn group(&mut self) -> Result<Group, Malformed> {
        let (name, epoch, served_at) = (self.id()?, self.u64()?, self.u64()?);
        let limit = self.u64()?;
        let (flags, ordered, health) = (self.u32()?, self.bool()?, self.health()?);
        let count = self.u32()? as usize;
        if count > MOST_MEMBERS {
            return Err(Malformed::Field);
        }
        let members = (0..count).map(|_| self.id()).collect::<Result<_, _>>()?;
        Ok(Group { name, epoch, served_at, limit, flags, ordered, health, members })
    }

    pub(super) fn health(&mut self) -> Result<HealthCheck, Malformed> {
        let (interval_ms, timeout_ms) = (self.u32()?, self.u32()?);
        let (threshold, busy_ms) = (self.u32()?, self.u32()?);
        let health = HealthCheck { interval_ms, timeout_ms, threshold, busy_ms };
        if health.is_valid() { Ok(health) } else { Err(Malformed::Field) }
    }

    pub(super) fn strategy(&mut self) -> Result<FailoverStrategy, Malformed> {
        FailoverStrategy::from_number(self.u32()?).ok_or(Malformed::Field)
    }

    pub(super) fn plan(&mut self) -> Result<FailoverPlan, Malformed> {
        let (service, strategy, health) = (self.id()?, self.strategy()?, self.health()?);
        let count = self.u32()? as usize;
        if count > MOST_MEMBERS {
            return Err(Malformed::Field);
        }
        let order = (0..count).map(|_| self.id()).collect::<Result<_, _>>()?;
        Ok(FailoverPlan { service, strategy, health, order })
    }

    pub(super) fn failure(&mut self) -> Result<Failure, Malformed> {
        Ok(Failure {
            kind: FailureKind::from_number(self.u32()?).ok_or(Malformed::Field)?,
            instance: self.id()?,
            epoch: self.u64()?,
            detected_at_ns: self.u64()?,
            last_seen_ns: self.u64()?,
            end: ProcessEnd::from_number(self.u32()?)?,
        })
    }

    pub(super) fn standing(&mut self) -> Result<Standing, Malformed> {
        Ok(Standing {
            name: self.id()?,
            serves: self.id()?,
            epoch: self.u64()?,
            strategy: self.strategy()?,
            health: self.health()?,
            configured: self.bool()?,
            suspected: self.bool()?,
            suspicions: self.u64()?,
        })
    }

    pub(super) fn change(&mut self) -> Result<Change, Malformed> {
        Ok(Change {
            number: self.u64()?,
            name: self.id()?,
            from: self.id()?,
            to: self.id()?,
            epoch: self.u64()?,
            cause: Cause::from_number(self.u32()?).ok_or(Malformed::Field)?,
            at_ns: self.u64()?,
            took_us: self.u32()?,
            detected_us: self.u32()?,
            promoted_us: self.u32()?,
        })
    }

    pub(super) fn entry(&mut self) -> Result<Entry, Malformed> {
        Ok(Entry {
            instance: self.id()?,
            name_id: self.id()?,
            pid: self.u32()?,
            uid: self.u32()?,
            rank: self.u32()?,
            flags: self.u32()?,
            channels: self.u32()?,
            name: self.name()?,
        })
    }

    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed::Trailing) }
    }
}
