//! What is said at the end: for people, and as JSON for programs.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde_json::{Value, json};

use crate::{
    cast::GROUPS,
    plan::Weather,
    sample::{self, MEASURES, Samples},
    slope::{self, Verdict},
};

/// What was measured alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Scene {
    pub(crate) weather: Weather,
    pub(crate) how: &'static str,
    pub(crate) sealed: bool,
    pub(crate) is_till: bool,
    pub(crate) mib: usize,
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weather = self.weather;
        let session = if self.sealed { "encrypted" } else { "plain" };
        let kind = if self.is_till { ", gate" } else { "" };
        write!(f, "{weather}: {}, {} MiB, {session}{kind}", self.how, self.mib)
    }
}

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// From each end to the first answer of the next one, in µs.
    answers: BTreeMap<Scene, Vec<f64>>,
    /// For what the time of ends went by, how often, and how long in all.
    spent: BTreeMap<(Weather, &'static str), (u32, Duration)>,
}

/// Times of one kind: how many, and p50, p99 and max.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Quantiles {
    count: usize,
    p50: f64,
    p99: f64,
    max: f64,
}

impl Quantiles {
    fn of(us: &[f64]) -> Quantiles {
        let mut us = us.to_vec();
        us.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = (us.len() as f64 * share).ceil() as usize;
            us.get(place.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Quantiles { count: us.len(), p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

impl Figures {
    pub(crate) fn add(&mut self, scene: Scene, us: Vec<f64>) {
        self.answers.entry(scene).or_default().extend(us);
    }

    pub(crate) fn spent(&mut self, weather: Weather, what: &'static str, time: Duration) {
        let (count, all) = self.spent.entry((weather, what)).or_default();
        *count += 1;
        *all += time;
    }

    /// For what, how often, and how many ms each.
    fn times(&self) -> impl Iterator<Item = (String, u32, f64)> {
        self.spent.iter().map(|((weather, what), (count, all))| {
            (format!("{weather}: {what}"), *count, (*all / *count).as_secs_f64() * 1000.0)
        })
    }

    /// So far, in a line.
    pub(crate) fn summary(&self) -> String {
        let quiet = |scene: &Scene| scene.weather == Weather::Quiet && scene.how == "kill -9";
        let us: Vec<f64> =
            self.answers.iter().filter(|it| quiet(it.0)).flat_map(|it| it.1).copied().collect();
        let Quantiles { count, p50, p99, max } = Quantiles::of(&us);
        format!("{count} quiet kills: p50 {p50:.0}, p99 {p99:.0}, max {max:.0} us")
    }

    fn rows(&self) -> impl Iterator<Item = (String, Quantiles)> {
        self.answers.iter().map(|(scene, us)| (scene.to_string(), Quantiles::of(us)))
    }
}

/// KiB that a caller, or the ledger, keeps for each request that ended in "maybe": it parts those
/// that were answered, and those that were done, into intervals.
const KEPT_OF_MAYBE: f64 = 0.125;

/// A measure of a process over time.
#[derive(Debug)]
pub(crate) struct Trend {
    what: String,
    last: f64,
    per_hour: f64,
    verdict: Verdict,
}

/// All that is known at the end.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    pub(crate) figures: Figures,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// Deaths of who served.
    pub(crate) kills: u64,
    /// What callers counted together.
    pub(crate) calls: BTreeMap<String, u64>,
    pub(crate) ledger: Value,
    pub(crate) listener: Value,
    pub(crate) faults: Vec<String>,
    pub(crate) trends: Vec<Trend>,
}

impl Report {
    /// One of a run that could not go on.
    pub(crate) fn of_trouble(seed: u64, trouble: String) -> Report {
        Report { seed, faults: vec![trouble], ..Report::default() }
    }

    /// All that the ledger has.
    fn effects(&self) -> u64 {
        let books = self.ledger["books"].as_array().into_iter().flatten();
        books.filter_map(|book| book["effects"].as_u64()).sum()
    }

    /// Judges the samples of those that lived on, from so many seconds on.
    pub(crate) fn judge(&mut self, samples: &Samples, from: f64) {
        let maybes = self.calls.get("maybe").copied().unwrap_or(0);
        let accounts = maybes as f64 * KEPT_OF_MAYBE;
        for (name, series) in &samples.series {
            if ["publisher", "producer", "consumer"].contains(&name.as_str()) {
                continue;
            }
            for (measure, (what, allowance)) in MEASURES.iter().enumerate() {
                let is_account = name == "ledger" || name.starts_with("caller ");
                let is_memory = *what == sample::RESIDENT;
                let kept = if is_account && is_memory { accounts } else { 0.0 };
                let points = series.of(measure, from);
                self.trend(format!("{name}: {what}"), &points, Some(allowance + kept));
            }
        }
        let late = |all: &[(f64, f64)]| all.iter().copied().filter(|it| it.0 >= from).collect();
        let (files, bytes): (Vec<_>, Vec<_>) = (late(&samples.files), late(&samples.bytes));
        self.trend("runtime directory: files".to_owned(), &files, Some(8.0));
        // The audit log and the journal grow with what is done.
        self.trend("runtime directory: bytes".to_owned(), &bytes, None);
    }

    fn trend(&mut self, what: String, points: &[(f64, f64)], allowance: Option<f64>) {
        let (line, verdict) = match allowance {
            Some(allowance) => slope::judge(points, allowance),
            None => (slope::fit(points), Verdict::NotJudged),
        };
        let last = points.last().map_or(0.0, |it| it.1);
        let per_hour = line.map_or(0.0, |line| line.per_hour);
        if verdict == Verdict::Grows {
            self.faults.push(format!("{what} grows by {per_hour:.1} an hour"));
        }
        self.trends.push(Trend { what, last, per_hour, verdict });
    }

    pub(crate) fn to_json(&self) -> Value {
        let times: Vec<Value> = self
            .figures
            .rows()
            .map(|(scene, Quantiles { count, p50, p99, max })| {
                json!({ "scene": scene, "times": count, "p50_us": p50, "p99_us": p99,
                        "max_us": max })
            })
            .collect();
        let trends: Vec<Value> = self
            .trends
            .iter()
            .map(|it| {
                json!({ "what": it.what, "last": it.last, "per_hour": it.per_hour,
                        "verdict": it.verdict.name() })
            })
            .collect();
        let spent: Vec<Value> = self
            .figures
            .times()
            .map(|(what, times, ms)| json!({ "what": what, "times": times, "mean_ms": ms }))
            .collect();
        json!({ "seed": self.seed, "seconds": self.seconds, "misfortunes": self.counts,
                "deaths": self.kills, "effects": self.effects(), "acts": spent,
                "failover": times, "calls": self.calls, "ledger": self.ledger,
                "listener": self.listener, "trends": trends, "faults": self.faults })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nmisfortunes")?;
        for (what, count) in &self.counts {
            writeln!(f, "  {count:>8}  {what}")?;
        }
        writeln!(f, "  {:>8}  deaths of who served", self.kills)?;
        writeln!(f, "\nfor what the time of these went by, in ms each")?;
        for (what, times, ms) in self.figures.times() {
            writeln!(f, "  {what:<58}{times:>7}{ms:>9.1}")?;
        }
        writeln!(f, "\nto the first answer of the next, as callers see it, in us")?;
        writeln!(f, "  {:<58}{:>7}{:>9}{:>9}{:>9}", "", "times", "p50", "p99", "max")?;
        for (scene, Quantiles { count, p50, p99, max }) in self.figures.rows() {
            writeln!(f, "  {scene:<58}{count:>7}{p50:>9.0}{p99:>9.0}{max:>9.0}")?;
        }
        writeln!(f, "\nwhat was done")?;
        for (what, count) in &self.calls {
            writeln!(f, "  {count:>12}  {what}")?;
        }
        writeln!(f, "  {:>12}  effects, each once", self.effects())?;
        let books = self.ledger["books"].as_array().into_iter().flatten().enumerate();
        for (book, it) in books.filter(|(_, it)| it["effects"] != 0) {
            let name = GROUPS[book % GROUPS.len()].name;
            let what = if book < GROUPS.len() { "effects" } else { "one-way messages" };
            let (effects, repeated, stale) = (&it["effects"], &it["repeated"], &it["stale"]);
            writeln!(
                f,
                "  {effects:>12}  {what} of {name}; known again {repeated}, stale {stale}"
            )?;
        }
        for (what, value) in [("queue", &self.ledger["queue"]), ("listener", &self.listener)] {
            let fields = value.as_object().into_iter().flatten();
            for (field, count) in fields.filter(|(_, count)| count.is_u64()) {
                writeln!(f, "  {count:>12}  {what}: {field}")?;
            }
        }
        writeln!(f, "\nwhat is held{:>48}{:>14}", "at the end", "an hour")?;
        for Trend { what, last, per_hour, verdict } in &self.trends {
            writeln!(f, "  {what:<46}{last:>12.0}{per_hour:>14.1}  {}", verdict.name())?;
        }
        let Report { seed, seconds, faults, .. } = self;
        writeln!(f, "\n{} faults in {seconds:.0} s, seed {seed}", faults.len())?;
        faults.iter().try_for_each(|fault| writeln!(f, "  {fault}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_what_was_measured() {
        let us: Vec<f64> = (1..=1000).rev().map(f64::from).collect();
        let it = Quantiles::of(&us);
        assert_eq!((it.count, it.p50, it.p99, it.max), (1000, 500.0, 990.0, 1000.0));
        assert_eq!(Quantiles::of(&[]), Quantiles { count: 0, p50: 0.0, p99: 0.0, max: 0.0 });
    }

    #[test]
    fn what_grows_is_a_fault() {
        let mut report = Report::default();
        let points = |by: f64| (0..600).map(f64::from).map(|at| (at, at * by)).collect::<Vec<_>>();
        report.trend("level".to_owned(), &points(0.0), Some(10.0));
        report.trend("bytes".to_owned(), &points(1.0), None);
        assert_eq!(report.faults, [""; 0]);
        report.trend("memory".to_owned(), &points(1.0), Some(10.0));
        assert_eq!(report.faults.len(), 1);
        assert!(report.to_string().contains("GROWS") && report.to_string().contains("1 faults"));
        assert_eq!(report.to_json()["trends"][1]["verdict"], "not judged");
        assert_eq!(report.to_json()["trends"][2]["verdict"], "GROWS");
    }
}
