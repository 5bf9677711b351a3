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

/// Tells whether two floors are alike enough for what was measured between them to mean something.
pub fn held_still(before: &Latency, after: &Latency) -> bool {
    let (low, high) = (before.p95.min(after.p95) as f64, before.p95.max(after.p95) as f64);
    high <= low * STEADY && Distance::of(before) == Distance::of(after)
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

/// One measurement, a latency or a rate, between two of the floor.
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
    /// The average, in ns.
    pub mean: Option<f64>,
    /// Messages or copies per second.
    pub per_second: Option<f64>,
    /// The floor just before.
    pub floor_before: Latency,
    /// The floor just after.
    pub floor_after: Latency,
    /// Where the CPUs were.
    pub distance: Distance,
    /// Whether the floor held still enough for a comparison to mean something.
    pub steady: bool,
    /// This row's p95 over the mean of the floor's before and after; none if it moved.
    pub ratio_to_floor: Option<f64>,
}

impl Row {
    fn cells(&self) -> [String; 9] {
        let count = |value: Option<u64>| value.map_or(String::new(), |value| value.to_string());
        let gigabytes = self.payload.zip(self.per_second).map(|(b, n)| b as f64 * n / 1e9);
        let ratio = self.ratio_to_floor.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let floor =
            format!("{} {}", self.floor_before.p95.midpoint(self.floor_after.p95), self.distance);
        [
            self.name.clone(),
            self.payload.map_or(String::new(), size),
            count(self.p50),
            count(self.p95),
            count(self.p99),
            self.per_second.map_or(String::new(), rate),
            gigabytes.map_or(String::new(), |rate| format!("{rate:.1}")),
            if self.steady { floor } else { "moved".to_owned() },
            ratio,
        ]
    }
}

/// Puts a floor on both sides of every measurement. The host moves virtual CPUs within seconds, so
/// a floor a minute away says nothing.
pub struct Ruler<'a> {
    floor: &'a mut dyn FnMut() -> io::Result<Latency>,
    before: Latency,
    rows: Vec<Row>,
}

impl fmt::Debug for Ruler<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ruler").field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl Ruler<'_> {
    /// Measures a round trip.
    ///
    /// # Errors
    /// The first of `measure` or of the floor.
    pub fn latency(
        &mut self,
        name: &str,
        payload: Option<usize>,
        measure: impl FnOnce() -> io::Result<Latency>,
    ) -> io::Result<()> {
        progress(&described(name, payload));
        let it = measure()?;
        self.add(name, payload, Some(it), None)
    }

    /// Measures a rate.
    ///
    /// # Errors
    /// The first of `measure` or of the floor.
    pub fn throughput(
        &mut self,
        name: &str,
        payload: Option<usize>,
        measure: impl FnOnce() -> io::Result<Throughput>,
    ) -> io::Result<()> {
        progress(&described(name, payload));
        let it = measure()?;
        self.add(name, payload, None, Some(it.per_second()))
    }

    fn add(
        &mut self,
        name: &str,
        payload: Option<usize>,
        latency: Option<Latency>,
        per_second: Option<f64>,
    ) -> io::Result<()> {
        let (before, after) = (self.before, (self.floor)()?);
        self.before = after;
        let (distance, steady) = (Distance::of(&after), held_still(&before, &after));
        self.rows.push(Row {
            name: name.to_owned(),
            payload,
            p50: latency.map(|it| it.p50),
            p95: latency.map(|it| it.p95),
            p99: latency.map(|it| it.p99),
            mean: latency.map(|it| it.mean),
            per_second,
            floor_before: before,
            floor_after: after,
            distance,
            steady,
            ratio_to_floor: latency
                .filter(|_| steady)
                .map(|it| it.p95 as f64 / f64::midpoint(before.p95 as f64, after.p95 as f64)),
        });
        Ok(())
    }
}

/// Rows that belong together.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// What the rows have in common.
    pub name: String,
    /// The measurements.
    pub rows: Vec<Row>,
    /// How rows relate to each other, in words.
    pub notes: Vec<String>,
}

