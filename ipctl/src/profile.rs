//! `ipctl profile`: where do the calls to a service spend their time?

use std::{fmt, thread, time::Duration};

use clap::Args;
use ipc::{Config, Histogram, Stats};
use serde::Serialize;

use crate::{
    failure::Failure,
    output::Output,
    service,
    sight::{Observer, Sight},
    table::{Align, Table},
    units,
};

/// Show where the calls to a service spend their time: in its queue, in its handler, on the way.
///
/// Nothing is called: what its callers and the service count by themselves is looked at twice.
/// Callers time the whole call, the service its handlers and the waits in its queue. What is left
/// is the way there and back, with the sleeps that somebody had to be woken from.
#[derive(Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Arguments {
    /// Service, as `ipctl ls` names it
    #[arg(value_parser = service::name)]
    name: String,
    /// How long to watch
    #[arg(long, value_name = "N", default_value = "2", value_parser = units::seconds)]
    seconds: Duration,
}

const HELP: &str = "\
Parts of a call:
  queue     it waited for other requests of its channel
  handler   the service's own code, up to the answer
  wake      the rest: both ways through shared memory, and waking who slept

Of fast calls one in 64 is timed, of others every one. Means are of all calls; P50 and P99 of queue
are of those that had to wait.

Examples:
  ipctl profile echo
  ipctl profile echo --seconds 10
  ipctl profile echo --json | jq .wake.share";

pub(crate) fn run(arguments: &Arguments, config: &Config, output: Output) -> Result<(), Failure> {
    let mut observer = Observer::connect(config)?;
    observer.look()?;
    thread::sleep(arguments.seconds);
    let sight = observer.look()?;
    let profile = Profile::of(&sight, &arguments.name)
        .ok_or_else(|| Failure::NoService(arguments.name.clone()))?;
    if profile.calls == 0 {
        output.remark("nobody called it meanwhile");
    }
    output.show(&profile)
}

/// Where the calls of a time spent theirs.
#[derive(Serialize)]
struct Profile {
    name: String,
    seconds: f64,
    /// Open channels whose callers count.
    callers: usize,
    calls: u64,
    one_ways: u64,
    errors: u64,
    drops: u64,
    call: Part,
    queue: Part,
    wake: Part,
    handler: Part,
    caller_sleeps_per_100: f64,
    service_sleeps_per_100: f64,
}

#[derive(Clone, Copy, Serialize)]
struct Part {
    mean_ns: u64,
    /// Of the whole call, 0 to 1.
    share: f64,
    p50_ns: Option<u64>,
    p99_ns: Option<u64>,
}

