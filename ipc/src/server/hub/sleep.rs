//! Sleeping: arming the channels, hearing their doorbells, and a descriptor for foreign loops.

use std::{os::fd::AsFd, time::Duration};

use nix::sys::{
    epoll::{EpollEvent, EpollFlags, EpollTimeout},
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};

use super::{
    Hub, TOKEN_TIMER, asleep,
    lead::{Lead, Member},
};
use crate::{
    channel::{Channel, Claimed, Fate, Receive},
    clock,
    layout::Ring,
    link::FOREVER,
    sync::Ordering,
    wait::{Sleep, futex},
};

impl Hub {
    /// From now on our descriptor is readable whenever there is work.
    pub(crate) fn be_pollable(&self) {
        if !self.pollable.swap(true, Ordering::SeqCst) {
            let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
            if let Ok(timer) = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags) {
                let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
                let _ = self.epoll.add(timer.as_fd(), EpollEvent::new(edge, TOKEN_TIMER));
                let _ = self.timer.set(timer);
            }
            self.asleep.store(asleep::IN_EPOLL, Ordering::SeqCst);
            self.kick();
        }
    }

    /// Before a return to a foreign loop: everything armed, or our descriptor readable.
    pub(super) fn leave_pollable(&self, lead: &mut Lead) {
        if !self.pollable.load(Ordering::Relaxed) {
            return;
        }
        self.asleep.store(asleep::IN_EPOLL, Ordering::SeqCst);
        if let Some(timer) = self.timer.get() {
            let expiry = lead.next_expiry();
            let at = Expiration::OneShot(TimeSpec::from_duration(Duration::from_nanos(expiry)));
            let _ = if expiry == FOREVER {
                timer.unset()
            } else {
                timer.set(at, TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            };
        }
        if self.is_told_something() || !self.arm_sources() || !lead.arm_all() {
            self.ring();
        }
    }

    /// Arms every hot channel and sleeps until something happens, or until then.
    pub(super) fn sleep(&self, lead: &mut Lead, until: u64, turn: u32) {
        let pollable = self.pollable.load(Ordering::Relaxed);
        // With one channel, the futex: the shortest way to wake.
        let alone = lead.count == 1 && lead.hot.len() == 1 && !pollable && futex::has_waitv();
        let mode = if alone { asleep::IN_FUTEX } else { asleep::IN_EPOLL };
        let kicks = self.kicks.load(Ordering::SeqCst);
        self.asleep.store(mode, Ordering::SeqCst);
        let quiet =
            !self.is_told_something() && turn == self.interrupter.turn() && self.arm_sources();
        let soonest = lead.next_expiry().min(until);
        if alone {
            self.sleep_in_futex(lead, quiet, kicks, turn, soonest);
        } else if quiet && lead.arm_all() {
            self.sleep_in_epoll(lead, soonest);
        } else {
            // One channel that always has something must not drown the doorbells of the others.
            self.collect(lead, EpollTimeout::ZERO);
        }
        if !pollable {
            self.asleep.store(asleep::AWAKE, Ordering::SeqCst);
        }
    }

    fn sleep_in_futex(&self, lead: &Lead, quiet: bool, kicks: u32, turn: u32, until: u64) {
        let member = lead.seats.iter().flatten().next().map(|seat| seat.member.clone());
        let Some(member) = member.filter(|_| quiet) else { return };
        let channel = member.channel();
        let event = channel.event();
        {
            // A thread that leads this link for itself wakes us when it leaves.
            let Some(_rx) = channel.rx.try_claim() else {
                let word = futex::Word { at: &self.kicks, value: kicks, shared: false };
                let turned = self.interrupter.word(turn);
                futex::wait_words([Some(word), Some(turned), None, None], left(until));
                return;
            };
            channel.park(Sleep::Futex);
            if let Some((ring, count)) = member.wants() {
                channel.want(ring, count, Sleep::Futex);
            }
            channel.barrier();
        }
        member.left();
        if !member.is_ready() && !has_room(&member) && channel.check_life() == Fate::Open {
            let word = futex::Word { at: &self.kicks, value: kicks, shared: false };
            channel.sleep(event, [Some(word), Some(self.interrupter.word(turn))], left(until));
        }
        if let Some(_rx) = channel.rx.try_claim() {
            disarm(channel);
        }
        member.left();
    }

    fn sleep_in_epoll(&self, lead: &mut Lead, until: u64) {
        let timeout = match left(until) {
            None => EpollTimeout::NONE,
            // Rounded up, so as not to come back too early, and again, and again.
            Some(left) => {
                let ms = u16::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u16::MAX);
                EpollTimeout::from(ms)
            }
        };
        self.collect(lead, timeout);
    }

    /// Hears the doorbells of armed channels; those that rang are hot again. Without a wait it is
    /// no system call unless there are armed channels.
    pub(super) fn collect(&self, lead: &mut Lead, timeout: EpollTimeout) {
        let all_hot = lead.hot.len() == lead.count && !self.pollable.load(Ordering::Relaxed);
        if all_hot && timeout == EpollTimeout::ZERO {
            return;
        }
        let mut events = std::mem::take(&mut lead.events);
        let count = self.epoll.wait(&mut events, timeout).unwrap_or(0);
        for event in &events[..count] {
            let Ok(token) = u32::try_from(event.data()) else { continue };
            if let Some(member) = lead.member(token) {
                let channel = member.channel();
                // Hung up: the peer is gone, or closed. Its life word says which, if it can.
                if !channel.quiet_bell() && channel.check_life() == Fate::Open {
                    channel.end(Fate::Closed);
                }
                // A thread that leads this channel has announced a sleep of its own meanwhile.
                if let Some(_rx) = channel.rx.try_claim() {
                    disarm(channel);
                }
                member.left();
                lead.heat(token);
            }
        }
        lead.events = events;
    }
}

