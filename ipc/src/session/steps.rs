//! Counts instructions: for what is to take as long whatever its secrets are. A clock would tell
//! that of a machine with nothing else to do; a count is the same every time.

#![allow(unsafe_code)] // forks, and has the child go step by step

use std::hint::black_box;

use nix::{
    sys::{
        signal::{Signal, kill, raise},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, fork},
};

use super::{
    aead::{Cipher, Head, is_sealed, open_words, seal_words},
    chacha::{BLOCKS, Backend, key_words},
    poly::Half,
};

/// Runs something, with numbers, in a child; gives the instructions of each of the first so
/// many.
fn instructions(runs: usize, run: impl Fn(usize)) -> Vec<u64> {
    // SAFETY: the child computes, and ends.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            // What is found out once, and bound when it is first called, is so then.
            (0..runs + 2).for_each(&run);
            // SAFETY: lets the parent look at this process.
            unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
            // More than are looked at: the loop may take another way at its end.
            for number in 0..runs + 2 {
                let _ = raise(Signal::SIGSTOP);
                run(number);
            }
            // Nobody lets it come so far.
            std::process::abort()
        }
        ForkResult::Parent { child } => {
            let stopped = |by| WaitStatus::Stopped(child, by);
            assert_eq!(waitpid(child, None), Ok(stopped(Signal::SIGSTOP)), "before the first");
            // SAFETY: whatever becomes of this thread, the child is not left stopped.
            unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, child, 0, libc::PTRACE_O_EXITKILL) };
            let counts = (0..runs).map(|_| {
                for count in 0.. {
                    // SAFETY: a stopped child of this thread goes on for one instruction.
                    let went = unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, child, 0, 0) };
                    assert_eq!(went, 0, "it can be traced");
                    match waitpid(child, None).expect("a child") {
                        it if it == stopped(Signal::SIGTRAP) => {}
                        it if it == stopped(Signal::SIGSTOP) => return count,
                        other => panic!("the child ended as {other:?}"),
                    }
                }
                unreachable!("it comes to an end")
            });
            let counts = counts.collect();
            kill(child, Signal::SIGKILL).expect("it is there");
            let ended = WaitStatus::Signaled(child, Signal::SIGKILL, false);
            assert_eq!(waitpid(child, None), Ok(ended));
            counts
        }
    }
}

const HEAD: Head = [1, 2, 3, 4];

/// Bytes of a tag in which it is wrong: those where words begin and end, of any size.
const WRONG: [usize; 6] = [0, 1, 7, 8, 11, 15];

/// A tag that is wrong in one byte.
fn wrong(tag: Half, byte: usize) -> Half {
    let mut tag = tag;
    tag[byte / 8] ^= 0x80 << (8 * (byte % 8));
    tag
}

/// How many instructions each of the ways of a tag to be wrong took.
fn counts(tag: Half, refuse: impl Fn(Half) -> bool) -> Vec<u64> {
    instructions(WRONG.len(), |number| {
        let byte = WRONG[number % WRONG.len()];
        // A panic in a child of a test ends it otherwise than the parent expects.
        assert!(refuse(black_box(wrong(tag, byte))), "byte {byte} makes no difference");
    })
}

fn are_equal(counts: &[u64]) -> bool {
    assert!(counts.iter().all(|it| *it > 50), "too few for anything: {counts:?}");
    counts.iter().all(|it| *it == counts[0])
}

#[test]
fn what_refuses_a_tag_takes_as_many_instructions_wherever_it_is_wrong() {
    let key = key_words(&[0x42; 32]);
    let mut blocks = [[0; 8]; BLOCKS];
    Backend::detect().ahead(&key, 0, &mut blocks);
    let pad = [blocks[0], blocks[1]];
    let text = [7; 8];
    let (sealed, tag) = seal_words(&pad, &HEAD, text, 64);
    let short = counts(tag, |tag| open_words(&pad, &HEAD, sealed, 64, tag).is_none());
    assert!(are_equal(&short), "short: {short:?}");

    let mut long = [9; 200];
    let tag = Cipher { key: &key }.seal(0, &HEAD, &mut long);
    let sought = counts(tag, |tag| !is_sealed(&blocks[0], &HEAD, &long, tag));
    assert!(are_equal(&sought), "looked for: {sought:?}");
    // Without the sweep of the stack behind it, which takes by far the most.
    let open = |tag| Cipher { key: &key }.open_by_library(0, &HEAD, &mut long.clone(), tag);
    let long = counts(tag, |tag| !open(tag));
    assert!(are_equal(&long), "long: {long:?}");

    // One that stops at the first byte that differs would be seen.
    let bytes = tag.map(u64::to_le_bytes);
    let stops_early = counts(tag, |tag| {
        let its = tag.map(u64::to_le_bytes);
        !bytes
            .as_flattened()
            .iter()
            .zip(its.as_flattened())
            .all(|(one, other)| black_box(one) == other)
    });
    assert!(!are_equal(&stops_early), "this is how it would be seen: {stops_early:?}");
}
