//! How names are configured, for the next runtime: who is to serve them, and when who does is
//! passed over. The file `failover` has a line for each name:
//!
//! ```text
//!   strategy interval timeout threshold busy instance,instance,... name
//! ```
//! It is written anew, synced, and renamed with each change, of which there are few. A line that
//! cannot be read is passed over: its name is served as one that was not configured.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use ipc::{FailoverStrategy, HealthCheck, ServiceId, control::MOST_MEMBERS};

use crate::broker::{Place, Plan};

/// Longest file that is read.
const MOST_BYTES: u64 = 16 << 20;

#[derive(Debug)]
pub(crate) struct Plans {
    directory: PathBuf,
    kept: BTreeMap<String, Plan>,
}

impl Plans {
    /// Opens the file of a directory whose lock the caller holds; gives what it says.
    pub(crate) fn open(directory: &Path) -> (Plans, Vec<(String, Plan)>) {
        let kept = read(&directory.join("failover")).unwrap_or_default();
        let all = kept.iter().map(|(name, plan)| (name.clone(), plan.clone())).collect();
        (Plans { directory: directory.to_owned(), kept }, all)
    }

    /// Remembers how a name is configured.
    pub(crate) fn keep(&mut self, name: String, plan: Plan) {
        self.kept.insert(name, plan);
        // What cannot be written holds for this run.
        let _ = self.write();
    }

    fn write(&self) -> io::Result<()> {
        let lines: String = self.kept.iter().map(|(name, plan)| line(name, plan)).collect();
        let fresh = self.directory.join("failover.new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&fresh)?;
        file.write_all(lines.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, self.directory.join("failover"))?;
        File::open(&self.directory)?.sync_all()
    }
}

fn line(name: &str, plan: &Plan) -> String {
    let HealthCheck { interval_ms, timeout_ms, threshold, busy_ms } = plan.health;
    let instances = plan.order.iter().filter_map(|place| match place {
        Place::Instance(id) => Some(id.get().to_string()),
        // What the node file says is not ours to remember.
        Place::Service(_) => None,
    });
    let order = instances.collect::<Vec<_>>().join(",");
    let order = if order.is_empty() { "-" } else { &order };
    let strategy = plan.strategy as u32;
    format!("{strategy} {interval_ms} {timeout_ms} {threshold} {busy_ms} {order} {name}\n")
}

fn read(path: &Path) -> Option<BTreeMap<String, Plan>> {
    let length = fs::metadata(path).ok()?.len();
    let text = (length <= MOST_BYTES).then(|| fs::read_to_string(path).ok())??;
    Some(text.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<(String, Plan)> {
    let mut words = line.splitn(7, ' ');
    let mut number = || words.next()?.parse::<u32>().ok();
    let strategy = FailoverStrategy::from_number(number()?)?;
    let (interval_ms, timeout_ms) = (number()?, number()?);
    let (threshold, busy_ms) = (number()?, number()?);
    let health = HealthCheck { interval_ms, timeout_ms, threshold, busy_ms };
    let order = match words.next()? {
        "-" => Vec::new(),
        ids => {
            let place = |id: &str| Some(Place::Instance(ServiceId::new(id.parse().ok()?)));
            ids.split(',').map(place).collect::<Option<Vec<_>>>()?
        }
    };
    let name = words.next()?;
    let is_sound = health.is_valid() && order.len() <= MOST_MEMBERS;
    (is_sound && ipc::control::check_name(name).is_ok())
        .then(|| (name.to_owned(), Plan { strategy, health, order, is_fixed: false }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_configured_is_there_for_the_next_run() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut plans, found) = Plans::open(directory.path());
        assert_eq!(found, []);
        let order = [9, 7].map(|id| Place::Instance(ServiceId::new(id))).to_vec();
        let health = HealthCheck { busy_ms: 70, ..HealthCheck::default() };
        let strategy = FailoverStrategy::RoundRobin;
        let plan = Plan { strategy, health, order, is_fixed: false };
        plans.keep("a name".to_owned(), plan.clone());
        plans.keep("other".to_owned(), Plan::default());
        plans.keep("a name".to_owned(), plan.clone());
        let (_, found) = Plans::open(directory.path());
        assert_eq!(found, [("a name".to_owned(), plan), ("other".to_owned(), Plan::default())]);
    }

    #[test]
    fn lines_that_are_none_are_passed_over() {
        for line in ["", "9 1 1 1 0 - x", "0 0 5 3 0 - x", "0 10 5 3 0 a x", "0 10 5 3 0 -", "0"] {
            assert_eq!(parse(line), None, "{line}");
        }
        assert!(parse("0 10 5 3 0 - x").is_some());
    }
}
