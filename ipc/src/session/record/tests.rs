use super::*;
use crate::layout::Ring;
use proptest::prelude::*;

const ROOT: [u8; 32] = [0x5A; 32];
const SECOND: u64 = 1_000_000_000;

fn context() -> Context {
    Context { session: 0x1122_3344_5566_7788, epoch: 7, way: Way::FromClient }
}

fn pair_with(limits: Limits) -> (Sealer, Opener) {
    let sealer = Sealer::new(&ROOT, context(), limits).expect("memory");
    (sealer, Opener::new(&ROOT, context(), limits).expect("memory"))
}

fn pair() -> (Sealer, Opener) {
    pair_with(Limits::default())
}

/// A frame as it lies in a lane.
#[derive(Clone, Debug, PartialEq)]
struct Sealed {
    phase: bool,
    head: [u64; 2],
    bytes: Vec<u8>,
}

fn seal(sealer: &mut Sealer, ring: Ring, text: &[u8], now_ns: u64) -> Sealed {
    let phase = sealer.phase(ring, now_ns);
    let head = [(text.len() as u64) << 32 | 1, 0x55];
    let mut bytes = vec![0; text.len() + 16];
    sealer.seal(ring, head, text, &mut bytes).expect("positions left");
    Sealed { phase, head, bytes }
}

fn open(opener: &mut Opener, ring: Ring, it: &Sealed, now_ns: u64) -> Result<Vec<u8>, Refusal> {
    let mut bytes = it.bytes.clone();
    let again = |body: &mut [u8]| body.copy_from_slice(&it.bytes[..body.len()]);
    let length = opener.open(ring, it.phase, it.head, &mut bytes, now_ns, again)?;
    bytes.truncate(length);
    Ok(bytes)
}

#[test]
fn every_flip_of_one_bit_is_refused_and_the_next_record_opens() {
    for length in 0..=flips::LONGEST {
        let text: Vec<u8> = (0..length).map(|n| n as u8 ^ 0xC3).collect();
        let (mut sealer, mut opener) = pair();
        let mut refused = 0;
        for bit in flips::bits(8 * (length + 16 + 16), length) {
            let mut it = seal(&mut sealer, Ring::Ordinary, &text, 0);
            let (byte, mask) = (bit / 8, 1_u8 << (bit % 8));
            // The frame's head first, then what lies behind it.
            let is_lap = (4..32).contains(&bit);
            match byte {
                0..16 => it.head[byte / 8] ^= u64::from(mask) << (8 * (byte % 8)),
                _ => it.bytes[byte - 16] ^= mask,
            }
            let outcome = open(&mut opener, Ring::Ordinary, &it, 0);
            if is_lap {
                // The consumer compares the lap with its own cursor's; it decides nothing here.
                assert_eq!(outcome.as_deref(), Ok(&text[..]));
                continue;
            }
            assert_eq!(outcome, Err(Refusal::Altered), "bit {bit} of {length} bytes");
            refused += 1;
            assert_eq!(opener.refused(), refused);
            let whole = seal(&mut sealer, Ring::Ordinary, &text, 0);
            assert_eq!(open(&mut opener, Ring::Ordinary, &whole, 0).as_deref(), Ok(&text[..]));
            if opener.is_poisoned() {
                assert_eq!(refused, BAD_RECORDS);
                ((sealer, opener), refused) = (pair(), 0);
            }
        }
    }
}

#[test]
fn a_flipped_phase_is_refused_and_does_not_change_the_key() {
    let (mut sealer, mut opener) = pair();
    let mut it = seal(&mut sealer, Ring::Ordinary, b"text", 0);
    it.phase = !it.phase;
    assert_eq!(open(&mut opener, Ring::Ordinary, &it, 0), Err(Refusal::Altered));
    assert_eq!(opener.generation(Ring::Ordinary), 0);
    let it = seal(&mut sealer, Ring::Ordinary, b"text", 0);
    assert!(open(&mut opener, Ring::Ordinary, &it, 0).is_ok());
}

#[test]
fn what_was_done_to_a_record_is_what_is_told() {
    for text in [&b"short"[..], &[7; 300]] {
        let (mut sealer, mut opener) = pair();
        let mut next = || seal(&mut sealer, Ring::Ordinary, text, 0);
        let records: Vec<_> = (0..8).map(|_| next()).collect();
        let mut open = |it: &Sealed| open(&mut opener, Ring::Ordinary, it, 0);
        assert!(open(&records[0]).is_ok());
        assert_eq!(open(&records[0]), Err(Refusal::Replayed { position: 0 }));
        // Two in the wrong order.
        assert_eq!(open(&records[3]), Err(Refusal::Reordered { position: 3 }));
        assert_eq!(open(&records[2]), Err(Refusal::Reordered { position: 2 }));
        assert!(open(&records[4]).is_ok());
        let cut = Sealed { bytes: records[5].bytes[..15].to_vec(), ..records[5].clone() };
        assert_eq!(open(&cut), Err(Refusal::Cut));
        // One left out.
        assert_eq!(open(&records[7]), Err(Refusal::Reordered { position: 7 }));
    }
}

