//! Arbitrary packets: decoded as they would be encoded, or refused; and the broker before nodes
//! that send them in any order.
//!
//! Input: what happens and to whom, two bytes each; behind them, where it is a packet, two bytes of
//! its length and so many bytes. See `happen`.

#![no_main]

use ipc::{
    Status,
    control::{MAX_PACKET, decode_reply, decode_request, encode_reply, encode_request},
};
use kernel_services::fuzzing::{Beside, Ground};
use libfuzzer_sys::fuzz_target;

const MILLISECOND: u64 = 1_000_000;

fuzz_target!(|input: &[u8]| {
    let mut ground = Ground::new().expect("a counter that has just begun");
    let mut rest = input;
    while let Some((&[what, who], after)) = rest.split_first_chunk::<2>() {
        rest = happen(&mut ground, what, u64::from(who), after);
    }
    ground.end();
});

/// One thing happens, to connection `who` where it is to any. Returns the input that is left.
fn happen<'a>(ground: &mut Ground, what: u8, who: u64, rest: &'a [u8]) -> &'a [u8] {
    match what >> 4 {
        0 => {
            ground.accept(who == 255);
        }
        1 => ground.gone(who),
        2 => ground.pass(who * who * MILLISECOND),
        3 => ground.answer(0, beside(what)),
        4 => ground.answer(-(who as i32), beside(what)),
        5 => ground.fail_offer(Status::from_code(-(who as i32) - 1)),
        _ => {
            let Some((&[low, high], rest)) = rest.split_first_chunk::<2>() else { return &[] };
            let length = usize::from(u16::from_le_bytes([low, high])) % (MAX_PACKET + 1);
            let (packet, rest) = rest.split_at(length.min(rest.len()));
            understand(packet);
            ground.packet(who, packet, beside(what));
            return rest;
        }
    }
    rest
}

fn beside(what: u8) -> Beside {
    match what & 7 {
        7 => Beside::Board,
        6 => Beside::Region,
        0 => Beside::Nothing,
        1 => Beside::Lane,
        4 => Beside::Ring,
        5 => Beside::Page,
        2 => Beside::Junk,
        _ => Beside::Many,
    }
}

/// What is decoded is what `encode` would have made, byte for byte.
fn understand(packet: &[u8]) {
    if let Ok((sequence, request)) = decode_request(packet) {
        assert_eq!(encode_request(sequence, &request), packet);
    }
    if let Ok((sequence, reply)) = decode_reply(packet) {
        assert_eq!(encode_reply(sequence, &reply), packet);
    }
}
