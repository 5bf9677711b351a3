//! A subscriber's cursors before a ring whose words lie and change: what they yield is bounded, and
//! they end.
//!
//! Input: what is done, a byte each, and its arguments. See `Liar` of `ipc::fuzzing`.

#![no_main]

use fuzz::Input;
use ipc::fuzzing::{FalseRing, MOST_EVENT};
use libfuzzer_sys::fuzz_target;

/// Reads between two writes.
const READS: usize = 40;

fuzz_target!(|input: &[u8]| {
    let mut input = Input::new(input);
    let mut ring = FalseRing::new();
    while !input.is_empty() {
        match input.u8() {
            what @ 0..64 => ring.publish(&vec![what; usize::from(what) * 15]),
            what @ 64..128 => {
                let place = usize::from(input.u16());
                ring.write(place, if what & 1 == 0 { input.u64() } else { u64::from(input.u16()) });
            }
            what @ 128..192 => ring.head(what, input.u64()),
            what @ 192..224 => ring.begin(what, u64::from(input.u8())),
            _ => {
                for length in ring.read(READS) {
                    assert!(length <= MOST_EVENT, "{length} bytes");
                }
            }
        }
    }
});
