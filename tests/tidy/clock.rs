//! Who asks what time it is.

use std::collections::BTreeSet;

use super::{before_tests, rust, settle};

/// The files that ask what time it is for people. All else is timed by clocks that never step.
const WALL_CLOCK: &[&str] = &[
    // Delays of messages are given in it, since they outlast the machine.
    "ipc-queue/src/house.rs",
    // A number that differs, where there is no randomness.
    "ipc-queue/src/log.rs",
    "ipc/src/trace/otlp.rs",
    "kernel-services/src/journal.rs",
    // The audit log, and how long tokens are good for.
    "kernel-services/src/notes.rs",
];

#[test]
fn the_wall_clock_is_for_people() {
    let delivered = ["ffi/", "ipc/", "ipc-queue/", "ipctl/", "kernel-services/"];
    let is_delivered = |path: &str| delivered.iter().any(|it| path.starts_with(it));
    let asks = |code: &str| code.contains("SystemTime::now") || code.contains("CLOCK_REALTIME");
    let found: BTreeSet<&str> = rust()
        .filter(|file| is_delivered(&file.path) && asks(before_tests(&file.code)))
        .map(|file| file.path.as_str())
        .collect();
    let listed: BTreeSet<&str> = WALL_CLOCK.iter().copied().collect();
    let faults: Vec<String> = found
        .symmetric_difference(&listed)
        .map(|path| format!("{path}: use a monotonic clock, or set WALL_CLOCK right"))
        .collect();
    settle(&faults);
}
