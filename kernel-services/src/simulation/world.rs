//! A world: processes that come, freeze, go on and are killed, a runtime that dies and returns,
//! and chance that says who acts next. At its end all is well again, and what was begun must end.

use std::{fmt::Debug, sync::Arc};

use super::{
    caller::Caller,
    chance::Chance,
    member::{Life, Member},
    net::Net,
    record::{Kind, Record, Tally},
};
use crate::token::TokenKey;
use ipc::control::Request;

const MS: u64 = 1_000_000;

/// Members at a time, and in all.
const MOST_AT_ONCE: usize = 4;
const MOST_MEMBERS: usize = 8;
/// Steps at most until the callers know whom to call, while things happen, and at most until all
/// has ended.
const MOST_TO_BEGIN: usize = 2_000;
const STEPS: usize = 600;
const MOST_TO_END: usize = 60_000;

#[derive(Debug)]
pub(super) struct World {
    net: Net,
    members: Vec<Member>,
    callers: Vec<Caller>,
    /// The number of the next caller.
    next_caller: u32,
    record: Record,
    chance: Chance,
    /// Whether nothing bad happens any more.
    is_healed: bool,
}

impl World {
    pub(super) fn new(seed: u64, key: Arc<TokenKey>) -> World {
        let mut chance = Chance::new(seed);
        let kinds = [Kind::Plain, Kind::Idempotent, Kind::Gated];
        let record = Record::new(kinds[chance.below(kinds.len())]);
        let mut net = Net::new(key);
        let members = (0..2 + chance.below(3)).map(|_| Member::new(&mut net)).collect();
        let callers: Vec<_> =
            (0..=chance.below(2) as u32).map(|it| Caller::new(&mut net, it)).collect();
        let next_caller = callers.len() as u32;
        World { net, members, callers, next_caller, record, chance, is_healed: true }
    }

    /// Lives through a history; gives what was wrong with it.
    pub(super) fn run(mut self) -> (Vec<String>, Tally) {
        for _ in 0..MOST_TO_BEGIN {
            if self.callers.iter().all(Caller::is_ready) {
                break;
            }
            self.step();
        }
        self.is_healed = false;
        for _ in 0..STEPS {
            self.step();
        }
        self.is_healed = true;
        self.record.say(|| "from here on all is well".to_owned());
        self.heal();
        let mut left = MOST_TO_END;
        while !self.is_settled() && left > 0 {
            self.step();
            left -= 1;
        }
        if left == 0 {
            self.record.fault("it does not come to an end".to_owned());
            for member in &self.members {
                self.record.say(|| member.sketch());
            }
            for caller in &self.callers {
                self.record.say(|| caller.sketch());
            }
        }
        let faults = self.record.settle();
        (faults, self.record.tally)
    }

    fn step(&mut self) {
        self.record.now_us = self.net.now_ns / 1000;
        // When all is well, nobody is so slow that whom he deals with gives him up.
        let rare = if self.is_healed { 400 } else { 80 };
        let pace = if self.chance.one_in(rare) { 400 * MS } else { 2 * MS };
        self.net.now_ns += 1 + self.chance.number() % pace;
        self.net.tick();
        if !self.is_healed && self.chance.one_in(24) {
            return self.befall();
        }
        match self.chance.below(10) {
            0..=2 => {
                self.net.read(&mut self.chance);
            }
            3..=5 => self.have_caller_act(),
            _ => self.have_member_act(),
        }
    }

    fn have_caller_act(&mut self) {
        let name = self.members.iter().map(Member::name).max();
        let index = self.chance.below(self.callers.len());
        let caller = &mut self.callers[index];
        if caller.is_frozen {
            return;
        }
        caller.find(name.unwrap_or(ipc::ServiceId::NONE));
        caller.act(&mut self.net, &mut self.record, !self.is_healed, &mut self.chance);
    }

