//! What came between two looks, as figures for people and programs.

use std::{fmt, time::Duration};

use ipc::Stats;
use serde::Serialize;

use crate::{
    sight::{Channel, Process, Sight},
    table::{Align, Table},
    units,
};

/// All that is shown.
#[derive(Serialize)]
pub(super) struct Figures {
    interval_ms: u64,
    pub(super) processes: Vec<OfProcess>,
    pub(super) channels: Vec<OfChannel>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct OfProcess {
    name: String,
    pid: u32,
    #[serde(flatten)]
    rates: Rates,
    cpu_share: Option<f64>,
    memory_bytes: Option<u64>,
    restarts: Option<u32>,
    in_bytes_per_second: f64,
    out_bytes_per_second: f64,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct OfChannel {
    channel: u64,
    caller: String,
    caller_pid: u32,
    service: String,
    service_pid: u32,
    calls_per_second: f64,
    #[serde(flatten)]
    rates: Rates,
}

/// What both have.
#[derive(Clone, Debug, Serialize)]
struct Rates {
    in_per_second: f64,
    out_per_second: f64,
    p50_ns: Option<u64>,
    p99_ns: Option<u64>,
    depth: Option<u64>,
    spins_per_100: Option<f64>,
    parks_per_100: Option<f64>,
    full_per_second: f64,
    errors_per_second: f64,
    drops_per_second: f64,
}

impl Figures {
    pub(super) fn of(sight: &Sight) -> Figures {
        let seconds = sight.over.as_secs_f64().max(1e-9);
        let mut processes: Vec<OfProcess> =
            sight.processes.iter().map(|it| of_process(it, seconds)).collect();
        let busy = |rates: &Rates| rates.in_per_second + rates.out_per_second;
        processes.sort_by(|a, b| {
            busy(&b.rates).total_cmp(&busy(&a.rates)).then_with(|| a.name.cmp(&b.name))
        });
        let mut channels: Vec<OfChannel> =
            sight.channels.iter().map(|it| of_channel(it, seconds)).collect();
        channels.sort_by(|a, b| b.calls_per_second.total_cmp(&a.calls_per_second));
        Figures { interval_ms: sight.over.as_millis() as u64, processes, channels }
    }
}

fn of_process(it: &Process, seconds: f64) -> OfProcess {
    let both: Stats = [&it.called, &it.served].into_iter().collect();
    let timed = if it.callers.latency.count() > 0 { &it.callers } else { &it.called };
    OfProcess {
        name: it.name.clone(),
        pid: it.pid,
        rates: Rates {
            in_per_second: it.served.messages_received as f64 / seconds,
            out_per_second: it.called.messages_sent as f64 / seconds,
            depth: Some(it.served.depth),
            ..rates(timed, &both, seconds)
        },
        cpu_share: it.cpu_share,
        memory_bytes: it.memory_bytes,
        restarts: it.restarts,
        in_bytes_per_second: both.bytes_received as f64 / seconds,
        out_bytes_per_second: both.bytes_sent as f64 / seconds,
    }
}

fn of_channel(it: &Channel, seconds: f64) -> OfChannel {
    let nothing = Stats::default();
    let client = it.client.as_ref();
    let counted = client.or(it.server.as_ref()).unwrap_or(&nothing);
    let (sent, received) = match (client, &it.server) {
        (Some(client), _) => (client.messages_sent, client.messages_received),
        (None, Some(server)) => (server.messages_received, server.messages_sent),
        (None, None) => (0, 0),
    };
    OfChannel {
        channel: it.id,
        caller: it.caller.clone(),
        caller_pid: it.caller_pid,
        service: it.service.clone(),
        service_pid: it.service_pid,
        calls_per_second: sent as f64 / seconds,
        rates: Rates {
            in_per_second: received as f64 / seconds,
            out_per_second: sent as f64 / seconds,
            depth: it.server.as_ref().map(|server| server.depth),
            ..rates(client.unwrap_or(&nothing), counted, seconds)
        },
    }
}

/// `timed` is whose calls are timed, `counted` who counts.
fn rates(timed: &Stats, counted: &Stats, seconds: f64) -> Rates {
    let is_timed = timed.latency.count() > 0;
    let quantile = |share| is_timed.then(|| timed.latency.quantile(share));
    let messages = counted.messages_received;
    let per_100 = |count: u64| (messages > 0).then(|| 100.0 * count as f64 / messages as f64);
    Rates {
        in_per_second: 0.0,
        out_per_second: 0.0,
        p50_ns: quantile(0.5),
        p99_ns: quantile(0.99),
        depth: None,
        spins_per_100: per_100(counted.spins),
        parks_per_100: per_100(counted.parks),
        full_per_second: counted.full as f64 / seconds,
        errors_per_second: counted.errors as f64 / seconds,
        drops_per_second: counted.drops as f64 / seconds,
    }
}

/// Headings of the two tables, and on which side their columns stand.
pub(super) const PROCESSES: [(&str, Align); 12] = [
    ("PROCESS", Align::Left),
    ("PID", Align::Right),
    ("IN/S", Align::Right),
    ("OUT/S", Align::Right),
    ("P50", Align::Right),
    ("P99", Align::Right),
    ("DEPTH", Align::Right),
    ("SPIN", Align::Right),
    ("PARK", Align::Right),
    ("CPU", Align::Right),
    ("MEMORY", Align::Right),
    ("RESTARTS", Align::Right),
];
pub(super) const CHANNELS: [(&str, Align); 8] = [
    ("CALLER", Align::Left),
    ("SERVICE", Align::Left),
    ("CALLS/S", Align::Right),
    ("P50", Align::Right),
    ("P99", Align::Right),
    ("DEPTH", Align::Right),
    ("SPIN", Align::Right),
    ("PARK", Align::Right),
];

/// The columns of the two tables, those first that a narrow terminal keeps longest.
pub(super) const PROCESSES_MATTER: [usize; 12] = [0, 2, 5, 9, 10, 3, 1, 4, 6, 11, 8, 7];
pub(super) const CHANNELS_MATTER: [usize; 8] = [0, 1, 2, 4, 3, 5, 7, 6];

impl OfProcess {
    pub(super) fn cells(&self) -> [String; 12] {
        let rates = &self.rates;
        [
            self.name.clone(),
            self.pid.to_string(),
            number(rates.in_per_second),
            number(rates.out_per_second),
            or_dash(rates.p50_ns, time),
            or_dash(rates.p99_ns, time),
            or_dash(rates.depth, |it| it.to_string()),
            or_dash(rates.spins_per_100, share),
            or_dash(rates.parks_per_100, share),
            or_dash(self.cpu_share.map(|it| it * 100.0), share),
            or_dash(self.memory_bytes, bytes),
            or_dash(self.restarts, |it| it.to_string()),
        ]
    }

    /// By what it is sorted in each column that has numbers.
    pub(super) fn key(&self, column: usize) -> f64 {
        let rates = &self.rates;
        match column {
            1 => f64::from(self.pid),
            2 => rates.in_per_second,
            3 => rates.out_per_second,
            4 => rates.p50_ns.unwrap_or(0) as f64,
            5 => rates.p99_ns.unwrap_or(0) as f64,
            6 => rates.depth.unwrap_or(0) as f64,
            7 => rates.spins_per_100.unwrap_or(0.0),
            8 => rates.parks_per_100.unwrap_or(0.0),
            9 => self.cpu_share.unwrap_or(0.0),
            10 => self.memory_bytes.unwrap_or(0) as f64,
            11 => f64::from(self.restarts.unwrap_or(0)),
            _ => 0.0,
        }
    }
}

impl OfChannel {
    pub(super) fn cells(&self) -> [String; 8] {
        let rates = &self.rates;
        [
            format!("{}:{}", self.caller, self.caller_pid),
            format!("{}:{}", self.service, self.service_pid),
            number(self.calls_per_second),
            or_dash(rates.p50_ns, time),
            or_dash(rates.p99_ns, time),
            or_dash(rates.depth, |it| it.to_string()),
            or_dash(rates.spins_per_100, share),
            or_dash(rates.parks_per_100, share),
        ]
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut processes = Table::new(PROCESSES);
        self.processes.iter().for_each(|it| processes.row(it.cells()));
        let mut channels = Table::new(CHANNELS);
        self.channels.iter().for_each(|it| channels.row(it.cells()));
        write!(f, "{processes}\n{channels}")
    }
}

fn or_dash<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}

fn time(ns: u64) -> String {
    units::show(Duration::from_nanos(ns))
}

fn share(percent: f64) -> String {
    if percent > 0.0 && percent < 0.95 { "<1 %".to_owned() } else { format!("{percent:.0} %") }
}

/// A count in a second, in at most five characters.
fn number(value: f64) -> String {
    match value {
        value if value < 9999.5 => format!("{value:.0}"),
        value if value < 999_500.0 => format!("{:.0}k", value / 1e3),
        value if value < 9_995_000.0 => format!("{:.2}M", value / 1e6),
        value => format!("{:.1}M", value / 1e6),
    }
}

fn bytes(count: u64) -> String {
    let count = count as f64;
    match count {
        count if count < 10.0 * 1024.0 * 1024.0 => format!("{:.0} KiB", count / 1024.0),
        count if count < 10.0 * 1024.0 * 1024.0 * 1024.0 => {
            format!("{:.0} MiB", count / 1024.0 / 1024.0)
        }
        count => format!("{:.1} GiB", count / 1024.0 / 1024.0 / 1024.0),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A service that is called, and its caller.
    pub(in crate::top) fn sight() -> Sight {
        let mut called = Stats {
            messages_sent: 4000,
            messages_received: 4000,
            spins: 400,
            parks: 20,
            ..Stats::default()
        };
        called.latency.record(1000, 64);
        let served = Stats { messages_received: 4000, depth: 3, ..Stats::default() };
        let service = Process {
            pid: 20,
            name: "echo".to_owned(),
            served: served.clone(),
            callers: called.clone(),
            memory_bytes: Some(3 << 20),
            restarts: Some(2),
            ..Process::default()
        };
        let load = Process {
            pid: 10,
            name: "(load)".to_owned(),
            called: called.clone(),
            cpu_share: Some(0.5),
            ..Process::default()
        };
        let channel = Channel {
            id: 1,
            caller: "(load)".to_owned(),
            caller_pid: 10,
            service: "echo".to_owned(),
            service_pid: 20,
            client: Some(called),
            server: Some(served),
        };
        let over = Duration::from_secs(2);
        Sight { over, processes: vec![load, service], channels: vec![channel] }
    }

    #[test]
    fn figures_are_of_a_second_and_of_a_hundred_messages() {
        let text = Figures::of(&sight()).to_string();
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        let row =
            |name| lines.iter().find(|it| it.first() == Some(&name)).expect("a row").join(" ");
        assert_eq!(row("(load)"), "(load) 10 0 2000 960 ns 1.02 µs 0 10 % <1 % 50 % - -");
        assert_eq!(row("echo"), "echo 20 2000 0 960 ns 1.02 µs 3 0 % 0 % - 3072 KiB 2");
        assert_eq!(row("(load):10"), "(load):10 echo:20 2000 960 ns 1.02 µs 3 10 % <1 %");
    }

    #[test]
    fn programs_get_numbers_with_their_units_in_their_names() {
        let json = serde_json::to_value(Figures::of(&sight())).expect("plain data");
        assert_eq!(json["interval_ms"], 2000);
        assert_eq!(json["processes"][0]["out_per_second"], 2000.0);
        assert_eq!(json["channels"][0]["calls_per_second"], 2000.0);
        assert_eq!(json["channels"][0]["depth"], 3);
        assert!(json["processes"][1]["p99_ns"].as_u64() > Some(900));
    }

    #[test]
    fn an_end_without_a_board_is_told_by_the_other() {
        let mut sight = sight();
        sight.channels[0].client = None;
        let figures = Figures::of(&sight);
        assert_eq!(figures.channels[0].calls_per_second.to_string(), "2000");
        assert_eq!(figures.channels[0].cells()[3], "-");
    }

    #[test]
    fn numbers_fit_their_columns() {
        for (value, shown) in
            [(0.4, "0"), (9999.0, "9999"), (12_345.0, "12k"), (1.5e6, "1.50M"), (2.5e7, "25.0M")]
        {
            assert_eq!(number(value), shown);
        }
        assert_eq!((bytes(2048), bytes(64 << 20), bytes(16 << 30)).2, "16.0 GiB");
        assert_eq!((share(0.0), share(0.2), share(99.6)).1, "<1 %");
    }
}
