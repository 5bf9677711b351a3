//! The system calls of waiting, each with what to do where the kernel lacks it.

#![allow(unsafe_code)] // raw system calls

use std::{ptr, sync::OnceLock, time::Duration};

use nix::errno::Errno;

use crate::sync::{AtomicU32, Ordering};

/// How a wait ended. Every one of them may be spurious: look at the ring again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Woken, or a word had changed already.
    Woken,
    /// The time is over.
    TimedOut,
}

/// One word of a wait: sleep while it has this value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word<'a> {
    pub(crate) at: &'a AtomicU32,
    pub(crate) value: u32,
    /// Whether other processes wake it.
    pub(crate) shared: bool,
}

/// Sleeps until one of up to four words changes and is woken, or the time is over. Words may lie
/// in read-only mappings.
///
/// # Errors
/// `ENOSYS` where the kernel has no `futex_waitv`; see [`has_waitv`].
pub(crate) fn wait_any(words: &[Word<'_>], timeout: Option<Duration>) -> Result<Wake, Errno> {
    debug_assert!(words.len() <= 4);
    // SAFETY: all-zero is a valid futex_waitv.
    let mut vector: [FutexWaitV; 4] = unsafe { std::mem::zeroed() };
    for (entry, word) in vector.iter_mut().zip(words) {
        *entry = FutexWaitV::of(word);
    }
    wait_vector(&vector[..words.len()], timeout)
}

/// Sleeps on the words of entries that were made of them, by callers that still borrow them.
fn wait_vector(vector: &[FutexWaitV], timeout: Option<Duration>) -> Result<Wake, Errno> {
    let until = timeout.map(deadline);
    let until_ptr = until.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the entries are valid, and their words outlive the call (an address that did not
    // would only end the wait by EFAULT); the kernel only reads them. `until_ptr` is null or
    // points at an absolute time.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex_waitv,
            vector.as_ptr(),
            vector.len() as u32,
            0_u32,
            until_ptr,
            libc::CLOCK_MONOTONIC,
        )
    };
    outcome(result)
}

/// Sleeps until one of the words that are there changes and is woken, or the time is over. Without
/// `futex_waitv` it sleeps on the first, and wakes every few ms to let the caller look at all.
pub(crate) fn wait_words(words: [Option<Word<'_>>; 4], timeout: Option<Duration>) {
    let first = words[0].expect("at least one word");
    let timeout = bounded(timeout);
    if has_waitv() {
        let mut some = [first; 4];
        let mut count = 0;
        for word in words.into_iter().flatten() {
            some[count] = word;
            count += 1;
        }
        // An error is a wait that ended at once: the caller looks, and comes again.
        let _ = wait_any(&some[..count], timeout);
    } else {
        wait(first, Some(timeout.map_or(TICK, |timeout| timeout.min(TICK))));
    }
}

/// Sleeps until one of up to 128 words changes and is woken, or the time is over. Without
/// `futex_waitv` it sleeps on the first, and wakes every few ms to let the caller look at all.
pub(crate) fn wait_many(words: &[Word<'_>], timeout: Option<Duration>) {
    let Some(first) = words.first() else { return };
    let timeout = bounded(timeout);
    if !has_waitv() {
        wait(*first, Some(timeout.map_or(TICK, |timeout| timeout.min(TICK))));
        return;
    }
    debug_assert!(words.len() <= 128);
    let vector: Vec<FutexWaitV> = words.iter().map(FutexWaitV::of).collect();
    // An error is a wait that ended at once: the caller looks, and comes again.
    let _ = wait_vector(&vector, timeout);
}

/// How long a sleeper sleeps at most where nobody can be relied on to wake it.
const TICK: Duration = Duration::from_millis(5);

/// The timeout, or less once `membarrier` was taken away.
fn bounded(timeout: Option<Duration>) -> Option<Duration> {
    if membarrier_is_lost() {
        Some(timeout.map_or(TICK, |timeout| timeout.min(TICK)))
    } else {
        timeout
    }
}

/// Sleeps while a single word has a value.
pub(crate) fn wait(word: Word<'_>, timeout: Option<Duration>) -> Wake {
    let private = if word.shared { 0 } else { libc::FUTEX_PRIVATE_FLAG };
    let until = bounded(timeout).map(deadline);
    let until_ptr = until.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: FUTEX_WAIT_BITSET reads one live word and an absolute time.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            ptr::from_ref(word.at),
            libc::FUTEX_WAIT_BITSET | private,
            word.value,
            until_ptr,
            ptr::null::<u32>(),
            u32::MAX,
        )
    };
    outcome(result).unwrap_or(Wake::Woken)
}

