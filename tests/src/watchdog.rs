//! Nothing waits for ever, and nothing says how long it may take.

use std::{
    fmt::Debug,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    time::{Duration, Instant},
};

/// After so long a test hangs.
pub(crate) const LIMIT: Duration = Duration::from_mins(2);

/// Ends the test program, with a message, unless it is dropped in time.
#[derive(Debug)]
pub struct Watchdog {
    _leash: Sender<()>,
}

impl Watchdog {
    /// Watches over the calling thread's test.
    pub fn start() -> Watchdog {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let (leash, collar) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if collar.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                eprintln!("watchdog: {test} hangs");
                std::process::abort();
            }
        });
        Watchdog { _leash: leash }
    }
}

/// Waits until something outside of this process is so. Fails the test when it hangs.
pub fn wait_until(what: &str, is_so: impl FnMut() -> bool) {
    wait_for(what, &true, is_so);
}

/// Waits until something outside of this process has this value. Fails the test when it hangs.
pub fn wait_for<T: PartialEq + Debug>(what: &str, expected: &T, mut look: impl FnMut() -> T) {
    let begun = Instant::now();
    loop {
        let seen = look();
        if seen == *expected {
            return;
        }
        assert!(
            begun.elapsed() < LIMIT / 2,
            "waited in vain until {what}: {expected:?} was awaited, {seen:?} is seen"
        );
        // Between two looks; nothing depends on its length.
        std::thread::sleep(Duration::from_millis(1));
    }
}
