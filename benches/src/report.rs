//! What was measured, as a table to read and as JSON to keep.

use std::fmt::{self, Write as _};
use std::fs;
use std::io::{self, IsTerminal, Write as _};

use serde::Serialize;

use crate::measure::{Clock, Latency, Throughput};
use crate::pin::Placement;

/// Cache-line round trips below this, in nanoseconds, are *near*: the two CPUs share a cache.
const NEAR_NS: u64 = 250;

/// A floor that changes by more than this factor over a group makes its ratios worthless.
const STEADY: f64 = 1.3;

/// Where the two CPUs are, judged by the floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Distance {
    /// They share a cache.
    Near,
    /// A line between them crosses an interconnect.
    Far,
}

impl Distance {
    /// Judges a floor.
    pub fn of(floor: &Latency) -> Self {
        if floor.p50 < NEAR_NS { Self::Near } else { Self::Far }
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Near => "near",
            Self::Far => "far",
        })
    }
}

/// The machine, as far as it explains the figures.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's own name.
    pub cpu: String,
    /// CPUs this process may run on.
    pub cpus: usize,
    /// The kernel's release.
    pub kernel: String,
    /// Runnable processes over the last minute, when the run began: over about 0.5, others ran too.
    pub load: f64,
    /// Which CPUs were used, and how they relate.
    pub placement: String,
    /// The source of time.
    pub clock: &'static str,
}

impl Machine {
    /// Reads the facts; what the kernel does not tell stays `unknown`.
    pub fn read(placement: &Placement, cpus: usize, clock: &Clock) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let cpu = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or("unknown", |(_, name)| name.trim());
        let release = read("/proc/sys/kernel/osrelease");
        let load = read("/proc/loadavg");
        Self {
            cpu: cpu.to_owned(),
            cpus,
            kernel: if release.is_empty() { "unknown".into() } else { release.trim().to_owned() },
            load: load.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN),
            placement: format!(
                "CPUs {} and {}, {}",
                placement.here, placement.there, placement.relation
            ),
            clock: clock.name(),
        }
    }
}

/// One measurement: a latency, or a rate.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Bytes in each message or copy.
    pub payload: Option<usize>,
    /// Nanoseconds that half of the round trips did not exceed.
    pub p50: Option<u64>,
    /// The same for 95 of 100.
    pub p95: Option<u64>,
    /// The same for 99 of 100.
    pub p99: Option<u64>,
    /// Messages or copies per second.
    pub per_second: Option<f64>,
    /// This row's p95 over the floor's beside it, filled in when its group is complete.
    pub ratio_to_floor: Option<f64>,
}

impl Row {
    /// Makes the row of a round trip.
    pub fn latency(name: &str, payload: Option<usize>, latency: Latency) -> Self {
        Self {
            name: name.to_owned(),
            payload,
            p50: Some(latency.p50),
            p95: Some(latency.p95),
            p99: Some(latency.p99),
            per_second: None,
            ratio_to_floor: None,
        }
    }

    /// Makes the row of a rate.
    pub fn throughput(name: &str, payload: Option<usize>, throughput: Throughput) -> Self {
        Self {
            name: name.to_owned(),
            payload,
            p50: None,
            p95: None,
            p99: None,
            per_second: Some(throughput.per_second()),
            ratio_to_floor: None,
        }
    }

    fn cells(&self) -> [String; 8] {
        let count = |value: Option<u64>| value.map_or(String::new(), |value| value.to_string());
        let gigabytes = self.payload.zip(self.per_second).map(|(b, n)| b as f64 * n / 1e9);
        [
            self.name.clone(),
            self.payload.map_or(String::new(), size),
            count(self.p50),
            count(self.p95),
            count(self.p99),
            self.per_second.map_or(String::new(), rate),
            gigabytes.map_or(String::new(), |rate| format!("{rate:.1}")),
            self.ratio_to_floor.map_or(String::new(), |ratio| format!("{ratio:.2}")),
        ]
    }
}

/// Rows measured together, between two measurements of the floor.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// What the rows have in common.
    pub name: String,
    /// The floor just before the rows.
    pub floor_before: Latency,
    /// The floor just after them.
    pub floor_after: Latency,
    /// Where the CPUs were before.
    pub before: Distance,
    /// Where they were after.
    pub after: Distance,
    /// Whether the floor held still enough for the ratios to mean something.
    pub steady: bool,
    /// The measurements.
    pub rows: Vec<Row>,
}

impl Group {
    /// Measures the floor, then the rows, then the floor again, and relates the rows to the mean
    /// of the two.
    ///
    /// # Errors
    /// The first that `floor` or `rows` returns.
    pub fn measure(
        name: &str,
        mut floor: impl FnMut() -> io::Result<Latency>,
        rows: impl FnOnce() -> io::Result<Vec<Row>>,
    ) -> io::Result<Self> {
        progress(&format!("{name}: the floor before"));
        let before = floor()?;
        let rows = rows()?;
        progress(&format!("{name}: the floor after"));
        Ok(Self::between(name, before, floor()?, rows))
    }

