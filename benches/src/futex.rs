//! The bare futex between processes: what a parked call is compared with.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::atomic::AtomicU32;

/// Sleeps while `word` holds `expected`, until a [`wake`].
///
/// Returns at once when the word differs already, and now and then for no reason: check the word.
pub fn wait(word: &AtomicU32, expected: u32) {
    // Without FUTEX_PRIVATE_FLAG, so that the key is the file's page and not this mapping's.
    // SAFETY: the address is that of a live, aligned word; no time-out is passed; the kernel only
    // reads the word.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            expected,
            ptr::null::<libc::timespec>(),
        );
    }
}

/// Wakes one sleeper of `word`, in whichever process it is.
pub fn wake(word: &AtomicU32) {
    // SAFETY: the address is that of a live, aligned word, and the kernel does not touch it.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::{Acquire, Release};

    #[test]
    fn a_changed_word_does_not_sleep_and_a_wake_ends_a_sleep() {
        let word = AtomicU32::new(1);
        wait(&word, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while word.load(Acquire) == 1 {
                    wait(&word, 1);
                }
            });
            word.store(2, Release);
            wake(&word);
        });
    }
}
