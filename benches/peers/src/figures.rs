//! Medians over the rounds, and what was left out.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use benches::report::{Distance, Machine};
use serde::Serialize;

use crate::contender::{Contender, Payload, Waits};
use crate::contenders;
use crate::run::{Case, Measured, SHARES, Sample};

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// How many rounds there were.
    pub rounds: usize,
    /// Seconds that each single measurement took.
    pub seconds: f64,
    /// Where the CPUs were in most steady samples: figures are of these only.
    pub distance: Distance,
    /// The shares of calls, from 0 to 1, that each row's `quantiles` are at.
    pub shares: Vec<f64>,
    /// Latencies of one client.
    pub calls: Vec<Row>,
    /// Rates of one and of many clients.
    pub crowds: Vec<Row>,
    /// Who could not take part, and measurements that failed.
    pub skipped: Vec<Skipped>,
}

/// One contender with one size and one number of clients.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub contender: &'static str,
    /// Whether payloads were copied.
    pub payload: Payload,
    /// How both sides waited.
    pub waits: Waits,
    /// Bytes of each payload.
    pub size: usize,
    /// How many clients there were.
    pub clients: usize,
    /// Samples that the medians are of.
    pub kept: usize,
    /// Steady samples left out, since the CPUs were at the other distance.
    pub elsewhere: usize,
    /// Samples left out, since the CPUs were moved meanwhile.
    pub moved: usize,
    /// The medians, when any sample was kept.
    pub median: Option<Median>,
    /// Everything that was measured.
    pub samples: Vec<Sample>,
}

/// Medians of the samples that were kept, each of its own.
#[derive(Clone, Debug, Serialize)]
pub struct Median {
    /// Of the medians, in nanoseconds; none for a crowd, like the other latencies.
    pub p50: Option<u64>,
    /// Of the 95th percentiles.
    pub p95: Option<u64>,
    /// Of the 99th percentiles.
    pub p99: Option<u64>,
    /// Of the p95 over the mean p95 of the sample's two floors.
    pub ratio_to_floor: Option<f64>,
    /// Of the calls per second.
    pub per_second: f64,
    /// Of the p95 of the floors around the samples.
    pub floor_p95: u64,
    /// Of each of the quantiles.
    pub quantiles: Vec<u64>,
}

/// What is missing, and why.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Skipped {
    /// Who.
    pub contender: String,
    /// Why.
    pub why: String,
}

impl Report {
    /// Takes the medians of all rounds.
    pub fn new(
        machine: Machine,
        (rounds, seconds): (usize, f64),
        calls: Vec<Measured>,
        crowds: Vec<Measured>,
        mut skipped: Vec<Skipped>,
    ) -> Report {
        let distance = usual(calls.iter().chain(&crowds));
        let calls = rows(calls, distance, &mut skipped);
        let crowds = rows(crowds, distance, &mut skipped);
        let shares = SHARES.iter().map(|&share| f64::from(share) / 1e5).collect();
        Report { machine, rounds, seconds, distance, shares, calls, crowds, skipped }
    }

    /// Writes everything as JSON.
    ///
    /// # Errors
    /// Those of creating and writing the file.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut file = io::BufWriter::new(fs::File::create(path)?);
        serde_json::to_writer_pretty(&mut file, self)?;
        writeln!(file)?;
        file.flush()
    }
}

impl Row {
    /// The contender with what tells its variants apart.
    pub fn title(&self) -> String {
        match self.payload {
            Payload::Copied => format!("{}, {}", self.contender, self.waits),
            Payload::InPlace => format!("{}, {}, {}", self.contender, self.waits, self.payload),
        }
    }
}

/// Finds who cannot take part here.
pub fn absentees(chosen: &[usize]) -> Vec<(usize, Skipped)> {
    let everybody = contenders::all();
    let absent = |&index: &usize| {
        let who = everybody[index];
        who.absent().map(|why| (index, Skipped { contender: titled(who), why }))
    };
    chosen.iter().filter_map(absent).collect()
}

fn titled(who: &dyn Contender) -> String {
    format!("{}, {}", who.name(), who.waits())
}

/// Returns the distance of most steady samples.
fn usual<'a>(measured: impl Iterator<Item = &'a Measured>) -> Distance {
    let steady = measured.filter_map(|(_, sample)| sample.as_ref().ok()).filter(|it| it.steady);
    let lead: i64 =
        steady.map(|sample| if sample.distance == Distance::Near { 1 } else { -1 }).sum();
    if lead >= 0 { Distance::Near } else { Distance::Far }
}