    fn have_member_act(&mut self) {
        let index = self.chance.below(self.members.len());
        // The log of who served before, at whatever epoch that was.
        let epoch = self.members[index].works_at();
        let before = self.members.iter().filter_map(|it| it.log.as_ref());
        let before = before.filter(|log| log.epoch < epoch).max_by_key(|log| log.epoch);
        let predecessor = before.map(|log| log.words.clone());
        let may_die = !self.is_healed && self.is_dispensable(index);
        let member = &mut self.members[index];
        match member.life {
            Life::Running => {
                let (net, chance) = (&mut self.net, &mut self.chance);
                member.act(net, &mut self.record, (predecessor.as_ref(), may_die), chance);
            }
            Life::Killed => member.fall_apart(&mut self.net, &mut self.chance),
            Life::Frozen | Life::Gone => {}
        }
    }

    /// Something happens to somebody.
    fn befall(&mut self) {
        let index = self.chance.below(self.members.len());
        let living = self.members.iter().filter(|it| it.life == Life::Running).count();
        let present = self.members.iter().filter(|it| it.life != Life::Gone).count();
        let is_frozen = self.members[index].life == Life::Frozen;
        match self.chance.below(19) {
            0..=2 if self.is_dispensable(index) => self.kill(index),
            3 | 4 if living > 1 && self.members[index].life == Life::Running => {
                self.members[index].life = Life::Frozen;
                self.net.frozen[self.members[index].process] = true;
                self.record.say(|| format!("{index} freezes"));
            }
            5..=7 if is_frozen => {
                self.members[index].life = Life::Running;
                self.net.frozen[self.members[index].process] = false;
                self.record.say(|| format!("{index} goes on"));
            }
            8 if self.net.is_up() => {
                self.record.tally.falls += 1;
                self.net.fall();
                self.record.say(|| "the runtime dies".to_owned());
            }
            9..=11 if !self.net.is_up() => {
                self.net.rise();
                self.record.say(|| "the runtime is back".to_owned());
            }
            12 | 13 if present < MOST_AT_ONCE && self.members.len() < MOST_MEMBERS => {
                self.members.push(Member::new(&mut self.net));
            }
            14 => {
                let (failed, backup) = (self.members[index].name(), ipc::ServiceId::NONE);
                let process = self.members[index].process;
                self.record.say(|| format!("{index} asks for a change of hands"));
                self.net.say(process, 9, Request::Trigger { failed, backup });
            }
            15 => self.replace_caller(),
            16..=18 => {
                let index = self.chance.below(self.callers.len());
                let caller = &mut self.callers[index];
                // It freezes seldom, and goes on soon.
                caller.is_frozen = !caller.is_frozen && self.chance.one_in(3);
            }
            _ => {}
        }
    }

    /// A caller is killed, and another one begins.
    fn replace_caller(&mut self) {
        let index = self.chance.below(self.callers.len());
        let fresh = Caller::new(&mut self.net, self.next_caller);
        self.next_caller += 1;
        std::mem::replace(&mut self.callers[index], fresh).die(&mut self.net, &mut self.record);
    }

    /// Whether another one is left who holds the name: when all are gone, nobody remembers it.
    fn is_dispensable(&self, index: usize) -> bool {
        let mut others = self.members.iter().enumerate().filter(|(other, _)| *other != index);
        others.any(|(_, it)| it.is_registered() && it.is_alive())
    }

    fn kill(&mut self, index: usize) {
        if self.members[index].is_alive() {
            self.record.say(|| format!("{index} is killed"));
            self.record.tally.deaths += 1;
            self.members[index].kill(&mut self.net);
        }
    }

    /// From here on nothing bad happens.
    fn heal(&mut self) {
        if !self.net.is_up() {
            self.net.rise();
        }
        for member in self.members.iter_mut().filter(|it| it.life == Life::Frozen) {
            member.life = Life::Running;
            self.net.frozen[member.process] = false;
        }
        self.callers.iter_mut().for_each(|it| it.is_frozen = false);
    }

    fn is_settled(&self) -> bool {
        self.callers.iter().all(Caller::is_idle) && self.members.iter().all(Member::is_idle)
    }
}

/// A history by its seed.
pub(super) fn history(seed: u64, key: &Arc<TokenKey>) -> Result<Tally, impl Debug> {
    let (faults, tally) = World::new(seed, Arc::clone(key)).run();
    if faults.is_empty() { Ok(tally) } else { Err(faults) }
}