impl Profile {
    /// Nothing when nobody serves that name.
    fn of(sight: &Sight, name: &str) -> Option<Profile> {
        let channels: Vec<_> = sight.channels.iter().filter(|it| it.service == name).collect();
        if channels.is_empty() && !sight.processes.iter().any(|it| it.name == name) {
            return None;
        }
        let sum = |ends: &mut dyn Iterator<Item = &Stats>| -> Stats { ends.collect() };
        let callers = sum(&mut channels.iter().filter_map(|it| it.client.as_ref()));
        let service = sum(&mut channels.iter().filter_map(|it| it.server.as_ref()));
        // Of what is received only calls are answered.
        let calls = service.messages_sent;
        let served = service.messages_received;
        let whole = callers.latency.mean();
        let queue = service.queued.sum_ns().checked_div(served).unwrap_or(0).min(whole);
        let handler = service.latency.mean().min(whole - queue);
        let share = |ns: u64| ns as f64 / whole.max(1) as f64;
        let part = |mean_ns, timed: Option<&Histogram>| {
            let timed = timed.filter(|it| it.count() > 0);
            let quantile = |share| timed.map(|it| it.quantile(share));
            Part { mean_ns, share: share(mean_ns), p50_ns: quantile(0.5), p99_ns: quantile(0.99) }
        };
        let per_100 =
            |stats: &Stats| 100.0 * stats.parks as f64 / stats.messages_received.max(1) as f64;
        Some(Profile {
            name: name.to_owned(),
            seconds: sight.over.as_secs_f64(),
            callers: channels.iter().filter(|it| it.client.is_some()).count(),
            calls,
            one_ways: served.saturating_sub(calls),
            errors: service.errors,
            drops: service.drops,
            call: part(whole, Some(&callers.latency)),
            queue: part(queue, Some(&service.queued)),
            wake: part(whole - queue - handler, None),
            handler: part(handler, Some(&service.latency)),
            caller_sleeps_per_100: per_100(&callers),
            service_sleeps_per_100: per_100(&service),
        })
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.calls as f64 / self.seconds.max(1e-9);
        writeln!(f, "{}: {rate:.0} calls/s, channels: {}", self.name, self.callers)?;
        let mut table = Table::new([
            ("PART", Align::Left),
            ("MEAN", Align::Right),
            ("SHARE", Align::Right),
            ("P50", Align::Right),
            ("P99", Align::Right),
        ]);
        let parts = [
            ("call", &self.call),
            ("queue", &self.queue),
            ("handler", &self.handler),
            ("wake", &self.wake),
        ];
        let time = |ns: u64| units::show(Duration::from_nanos(ns));
        let or_dash = |ns: Option<u64>| ns.map_or_else(|| "-".to_owned(), time);
        for (name, part) in parts {
            table.row([
                name.to_owned(),
                time(part.mean_ns),
                format!("{:.0} %", part.share * 100.0),
                or_dash(part.p50_ns),
                or_dash(part.p99_ns),
            ]);
        }
        write!(f, "{table}")?;
        writeln!(
            f,
            "sleeps, of 100 messages taken: {:.1} of callers, {:.1} of the service",
            self.caller_sleeps_per_100, self.service_sleeps_per_100
        )?;
        let beside = [
            ("one-way messages", self.one_ways),
            ("errors", self.errors),
            ("messages given up", self.drops),
        ];
        beside
            .iter()
            .filter(|(_, count)| *count > 0)
            .try_for_each(|(what, count)| writeln!(f, "{what}: {count}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sight::Channel;

    fn sight() -> Sight {
        let mut client =
            Stats { messages_sent: 100, messages_received: 100, parks: 10, ..Stats::default() };
        client.latency.record(10_000, 100);
        let mut server =
            Stats { messages_sent: 100, messages_received: 110, errors: 1, ..Stats::default() };
        server.latency.record(4_000, 110);
        // One in two waited.
        server.queued.record(4_000, 55);
        let channel = Channel {
            service: "echo".to_owned(),
            client: Some(client),
            server: Some(server),
            ..Channel::default()
        };
        let over = Duration::from_secs(2);
        Sight { over, processes: Vec::new(), channels: vec![channel] }
    }

    #[test]
    fn what_queue_and_handler_do_not_explain_is_the_way() {
        let profile = Profile::of(&sight(), "echo").expect("it is called");
        let means = [&profile.call, &profile.queue, &profile.handler, &profile.wake];
        assert_eq!(means.map(|it| it.mean_ns), [10_000, 2_000, 4_000, 4_000]);
        assert!((profile.wake.share - 0.4).abs() < 1e-9);
        assert_eq!((profile.one_ways, profile.callers), (10, 1));
        let text = profile.to_string();
        for part in ["echo: 50 calls/s, channels: 1", "\nqueue     2 µs   20 %", "10.0 of callers"]
        {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(text.ends_with("errors: 1\n"), "{text}");
        assert!(Profile::of(&sight(), "else").is_none());
    }

    #[test]
    fn counts_that_cannot_be_do_not_run_below_nothing() {
        let mut sight = sight();
        if let Some(server) = &mut sight.channels[0].server {
            server.latency.record(1 << 40, 10_000);
            server.queued.record(1 << 40, 10_000);
        }
        let profile = Profile::of(&sight, "echo").expect("it is called");
        assert_eq!(profile.call.mean_ns, profile.queue.mean_ns);
        assert_eq!((profile.handler.mean_ns, profile.wake.mean_ns), (0, 0));
    }
}