#[test]
fn a_record_opens_on_its_ring_its_way_and_in_its_session_and_epoch_only() {
    let (mut sealer, _) = pair();
    let it = seal(&mut sealer, Ring::Ordinary, b"for one", 0);
    let others = [
        Context { session: 1, ..context() },
        Context { epoch: 8, ..context() },
        Context { way: Way::FromServer, ..context() },
    ];
    for other in others {
        let mut opener = Opener::new(&ROOT, other, Limits::default()).expect("memory");
        assert_eq!(open(&mut opener, Ring::Ordinary, &it, 0), Err(Refusal::Altered));
    }
    let (_, mut opener) = pair();
    assert_eq!(open(&mut opener, Ring::Urgent, &it, 0), Err(Refusal::Altered));
    assert!(open(&mut opener, Ring::Ordinary, &it, 0).is_ok());
}

#[test]
fn keys_change_by_count_without_a_pause() {
    let limits = Limits { rekey_records: 10, reject_records: 20, ..Limits::default() };
    let (mut sealer, mut opener) = pair_with(limits);
    // Records of an old key are still in the ring when those of the next are sealed.
    for _ in 0..20 {
        let records: Vec<_> =
            (0..7_u8).map(|n| (n, seal(&mut sealer, Ring::Ordinary, &[n; 40], 0))).collect();
        for (n, it) in records {
            assert_eq!(open(&mut opener, Ring::Ordinary, &it, 0), Ok(vec![n; 40]));
        }
    }
    assert_eq!(sealer.generation(Ring::Ordinary), 13);
    assert_eq!(opener.generation(Ring::Ordinary), 13);
    assert_eq!((opener.generation(Ring::Urgent), opener.refused()), (0, 0));
}

#[test]
fn keys_change_by_time() {
    let (mut sealer, mut opener) = pair();
    for (now, generation) in [(0, 0), (119, 0), (120, 1), (239, 1), (5000, 2), (5000, 2)] {
        let it = seal(&mut sealer, Ring::Urgent, b"now", now * SECOND);
        assert!(open(&mut opener, Ring::Urgent, &it, now * SECOND).is_ok());
        assert_eq!(opener.generation(Ring::Urgent), generation);
    }
}

#[test]
fn a_key_that_is_used_for_too_long_is_refused() {
    let never = Limits { rekey_records: u64::MAX, rekey_age_ns: u64::MAX, ..Limits::default() };
    let mut sealer = Sealer::new(&ROOT, context(), never).expect("memory");
    let limits = Limits { reject_records: 20, ..Limits::default() };
    let mut opener = Opener::new(&ROOT, context(), limits).expect("memory");
    for position in 0..22 {
        let it = seal(&mut sealer, Ring::Ordinary, b"old", 0);
        let outcome = open(&mut opener, Ring::Ordinary, &it, 0);
        assert_eq!(outcome.is_err(), position >= 20, "{outcome:?}");
        assert!(outcome.is_ok() || outcome == Err(Refusal::Expired));
    }
    let it = seal(&mut sealer, Ring::Urgent, b"old", 0);
    assert!(open(&mut opener, Ring::Urgent, &it, 10 * SECOND).is_ok());
    let it = seal(&mut sealer, Ring::Urgent, &[0; 100], 0);
    assert!(open(&mut opener, Ring::Urgent, &it, 1809 * SECOND).is_ok());
    let it = seal(&mut sealer, Ring::Urgent, &[0; 100], 0);
    assert_eq!(open(&mut opener, Ring::Urgent, &it, 1810 * SECOND), Err(Refusal::Expired));
}

#[test]
fn an_altered_record_at_a_change_of_key_costs_one_record() {
    let limits = Limits { rekey_records: 4, reject_records: 8, ..Limits::default() };
    let (mut sealer, mut opener) = pair_with(limits);
    for position in 0..12 {
        let mut it = seal(&mut sealer, Ring::Ordinary, b"text", 0);
        let is_first = position == 4;
        it.bytes[0] ^= u8::from(is_first);
        assert_eq!(open(&mut opener, Ring::Ordinary, &it, 0).is_err(), is_first);
    }
    assert_eq!(opener.generation(Ring::Ordinary), 2);
}

