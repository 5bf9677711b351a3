//! What a runtime that is gone has left in its directory: files, and services that still run.

use std::{fs, path::Path};

use serde::Deserialize;

use super::{Check, State};

/// What is read of the file `units`, in which `ipcd` writes down the processes of its services.
#[derive(Deserialize)]
struct Units {
    boot: String,
    units: Vec<Unit>,
}

#[derive(Deserialize)]
struct Unit {
    service: String,
    pid: u32,
    start_time: u64,
}

/// Looks for what nobody has use for. Where a runtime answers it is all in use.
pub(super) fn check(directory: &Path, is_served: bool) -> Check {
    let nothing = || Check::new("leftovers", State::Ok, "none");
    if is_served {
        return nothing();
    }
    let services = services(directory);
    if !services.is_empty() {
        let found = format!("services run without ipcd: {}", services.join(", "));
        return Check::new("leftovers", State::Unused, found).hint(
            "start `ipcd --config` with their node file, which takes them over, or end them with \
             `kill`",
        );
    }
    let files = files(directory);
    if files.is_empty() {
        return nothing();
    }
    let found = format!("of a runtime that did not end in order: {}", files.join(", "));
    Check::new("leftovers", State::Unused, found).hint(format!(
        "the next ipcd replaces them; if none is to start there again, remove {}",
        directory.display()
    ))
}

/// Sockets that nobody listens at, and files that were being written.
fn files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut files: Vec<String> = names
        .filter(|name| {
            let is_socket = name.starts_with("ipcd.") && name.strip_suffix(".sock").is_some();
            is_socket || matches!(&**name, "ids.new" | "units.new")
        })
        .collect();
    files.sort();
    files
}

/// Services that were written down and still run, by name and process.
fn services(directory: &Path) -> Vec<String> {
    let units = fs::read(directory.join("units"))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Units>(&bytes).ok());
    let Some(Units { boot, units }) = units else { return Vec::new() };
    let now = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if boot.trim() != now.trim() {
        return Vec::new();
    }
    let runs = |unit: &Unit| kernel_services::process::started(unit.pid) == Some(unit.start_time);
    units
        .into_iter()
        .filter(runs)
        .map(|unit| format!("{} (pid {})", unit.service, unit.pid))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_with_what_to_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let look = || check(directory.path(), false);
        assert_eq!(look().state, State::Ok);
        for name in ["ipcd.sock", "ids.new", "ids", "ipcd.lock"] {
            fs::write(directory.path().join(name), "").expect("written");
        }
        let found = look();
        assert_eq!(found.state, State::Unused);
        assert!(found.found.ends_with(": ids.new, ipcd.sock"), "{}", found.found);
        assert_eq!(check(directory.path(), true).state, State::Ok, "all of it is in use");
    }

    #[test]
    fn a_service_that_still_runs_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot");
        let pid = std::process::id();
        let started = kernel_services::process::started(pid).expect("it runs");
        for (start_time, left) in [(started, true), (started + 1, false)] {
            let unit = serde_json::json!({
                "service": "web", "replica": 1, "pid": pid, "start_time": start_time,
            });
            let units = serde_json::json!({"version": 1, "boot": boot.trim(), "units": [unit]});
            fs::write(directory.path().join("units"), units.to_string()).expect("written");
            let found = check(directory.path(), false);
            assert_eq!(found.found.contains(&format!("web (pid {pid})")), left, "{found:?}");
        }
    }
}