fn rows(measured: Vec<Measured>, distance: Distance, skipped: &mut Vec<Skipped>) -> Vec<Row> {
    let mut cases: Vec<(Case, Vec<Sample>)> = Vec::new();
    for (case, outcome) in measured {
        match outcome {
            Ok(sample) => match cases.iter_mut().find(|(known, _)| *known == case) {
                Some((_, samples)) => samples.push(sample),
                None => cases.push((case, vec![sample])),
            },
            Err(error) => {
                let contender = titled(contenders::all()[case.contender]);
                let why = format!("{} B, {} clients: {error}", case.size, case.clients);
                let failed = Skipped { contender, why };
                if !skipped.contains(&failed) {
                    skipped.push(failed);
                }
            }
        }
    }
    cases.into_iter().map(|(case, samples)| row(case, samples, distance)).collect()
}

fn row(case: Case, samples: Vec<Sample>, distance: Distance) -> Row {
    let who = contenders::all()[case.contender];
    let kept: Vec<&Sample> =
        samples.iter().filter(|it| it.steady && it.distance == distance).collect();
    let moved = samples.iter().filter(|sample| !sample.steady).count();
    Row {
        contender: who.name(),
        payload: who.payload(),
        waits: who.waits(),
        size: case.size,
        clients: case.clients,
        kept: kept.len(),
        elsewhere: samples.len() - moved - kept.len(),
        moved,
        median: (!kept.is_empty()).then(|| of(&kept)),
        samples,
    }
}

fn of(kept: &[&Sample]) -> Median {
    let latency = |figure: fn(&benches::measure::Latency) -> u64| {
        median(kept.iter().filter_map(|it| it.latency.as_ref().map(figure)).collect())
    };
    let floor = |it: &Sample| it.floor_before.p95.midpoint(it.floor_after.p95);
    let ratios = kept
        .iter()
        .filter_map(|it| it.latency.map(|latency| latency.p95 as f64 / floor(it) as f64));
    let points = kept.first().map_or(0, |it| it.quantiles.len());
    let at = |point| median(kept.iter().map(|it| it.quantiles[point]).collect()).unwrap_or(0);
    Median {
        p50: latency(|it| it.p50),
        p95: latency(|it| it.p95),
        p99: latency(|it| it.p99),
        ratio_to_floor: middle(ratios.collect()),
        per_second: middle(kept.iter().map(|it| it.per_second).collect()).unwrap_or(0.0),
        floor_p95: median(kept.iter().map(|it| floor(it)).collect()).unwrap_or(0),
        quantiles: (0..points).map(at).collect(),
    }
}

fn median(values: Vec<u64>) -> Option<u64> {
    middle(values.into_iter().map(|value| value as f64).collect()).map(|value| value as u64)
}

fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    Some(f64::midpoint(values[last / 2], values[last.div_ceil(2)]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use benches::measure::Latency;

    fn latency(p: u64) -> Latency {
        Latency { p50: p, p95: p, p99: p, min: p, mean: p as f64, n: 1 }
    }

    pub(crate) fn sample(round: usize, figure: u64, floors: (u64, u64)) -> Sample {
        let (floor_before, floor_after) = (latency(floors.0), latency(floors.1));
        Sample {
            round,
            latency: Some(latency(figure)),
            quantiles: vec![figure; SHARES.len()],
            per_second: 1e9 / figure as f64,
            floor_before,
            floor_after,
            distance: Distance::of(&floor_after),
            steady: benches::report::held_still(&floor_before, &floor_after),
        }
    }

    #[test]
    fn the_middle_is_a_value_or_lies_between_two() {
        assert_eq!(middle(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(middle(vec![4.0, 1.0]), Some(2.5));
        assert_eq!(middle(Vec::new()), None);
    }

    #[test]
    fn rounds_that_moved_or_were_elsewhere_are_left_out_and_counted() {
        let case = Case { contender: 0, size: 8, clients: 1 };
        let samples = [
            sample(0, 200, (120, 120)),
            sample(1, 220, (120, 120)),
            sample(2, 240, (120, 120)),
            sample(3, 900, (500, 500)),
            sample(4, 500, (120, 500)),
        ];
        let measured: Vec<Measured> = samples.into_iter().map(|it| (case, Ok(it))).collect();
        let distance = usual(measured.iter());
        assert_eq!(distance, Distance::Near);
        let rows = rows(measured, distance, &mut Vec::new());
        let row = &rows[0];
        assert_eq!((row.kept, row.elsewhere, row.moved), (3, 1, 1));
        let median = row.median.as_ref().expect("three were kept");
        assert_eq!((median.p50, median.ratio_to_floor), (Some(220), Some(220.0 / 120.0)));
    }

    #[test]
    fn a_failure_is_said_once_and_not_silently() {
        let case = Case { contender: 0, size: 8, clients: 1 };
        let failed = || (case, Err(io::Error::other("no memory")));
        let mut skipped = Vec::new();
        assert!(rows(vec![failed(), failed()], Distance::Near, &mut skipped).is_empty());
        assert_eq!(skipped.len(), 1);
        assert!(skipped[0].why.contains("no memory"));
    }
}