#[test]
fn the_last_positions_are_never_used() {
    let (mut sealer, mut opener) = pair();
    for ring in [Ring::Urgent, Ring::Ordinary] {
        sealer.direction().begin_at(ring, END - 3);
        opener.direction().begin_at(ring, END - 3);
    }
    for _ in 0..3 {
        let it = seal(&mut sealer, Ring::Ordinary, b"one of the last", 0);
        assert!(open(&mut opener, Ring::Ordinary, &it, 0).is_ok());
    }
    let head = [0, 0];
    for length in [0, 100] {
        let mut bytes = vec![0; length + 16];
        let refused = sealer.seal(Ring::Ordinary, head, &vec![1; length], &mut bytes);
        assert_eq!(refused, Err(Spent::Positions));
        assert_eq!(bytes, vec![0; length + 16], "nothing was sealed");
    }
    let it = Sealed { phase: false, head, bytes: vec![0; 40] };
    assert_eq!(open(&mut opener, Ring::Ordinary, &it, 0), Err(Refusal::Expired));
}

#[test]
fn used_keystream_is_gone() {
    let (mut sealer, _) = pair();
    seal(&mut sealer, Ring::Ordinary, b"text", 0);
    sealer.direction().begin_at(Ring::Ordinary, 0);
    assert_eq!(*sealer.direction().pad(Ring::Ordinary), [[0; 8]; 2]);
    sealer.direction().begin_at(Ring::Ordinary, 1);
    assert_ne!(*sealer.direction().pad(Ring::Ordinary), [[0; 8]; 2]);
}

#[test]
fn keystream_is_made_ahead_while_there_is_time() {
    let (mut sealer, mut opener) = pair();
    let ring = Ring::Ordinary;
    let mut made = [0; 2];
    for n in 0..80_u8 {
        made[0] += u32::from(sealer.prepare(ring));
        made[1] += u32::from(opener.prepare(ring));
        // Nothing is made twice, and what is needed next is there.
        assert!(!sealer.prepare(ring) && !opener.prepare(ring));
        assert_ne!(*sealer.direction().pad(ring), [[0; 8]; 2]);
        let it = seal(&mut sealer, ring, &[n; 20], 0);
        assert_eq!(open(&mut opener, ring, &it, 0), Ok(vec![n; 20]));
    }
    assert_eq!(made, [11, 11], "ten batches, and one ahead");
}

#[test]
fn a_forked_child_seals_and_opens_nothing() {
    let (mut sealer, mut opener) = pair();
    let it = seal(&mut sealer, Ring::Ordinary, b"text", 0);
    let code = crate::session::vault::in_a_child(|| {
        let mut bytes = [0; 20];
        let sealing = sealer.seal(Ring::Ordinary, [0; 2], b"text", &mut bytes);
        let opening = open(&mut opener, Ring::Ordinary, &it, 0);
        i32::from(sealing != Err(Spent::Forked) || opening != Err(Refusal::Forked))
    });
    assert_eq!(code, 0);
    assert!(open(&mut opener, Ring::Ordinary, &it, 0).is_ok());
}

proptest! {
    #[test]
    fn whatever_is_done_only_what_was_sealed_for_a_place_opens_there(
        steps in proptest::collection::vec(
            (0_u8..6, 0_usize..40, any::<u16>(), 0_usize..90), 1..200,
        ),
        rekey_records in 1_u64..40,
    ) {
        let limits = Limits { rekey_records, reject_records: 1000, ..Limits::default() };
        let (mut sealer, mut opener) = pair_with(limits);
        let mut sent: Vec<(Vec<u8>, Sealed)> = Vec::new();
        for (step, back, bit, length) in steps {
            let text = vec![length as u8; length];
            let it = seal(&mut sealer, Ring::Ordinary, &text, 0);
            sent.push((text, it));
            let position = sent.len() - 1;
            let mut shown = sent[position].1.clone();
            match step {
                0 => {
                    let bits = 8 * shown.bytes.len();
                    let bit = usize::from(bit) % bits;
                    shown.bytes[bit / 8] ^= 1 << (bit % 8);
                }
                1 => shown = sent[position.saturating_sub(back)].1.clone(),
                2 => shown.bytes.truncate(shown.bytes.len().saturating_sub(back + 1)),
                _ => {}
            }
            let is_honest = shown == sent[position].1;
            let outcome = open(&mut opener, Ring::Ordinary, &shown, 0);
            if opener.is_poisoned() {
                break;
            }
            if is_honest {
                prop_assert_eq!(outcome.as_ref(), Ok(&sent[position].0));
            } else {
                prop_assert!(outcome.is_err());
            }
        }
    }
}
