//! Arbitrary words of a cell: refused, or in bounds; and both ways to check them agree.
//!
//! Input: a byte for sender, ring and slab, then the first four words of a cell.

#![no_main]

use ipc::fuzzing::{Accepted, End, check, plain};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&which, words)) = input.split_first() else { return };
    let (words, _) = words.as_chunks::<8>();
    let words: [u64; 4] =
        std::array::from_fn(|at| words.get(at).map_or(0, |word| u64::from_le_bytes(*word)));
    let sender = if which & 1 == 0 { End::Client } else { End::Server };
    let (urgent, max_slab) = (which & 2 != 0, 1024 << (which >> 2 & 7));
    let checked = check(words, sender, urgent, max_slab);
    if let Ok(frame) = checked {
        stays_in_bounds(&frame, max_slab);
    }
    if let Some(frame) = plain(words, sender, urgent, max_slab) {
        assert_eq!(checked, Ok(frame));
    }
});

fn stays_in_bounds(frame: &Accepted, max_slab: u32) {
    assert!(frame.slab <= max_slab as usize);
    assert_eq!(frame.inline + frame.slab, frame.length as usize);
    assert!(frame.total >= u64::from(frame.length));
    assert!(frame.first_word >= 2 && frame.first_word * 8 + frame.inline <= 64);
}