/// Wakes up to `count` sleepers of a word.
pub(crate) fn wake(word: &AtomicU32, shared: bool, count: i32) {
    let private = if shared { 0 } else { libc::FUTEX_PRIVATE_FLAG };
    // SAFETY: FUTEX_WAKE reads nothing of the word but its address.
    unsafe {
        libc::syscall(libc::SYS_futex, ptr::from_ref(word), libc::FUTEX_WAKE | private, count);
    }
}

/// Tells whether the kernel has `futex_waitv` (Linux 5.16, and not denied by a filter).
pub(crate) fn has_waitv() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let word = AtomicU32::new(0);
        // The word has another value: a kernel that knows the call answers at once.
        let probe = wait_any(&[Word { at: &word, value: 1, shared: false }], None);
        !matches!(probe, Err(Errno::ENOSYS | Errno::EPERM))
    })
}

/// Tells whether this process takes part in `membarrier(GLOBAL_EXPEDITED)`; registers it.
pub(crate) fn has_membarrier() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let register = libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED;
        // SAFETY: takes no pointer.
        let registered = unsafe { libc::syscall(libc::SYS_membarrier, register, 0, 0) };
        registered == 0
    })
}

/// Makes every running thread of every registered process pass a full barrier.
pub(crate) fn membarrier() {
    // SAFETY: takes no pointer.
    let result =
        unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) };
    if result != 0 {
        // Registered, hence supported; but a filter may have come since. The others go on without
        // fences, so time has to do: what a running thread stored before has long reached memory
        // then, and one that does not run passed a barrier when it was switched out. Sleeps are
        // short, too.
        MEMBARRIER_LOST.store(1, Ordering::Relaxed);
        std::thread::sleep(DRAINED);
    }
}

/// After so long every store has left its core, some hundred times over.
const DRAINED: Duration = Duration::from_micros(100);

/// Whether `membarrier` was taken away after it had been relied on.
pub(crate) fn membarrier_is_lost() -> bool {
    MEMBARRIER_LOST.load(Ordering::Relaxed) != 0
}

static MEMBARRIER_LOST: AtomicU32 = AtomicU32::new(0);

const FUTEX2_U32: u32 = 2;

#[repr(C)]
struct FutexWaitV {
    value: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

impl FutexWaitV {
    fn of(word: &Word<'_>) -> FutexWaitV {
        FutexWaitV {
            value: u64::from(word.value),
            address: ptr::from_ref(word.at).addr() as u64,
            flags: FUTEX2_U32 | if word.shared { 0 } else { libc::FUTEX_PRIVATE_FLAG as u32 },
            reserved: 0,
        }
    }
}

fn deadline(timeout: Duration) -> libc::timespec {
    let now = crate::clock::monotonic_ns();
    let until = now.saturating_add(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
    libc::timespec {
        tv_sec: (until / 1_000_000_000).min(i64::MAX as u64) as i64,
        tv_nsec: (until % 1_000_000_000) as i64,
    }
}

fn outcome(result: i64) -> Result<Wake, Errno> {
    match Errno::result(result) {
        Err(Errno::ETIMEDOUT) => Ok(Wake::TimedOut),
        Err(errno @ (Errno::ENOSYS | Errno::EPERM)) => Err(errno),
        // EAGAIN: a word had changed. EINTR: a signal. Both end the wait.
        _ => Ok(Wake::Woken),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_changed_word_or_a_time_out_ends_the_wait() {
        let word = AtomicU32::new(5);
        let word = |value| Word { at: &word, value, shared: false };
        assert_eq!(wait(word(4), None), Wake::Woken);
        assert_eq!(wait(word(5), Some(Duration::from_millis(1))), Wake::TimedOut);
        if has_waitv() {
            assert_eq!(wait_any(&[word(4)], None), Ok(Wake::Woken));
            let tick = Some(Duration::from_millis(1));
            assert_eq!(wait_any(&[word(5)], tick), Ok(Wake::TimedOut));
        }
    }

    #[test]
    fn a_waker_wakes() {
        let words = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
        let theirs = Arc::clone(&words);
        let sleeper = std::thread::spawn(move || {
            while theirs[1].load(Ordering::Acquire) == 0 {
                let of = |index: usize| Word { at: &theirs[index], value: 0, shared: true };
                if has_waitv() {
                    wait_any(&[of(0), of(1)], None).expect("futex_waitv");
                } else {
                    wait(of(1), None);
                }
            }
        });
        words[1].store(1, Ordering::Release);
        wake(&words[1], true, 1);
        sleeper.join().expect("woken");
    }
}
