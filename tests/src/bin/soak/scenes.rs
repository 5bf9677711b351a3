//! Each misfortune, as it is brought about, and what callers see of it.

use std::{thread, time::Instant};

use nix::sys::signal::Signal;

use crate::{
    Trouble,
    cast::{CALLERS, GROUPS, Kind},
    drama::{Member, PACE, Stage},
    now_ns,
    part::Part,
    plan::{Act, Bystander, End, Weather},
    report::Scene,
};

impl Stage {
    /// Brings it about. `is_early` is said while the runtime and the queues may die.
    pub(crate) fn perform(&mut self, act: Act, is_early: bool) -> Result<(), Trouble> {
        match act {
            Act::End { how: End::WithRuntime, book, mib } if !is_early => {
                self.end(book, End::Killed, mib)
            }
            Act::End { book, how, mib } => self.end(book, how, mib),
            Act::Stumble { book, pause } => {
                let (first, _) = self.first_two(book)?;
                self.count("short stops of who serves");
                let stopped = &self.groups[book][first].part;
                stopped.signal(Signal::SIGSTOP);
                thread::sleep(pause);
                stopped.signal(Signal::SIGCONT);
                Ok(())
            }
            Act::Trigger { book } => self.trigger(book),
            Act::Runtime { .. } | Act::Queue if !is_early => Ok(()),
            Act::Runtime { away } => {
                self.count("kills of ipcd");
                self.kill_ipcd()?;
                thread::sleep(away);
                self.start_ipcd()
            }
            Act::Queue => {
                self.count("kills of ipc-queue");
                let running = tests::ipcd::recorded(&crate::cast::runtime(&self.base));
                for (pid, _) in running {
                    // It may be about to be started again, and be another one by now.
                    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
                    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
                }
                Ok(())
            }
            Act::Pause { who, pause } => {
                self.count("stops of readers and writers");
                let part = self.bystander(who);
                part.signal(Signal::SIGSTOP);
                thread::sleep(pause);
                part.signal(Signal::SIGCONT);
                Ok(())
            }
            Act::Kill { who } => {
                self.count("kills of publishers, producers, consumers");
                self.replace(who)
            }
        }
    }

    fn bystander(&mut self, who: Bystander) -> &mut Part {
        match who {
            Bystander::Listener => &mut self.listener,
            Bystander::Publisher => &mut self.publisher,
            Bystander::Producer => &mut self.producer,
            Bystander::Consumer => &mut self.consumer,
            Bystander::Caller => &mut self.callers[CALLERS - 1],
        }
    }

    fn replace(&mut self, who: Bystander) -> Result<(), Trouble> {
        let role = match who {
            Bystander::Publisher => "publish",
            Bystander::Producer => "produce",
            Bystander::Consumer => "consume",
            // These have to tell of all that they have seen.
            Bystander::Listener | Bystander::Caller => return Ok(()),
        };
        let base = self.base.clone();
        let part = self.bystander(who);
        part.signal(Signal::SIGKILL);
        let name = part.name.clone();
        let mut next = Part::start(&base, &name, &[role])?;
        next.hear("ready")?;
        let pid = next.pid;
        std::mem::replace(part, next).reap();
        self.sampler.follow(&name, pid);
        Ok(())
    }

    /// Hands a name over in order.
    fn trigger(&mut self, book: usize) -> Result<(), Trouble> {
        let (first, _) = self.first_two(book)?;
        let before = self.groups[book][first].part.pid;
        self.attend(book, first)?;
        self.count("changes of hands in order");
        let begun = now_ns();
        let name = self.node.discover(GROUPS[book].name)?;
        self.node.trigger_failover(name, None)?;
        let us = self.answers(book, &[before], begun)?;
        self.tell(book, "in order", 0, us);
        Ok(())
    }