    fn between(name: &str, before: Latency, after: Latency, mut rows: Vec<Row>) -> Self {
        let (low, high) = (before.p95.min(after.p95) as f64, before.p95.max(after.p95) as f64);
        let floor = f64::midpoint(low, high);
        for row in &mut rows {
            row.ratio_to_floor = row.p95.map(|p95| p95 as f64 / floor);
        }
        Self {
            name: name.to_owned(),
            floor_before: before,
            floor_after: after,
            before: Distance::of(&before),
            after: Distance::of(&after),
            steady: high <= low * STEADY && Distance::of(&before) == Distance::of(&after),
            rows,
        }
    }
}

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// What it measured, in order.
    pub groups: Vec<Group>,
}

impl Report {
    /// Writes the run as JSON.
    ///
    /// # Errors
    /// Those of creating and writing the file.
    pub fn save(&self, path: &std::path::Path) -> io::Result<()> {
        let mut file = io::BufWriter::new(fs::File::create(path)?);
        serde_json::to_writer_pretty(&mut file, self)?;
        writeln!(file)?;
        file.flush()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cpu, cpus, kernel, load, placement, clock } = &self.machine;
        writeln!(f, "{cpu}, {cpus} CPUs, Linux {kernel}, load {load:.2}, clock {clock}")?;
        writeln!(f, "{placement}")?;
        for group in &self.groups {
            writeln!(f, "\n{group}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "== {} ==", self.name)?;
        for (when, floor, distance) in
            [("before", &self.floor_before, self.before), ("after", &self.floor_after, self.after)]
        {
            let Latency { p50, p95, p99, .. } = floor;
            writeln!(f, "floor {when:6} p50 {p50} ns, p95 {p95} ns, p99 {p99} ns: {distance}")?;
        }
        if !self.steady {
            writeln!(f, "the floor moved: these ratios mean little, run it again")?;
        }
        f.write_str(&table(&self.rows))
    }
}

/// Shows what is being measured: one line on standard error, overwritten where that is a terminal.
pub fn progress(what: &str) {
    let mut err = io::stderr().lock();
    // A benchmark does not fail for want of somebody to tell.
    let _ = if err.is_terminal() {
        write!(err, "\r\x1b[2Kbench: {what} ").and_then(|()| err.flush())
    } else {
        writeln!(err, "bench: {what}")
    };
}

/// Ends the line of [`progress`].
pub fn progress_done() {
    let mut err = io::stderr().lock();
    if err.is_terminal() {
        let _ = write!(err, "\r\x1b[2K").and_then(|()| err.flush());
    }
}

fn table(rows: &[Row]) -> String {
    const HEAD: [&str; 8] =
        ["", "payload", "p50 ns", "p95 ns", "p99 ns", "per second", "GB/s", "p95 / floor"];
    let lines: Vec<[String; 8]> =
        std::iter::once(HEAD.map(str::to_owned)).chain(rows.iter().map(Row::cells)).collect();
    let width: [usize; 8] = std::array::from_fn(|column| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for line in &lines {
        let mut drawn = format!("{:<1$}", line[0], width[0]);
        for column in 1..line.len() {
            // Writing to a String cannot fail.
            let _ = write!(drawn, "  {:>1$}", line[column], width[column]);
        }
        text.push_str(drawn.trim_end());
        text.push('\n');
    }
    text
}

fn size(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes / 1024),
        _ => format!("{} MiB", bytes / 1_048_576),
    }
}

fn rate(per_second: f64) -> String {
    if per_second >= 1e6 {
        format!("{:.2} M", per_second / 1e6)
    } else if per_second >= 1e3 {
        format!("{:.1} k", per_second / 1e3)
    } else {
        format!("{per_second:.1}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floor(p50: u64, p95: u64) -> Latency {
        Latency { p50, p95, p99: p95, min: p50, mean: p50 as f64, n: 1 }
    }

    #[test]
    fn rows_are_related_to_the_floor_on_both_sides() {
        let rows = vec![
            Row::latency("call", Some(48), floor(130, 180)),
            Row::throughput("one-way", Some(64), Throughput { items: 3, seconds: 1.5 }),
        ];
        let group = Group::between("call", floor(110, 115), floor(120, 125), rows);
        assert!(group.steady);
        assert_eq!(group.rows[0].ratio_to_floor, Some(1.5));
        assert_eq!((group.rows[1].ratio_to_floor, group.rows[1].per_second), (None, Some(2.0)));
    }

    #[test]
    fn a_floor_that_moved_is_said_aloud() {
        let group = Group::between("call", floor(120, 130), floor(500, 670), Vec::new());
        assert_eq!((group.before, group.after), (Distance::Near, Distance::Far));
        assert!(group.to_string().contains("the floor moved"));
    }

    #[test]
    fn columns_line_up() {
        let rows = [
            Row::latency("call", Some(48), floor(120, 130)),
            Row::throughput("memcpy", Some(1 << 20), Throughput { items: 9000, seconds: 1.0 }),
        ];
        let expected = "        payload  p50 ns  p95 ns  p99 ns  per second  GB/s  p95 / floor\n\
                        call       48 B     120     130     130\n\
                        memcpy    1 MiB                               9.0 k   9.4\n";
        assert_eq!(table(&rows), expected);
    }

    #[test]
    fn json_carries_the_row_s_fields() {
        let row = serde_json::to_value(Row::latency("call", Some(8), floor(1, 2))).expect("JSON");
        for field in ["name", "payload", "p50", "p95", "p99", "per_second", "ratio_to_floor"] {
            assert!(row.get(field).is_some(), "{field}");
        }
    }
}