impl Lead {
    /// Arms every hot channel, before a sleep.
    fn arm_all(&mut self) -> bool {
        let hot = self.hot.clone();
        self.arm(&hot)
    }

    /// Arms these hot channels; they are hot no more. Returns false, with all as it was, when one
    /// of them has something after all.
    pub(super) fn arm(&mut self, tokens: &[u32]) -> bool {
        let members: Vec<(u32, Member)> = tokens
            .iter()
            .filter_map(|token| Some((*token, self.member(*token)?.clone())))
            .collect();
        // Claims are held from the announcement to the last look. One that cannot be had belongs
        // to a thread that kicks us when it gives it back.
        let claimed: Vec<(u32, &Member, Claimed<'_, Receive>)> = members
            .iter()
            .filter_map(|(token, member)| Some((*token, member, member.channel().rx.try_claim()?)))
            .collect();
        for (_, member, _) in &claimed {
            member.channel().park(Sleep::Doorbell);
            if let Some((ring, count)) = member.wants() {
                member.channel().want(ring, count, Sleep::Doorbell);
            }
        }
        // One barrier serves all that use the same kind.
        let mut kinds = Vec::new();
        for (_, member, _) in &claimed {
            if !kinds.contains(&member.channel().fences()) {
                kinds.push(member.channel().fences());
                member.channel().barrier();
            }
        }
        let quiet = claimed.iter().all(|(_, member, _)| {
            !member.is_ready() && member.channel().check_life() == Fate::Open && !has_room(member)
        });
        if quiet {
            // Those that another thread serves stay hot, to be looked at when it kicks us.
            for (token, _, _) in &claimed {
                if let Some(seat) = &mut self.seats[*token as usize] {
                    seat.is_hot = false;
                }
            }
            let seats = &self.seats;
            self.hot.retain(|hot| seats[*hot as usize].as_ref().is_some_and(|seat| seat.is_hot));
        } else {
            for (_, member, _) in &claimed {
                disarm(member.channel());
            }
        }
        drop(claimed);
        for (_, member) in &members {
            member.left();
        }
        quiet
    }
}

fn disarm(channel: &Channel) {
    channel.unpark();
    channel.unwant(Ring::Urgent);
    channel.unwant(Ring::Ordinary);
}

/// Whether what waited for room has it by now.
fn has_room(member: &Member) -> bool {
    member.wants().is_some_and(|(ring, count)| member.channel().taken_by_peer(ring) >= count)
}

pub(super) fn left(until: u64) -> Option<Duration> {
    (until != FOREVER).then(|| Duration::from_nanos(until.saturating_sub(clock::now_ns())))
}
