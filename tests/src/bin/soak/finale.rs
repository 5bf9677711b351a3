//! The end: everybody rests, the accounts are compared, and nothing may be left.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use ipc::queue::{QueueAdmin, SERVICE};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tests::proc::{self, Holdings};

use crate::{
    Trouble, bus,
    cast::{self, CALLERS, GROUPS, Group, Kind, LONG},
    drama::Stage,
    plan::{Act, End, Weather},
    post::QUEUE,
    report::Report,
    sample::Samples,
};

/// What those that live on hold while all rest.
pub(crate) type Held = BTreeMap<String, Holdings>;

/// Has each group fail over once, so that what is made once is made, and notes what is held then.
pub(crate) fn baseline(stage: &mut Stage) -> Result<Held, Trouble> {
    stage.change(Weather::Loaded)?;
    for book in 0..GROUPS.len() {
        stage.perform(Act::End { book, how: End::Killed, mib: 1 }, true)?;
    }
    rest(stage)?;
    Ok(held(stage))
}

/// Has all rest, and waits until the groups are whole.
fn rest(stage: &mut Stage) -> Result<(), Trouble> {
    stage.change(Weather::Loaded)?;
    for book in 0..GROUPS.len() {
        stage.settled(book)?;
    }
    for book in 0..=GROUPS.len() {
        for caller in 0..CALLERS {
            stage.pace(caller, book, u64::MAX)?;
        }
    }
    stage.weather = None;
    for book in 0..GROUPS.len() {
        stage.settled(book)?;
    }
    // What was let go is gone by then.
    thread::sleep(Duration::from_millis(200));
    Ok(())
}

fn held(stage: &Stage) -> Held {
    let callers = stage.callers.iter();
    let parts = callers.chain([&stage.steady, &stage.listener]);
    let mut held: Held = parts.map(|part| (part.name.clone(), proc::holdings(part.pid))).collect();
    held.insert("ipcd".to_owned(), proc::holdings(stage.ipcd.pid()));
    held
}

/// Ends everything, and says what came of it all.
pub(crate) fn end(
    mut stage: Stage,
    before: &Held,
    seed: u64,
    from: f64,
    open: usize,
) -> Result<Report, Trouble> {
    let mut report = Report { seed, ..Report::default() };
    rest(&mut stage)?;
    let is_within =
        |stage: &Stage| held(stage).iter().all(|(name, now)| now.is_within(&before[name]));
    if !comes_true(|| is_within(&stage)) {
        for (name, now) in held(&stage) {
            if !now.is_within(&before[&name]) {
                let before = before[&name];
                report.faults.push(format!("{name} holds {now:?}, and held {before:?}"));
            }
        }
    }
    settle(&mut stage, &mut report)?;
    report.figures = std::mem::take(&mut stage.figures);
    report.kills = stage.kills;
    report.counts = std::mem::take(&mut stage.counts);
    leave(stage, &mut report, from, open)?;
    Ok(report)
}

/// Compares all accounts with the ledger's.
fn settle(stage: &mut Stage, report: &mut Report) -> Result<(), Trouble> {
    for caller in &mut stage.callers {
        caller.ask("settle", "settled")?;
        let tally: Value = serde_json::from_str(&caller.ask("tally", "tally")?)?;
        for (what, count) in tally.as_object().into_iter().flatten() {
            if let Some(count) = count.as_u64() {
                *report.calls.entry(what.clone()).or_default() += count;
            }
        }
        let complaints = tally["complaints"].as_array().into_iter().flatten();
        report.faults.extend(complaints.map(|it| format!("{}: {it}", caller.name)));
    }
    for what in ["errors", "wrong", "stale"] {
        let count = report.calls.get(what).copied().unwrap_or(0);
        if count > 0 {
            report.faults.push(format!("{count} {what} at callers"));
        }
    }
    drain(stage, report)?;
    report.ledger = serde_json::from_str(&stage.notary.ask("report", "report")?)?;
    let books = report.ledger["books"].as_array().into_iter().flatten().enumerate();
    for (book, it) in books {
        let Group { name, kind, .. } = GROUPS[book % GROUPS.len()];
        report.faults.extend(faults(it).map(|fault| format!("{name}: {fault}")));
        if book >= GROUPS.len() && kind == Kind::Store && it["effects"] == 0 {
            report.faults.push(format!("{name}: no one-way message ever arrived"));
        }
    }
    report.faults.extend(faults(&report.ledger["queue"]).map(|it| format!("queue: {it}")));
    hear_more(stage, report)?;
    report.faults.extend(faults(&report.listener).map(|it| format!("events: {it}")));
    Ok(())
}