impl Group {
    /// Runs measurements, each between two of the floor.
    ///
    /// # Errors
    /// The first that `floor` or `measure` returns.
    pub fn measure(
        name: &str,
        mut floor: impl FnMut() -> io::Result<Latency>,
        measure: impl FnOnce(&mut Ruler<'_>) -> io::Result<()>,
    ) -> io::Result<Self> {
        progress(&format!("{name}: the floor"));
        let before = floor()?;
        let mut ruler = Ruler { floor: &mut floor, before, rows: Vec::new() };
        measure(&mut ruler)?;
        Ok(Self { name: name.to_owned(), rows: ruler.rows, notes: Vec::new() })
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

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cpus, kernel, load, placement, clock } = self;
        writeln!(f, "{cpu}, {cpus} CPUs, Linux {kernel}, load {load:.2}, clock {clock}")?;
        f.write_str(placement)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        for group in &self.groups {
            writeln!(f, "\n{group}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "== {} ==", self.name)?;
        f.write_str(&table(&self.rows))?;
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        if self.rows.iter().any(|row| !row.steady) {
            writeln!(f, "moved: the host moved the CPUs meanwhile; run it again for these")?;
        }
        Ok(())
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
    const HEAD: [&str; 9] =
        ["", "payload", "p50 ns", "p95 ns", "p99 ns", "per second", "GB/s", "floor p95", "ratio"];
    let lines: Vec<[String; 9]> =
        std::iter::once(HEAD.map(str::to_owned)).chain(rows.iter().map(Row::cells)).collect();
    let width: [usize; 9] = std::array::from_fn(|column| {
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

fn described(name: &str, payload: Option<usize>) -> String {
    payload.map_or(name.to_owned(), |bytes| format!("{name}, {}", size(bytes)))
}

/// Writes a number of bytes for people.
pub fn size(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes / 1024),
        _ => format!("{} MiB", bytes / 1_048_576),
    }
}

/// Writes a number per second for people.
pub fn rate(per_second: f64) -> String {
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

    fn group(floors: &[(u64, u64)], call: (u64, u64)) -> Group {
        let mut floors = floors.iter().map(|(p50, p95)| floor(*p50, *p95));
        Group::measure(
            "call",
            || floors.next().ok_or_else(|| io::ErrorKind::UnexpectedEof.into()),
            |ruler| {
                ruler.latency("call", Some(48), || Ok(floor(call.0, call.1)))?;
                let rate = Throughput { items: 9000, seconds: 1.0 };
                ruler.throughput("memcpy", Some(1 << 20), || Ok(rate))
            },
        )
        .expect("measured")
    }

    #[test]
    fn each_row_is_related_to_the_floor_on_both_sides_of_it() {
        let group = group(&[(110, 115), (120, 125), (130, 135)], (130, 180));
        assert!(group.rows.iter().all(|row| row.steady));
        assert_eq!(group.rows[0].ratio_to_floor, Some(1.5));
        assert_eq!((group.rows[1].ratio_to_floor, group.rows[1].per_second), (None, Some(9000.0)));
    }

    #[test]
    fn a_floor_that_moved_is_said_aloud() {
        let group = group(&[(120, 130), (500, 670), (500, 670)], (130, 180));
        assert_eq!(group.rows[0].ratio_to_floor, None);
        assert!(group.rows[1].steady);
        assert!(group.to_string().contains("moved"));
    }

    #[test]
    fn columns_line_up() {
        let group = group(&[(120, 120), (120, 120), (120, 120)], (120, 150));
        let text = table(&group.rows);
        let widths: Vec<_> = text.lines().map(str::len).collect();
        assert_eq!(widths[0], widths[1], "{text}");
        assert!(text.contains("120 near") && text.contains("1.25"), "{text}");
    }

    #[test]
    fn json_carries_the_row_s_fields() {
        let group = group(&[(1, 2), (1, 2), (1, 2)], (1, 2));
        let row = serde_json::to_value(&group.rows[0]).expect("JSON");
        for field in
            ["name", "payload", "p50", "p95", "p99", "mean", "per_second", "ratio_to_floor"]
        {
            assert!(row.get(field).is_some(), "{field}");
        }
    }
}