    /// Ends who serves a group, measures how long callers wait for the next, and has another join.
    fn end(&mut self, book: usize, how: End, mib: usize) -> Result<(), Trouble> {
        let (first, second) = self.first_two(book)?;
        self.attend(book, first)?;
        self.count(how.name());
        let is_twice = matches!(how, End::Twice(_));
        let pids = [first, second].map(|place| self.groups[book][place].part.pid);
        let victims = &pids[..=usize::from(is_twice)];
        let signal = match how {
            End::Aborted => Some(Signal::SIGABRT),
            End::Stopped { .. } => Some(Signal::SIGSTOP),
            End::Replaced => None,
            End::Killed | End::Twice(_) | End::WithRuntime => Some(Signal::SIGKILL),
        };
        let begun = now_ns();
        match signal {
            Some(signal) => self.groups[book][first].part.signal(signal),
            None => self.groups[book][first].part.tell("exec")?,
        }
        match how {
            End::Twice(us) => {
                while now_ns() < begun + us * 1000 {
                    std::hint::spin_loop();
                }
                self.groups[book][second].part.signal(Signal::SIGKILL);
            }
            End::WithRuntime => self.kill_ipcd()?,
            _ => {}
        }
        let waiting = Instant::now();
        let us = self.answers(book, victims, begun)?;
        self.spent("until all callers are answered again", waiting);
        self.tell(book, how.name(), self.groups[book][first].mib, us);
        if self.weather != Some(Weather::Loaded) {
            self.pace(0, book, u64::MAX)?;
        }
        if let End::Stopped { goes_on: true } = how {
            self.groups[book][first].part.signal(Signal::SIGCONT);
            return Ok(());
        }
        if !matches!(how, End::Stopped { .. }) {
            self.kills += victims.len() as u64;
        }
        let joining = Instant::now();
        let (gone, left): (Vec<Member>, Vec<Member>) = std::mem::take(&mut self.groups[book])
            .into_iter()
            .partition(|member| victims.contains(&member.part.pid));
        self.groups[book] = left;
        for member in &gone {
            member.part.signal(Signal::SIGKILL);
        }
        // Those who join are on their way while the kernel tears the dead down. Only where they
        // read what the one before has answered, by the runtime, that has to be there again.
        let newcomers = |stage: &Stage| -> Result<Vec<Member>, Trouble> {
            victims.iter().map(|_| stage.newcomer(book, mib)).collect()
        };
        let early = if how == End::WithRuntime { None } else { Some(newcomers(self)?) };
        for member in gone {
            member.part.reap();
        }
        if how == End::Aborted {
            self.remove_cores()?;
        }
        if how == End::WithRuntime {
            self.start_ipcd()?;
        }
        let joined = early.map_or_else(|| newcomers(self), Ok)?;
        for mut member in joined {
            member.part.hear("serving")?;
            self.groups[book].push(member);
        }
        self.spent("until the next has joined", joining);
        Ok(())
    }

    fn tell(&mut self, book: usize, how: &'static str, mib: usize, us: Vec<f64>) {
        self.note(&format!("{}, {mib} MiB: {how}: answered after {us:.0?} us", GROUPS[book].name));
        let weather = self.weather.unwrap_or(Weather::Loaded);
        let sealed = GROUPS[book].sealed;
        let is_till = GROUPS[book].kind == Kind::Till;
        self.figures.add(Scene { weather, how, sealed, is_till, mib }, us);
    }

    /// Which members serve, and are next, once all have found each other.
    fn first_two(&mut self, book: usize) -> Result<(usize, usize), Trouble> {
        match self.settled(book)?[..] {
            [first, second, ..] => Ok((first, second)),
            _ => Err(format!("{} has no standby", GROUPS[book].name).into()),
        }
    }

    /// Waits until each caller of a group is answered by that member.
    fn attend(&mut self, book: usize, member: usize) -> Result<(), Trouble> {
        let begun = Instant::now();
        let pid = self.groups[book][member].part.pid.to_string();
        let us = if self.weather == Some(Weather::Loaded) { PACE } else { 0 };
        for caller in 0..self.listening() {
            self.callers[caller].heard("answer");
            self.pace(caller, book, us)?;
            let is_meant = |line: &str| {
                let mut words = line.split(' ');
                words.next() == Some(&book.to_string()) && words.next() == Some(&pid)
            };
            while !is_meant(&self.callers[caller].hear("answer")?) {}
        }
        self.spent("until all callers call", begun);
        Ok(())
    }

    /// So many callers call who is about to end.
    fn listening(&self) -> usize {
        if self.weather == Some(Weather::Loaded) { CALLERS } else { 1 }
    }

    /// Waits until each caller of a group has an answer of somebody else; gives the µs since then.
    fn answers(&mut self, book: usize, not: &[u32], since: u64) -> Result<Vec<f64>, Trouble> {
        let callers = self.listening();
        let is_other = |pid: u64| not.iter().all(|it| u64::from(*it) != pid);
        let mut us = Vec::new();
        for caller in &mut self.callers[..callers] {
            loop {
                let line = caller.hear("answer")?;
                let words: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
                let [of, pid, _, at] = words[..] else { return Err(line.into()) };
                if of == book as u64 && at >= since && is_other(pid) {
                    us.push((at - since) as f64 / 1000.0);
                    break;
                }
            }
        }
        Ok(us)
    }
}