/// Waits until more of everything that the listener hears has come to it, and takes its report.
fn hear_more(stage: &mut Stage, report: &mut Report) -> Result<(), Trouble> {
    let mut hear = || -> Result<Value, Trouble> {
        Ok(serde_json::from_str(&stage.listener.ask("report", "report")?)?)
    };
    let before = hear()?;
    let comes = |now: &Value, what: &str| now[what].as_u64() > before[what].as_u64();
    let is_all = |now: &Value| bus::SOURCES.iter().all(|what| comes(now, what));
    comes_true(|| hear().is_ok_and(|now| is_all(&now)));
    report.listener = hear()?;
    for what in bus::SOURCES.iter().filter(|what| !comes(&report.listener, what)) {
        report.faults.push(format!("nothing comes of {what} any more"));
    }
    Ok(())
}

fn faults(of: &Value) -> impl Iterator<Item = String> {
    let list = of["faults"].as_array().into_iter().flatten();
    list.map(ToString::to_string).collect::<Vec<_>>().into_iter()
}

/// Has the producer end, and waits until all that it was promised has come.
fn drain(stage: &mut Stage, report: &mut Report) -> Result<(), Trouble> {
    stage.producer.quit()?;
    let admin = QueueAdmin::new(&stage.node, SERVICE);
    let is_empty = || {
        let list = admin.list(LONG).unwrap_or_default();
        let left = |name| list.iter().filter_map(|it| it.figure(name)).sum::<u64>();
        !list.is_empty() && ["ready", "delayed", "leased", "dead"].map(left) == [0; 4]
    };
    if !comes_true(is_empty) {
        report.faults.push(format!("the queue {QUEUE} is never empty: {:?}", admin.list(LONG)));
    }
    Ok(())
}

/// Has all end in order, and looks for what is left of them.
fn leave(stage: Stage, report: &mut Report, from: f64, open: usize) -> Result<(), Trouble> {
    let samples = stage.take_down(report)?;
    report.seconds = samples.files.last().map_or(0.0, |it| it.0);
    report.judge(&samples, from);
    if !comes_true(|| children() == 0) {
        report.faults.push(format!("{} children are left", children()));
    }
    let pid = std::process::id();
    if !comes_true(|| proc::open_files(pid) <= open) {
        let now = proc::open_files(pid);
        report.faults.push(format!("{now} descriptors are open here, and {open} were"));
    }
    Ok(())
}

impl Stage {
    /// Ends everybody in order, the runtime last.
    fn take_down(self, report: &mut Report) -> Result<Samples, Trouble> {
        let Stage { base, mut ipcd, node, groups, callers, steady, .. } = self;
        let Stage { consumer, publisher, listener, notary, sampler, .. } = self;
        drop(node);
        let members = groups.into_iter().flatten().map(|member| member.part);
        let others = [consumer, listener, publisher, steady];
        for mut part in callers.into_iter().chain(others).chain(members).chain([notary]) {
            if let Err(error) = part.quit() {
                report.faults.push(error.to_string());
            }
        }
        let samples = sampler.end();
        kill(Pid::from_raw(ipcd.pid().cast_signed()), Signal::SIGTERM)?;
        match ipcd.wait()? {
            status if status.success() => {}
            status => report.faults.push(format!("ipcd ended with {status}")),
        }
        let directory = cast::runtime(&base);
        let recorded = tests::ipcd::recorded(&directory);
        if !recorded.is_empty() {
            report.faults.push(format!("processes are written down still: {recorded:?}"));
        }
        if directory.join("ipcd.sock").exists() {
            report.faults.push("the runtime's socket is left".to_owned());
        }
        Ok(samples)
    }
}

/// The processes that this one started and has not waited for.
fn children() -> usize {
    tests::ipcd::children(std::process::id())
}

/// Waits until something is so; tells whether it ever was.
fn comes_true(mut is_so: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + LONG / 2;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
