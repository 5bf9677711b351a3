//! Looks for keys wherever a core dump would have them: in all memory of this process that is not
//! marked to be left out.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    thread,
};

use super::{
    Binding, Handshake, Pattern, SecureChannel, StaticKey, Then,
    chacha::Backend,
    resolver::mixed,
    vault::{in_a_child, sweep_stack},
    x25519::Curve,
};
use crate::{
    layout::Ring,
    sync::{AtomicU32, Ordering},
};

/// What the keys looked for are kept under, so that they are not found here.
const MASK: u32 = 0x5A3C_96E1;

const BINDING: Binding<'static> =
    Binding { client: "a", service: "b", client_id: 1, service_id: 2, epoch: 3, channel: 4 };

/// The first half of a key, masked.
type Needle = [u32; 4];

#[inline(never)]
fn needle(word: impl Fn(usize) -> u32) -> Needle {
    std::array::from_fn(|at| word(at) ^ MASK)
}

fn keys_of(channel: &mut SecureChannel) -> Vec<Needle> {
    let (sealer, opener) = channel.ends();
    let directions = [sealer.direction(), opener.direction()];
    let mut found = Vec::new();
    for direction in directions {
        for ring in [Ring::Urgent, Ring::Ordinary] {
            let key = direction.key(ring);
            found.push(needle(|at| key[at]));
            // The first half of each block: its words are of twice the length.
            let blocks = direction.unused(ring);
            found.extend(blocks.map(|it| needle(|at| (it[at / 2] >> (32 * (at % 2))) as u32)));
        }
    }
    found
}

/// Which mappings are looked at, of those that can be written.
#[derive(Clone, Copy, PartialEq)]
enum Where {
    /// Those that a core dump has.
    Dumped,
    /// All.
    Anywhere,
}

fn mappings(place: Where) -> Vec<(u64, usize)> {
    let mut mappings = Vec::new();
    let mut current = None;
    for line in fs::read_to_string("/proc/self/smaps").expect("proc").lines() {
        let range = line.split_once(' ').and_then(|(range, rest)| {
            let (from, to) = range.split_once('-')?;
            let parse = |text| u64::from_str_radix(text, 16).ok();
            Some((parse(from)?, parse(to)?, rest.starts_with("rw")))
        });
        if let Some((from, to, is_writable)) = range {
            current = is_writable.then_some((from, (to - from) as usize));
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && (place == Where::Anywhere || !flags.split(' ').any(|flag| flag == "dd"))
        {
            mappings.extend(current.take());
        }
    }
    mappings
}

/// How many of the keys lie where a core dump would have them.
fn count(needles: &[Needle]) -> usize {
    count_in(Where::Dumped, needles)
}

fn count_in(place: Where, needles: &[Needle]) -> usize {
    let memory = File::open("/proc/self/mem").expect("proc");
    let mut page = vec![0; 4096 + 15];
    let mut found = 0;
    let mut begins = [false; 256];
    for it in needles {
        begins[((it[0] ^ MASK) & 0xFF) as usize] = true;
    }
    for (from, length) in mappings(place) {
        for at in (0..length).step_by(4096) {
            let most = page.len().min(length - at);
            // Some pages of the kernel's are not to be read.
            let Ok(read) = memory.read_at(&mut page[..most], from + at as u64) else { continue };
            // At any byte: what holds a key may be aligned to nothing.
            for window in page[..read].windows(16).filter(|it| begins[usize::from(it[0])]) {
                let (words, _) = window.as_chunks::<4>();
                let masked = |at: usize| u32::from_le_bytes(words[at]) ^ MASK;
                found += needles.iter().filter(|it| (0..4).all(|at| it[at] == masked(at))).count();
            }
        }
    }
    // What was read last may have been a key.
    page.fill(0);
    found
}

#[inline(never)]
fn session() -> ([StaticKey; 2], [Box<SecureChannel>; 2]) {
    let (ours, theirs) = (StaticKey::generate().expect("key"), StaticKey::generate().expect("key"));
    let client = Handshake::client(Pattern::Kk, &ours, Some(theirs.public()), &BINDING);
    let server = Handshake::server(Pattern::Kk, &theirs, Some(ours.public()), &BINDING);
    let first = client.and_then(Handshake::begin).expect("a first message");
    let answer = server.and_then(|it| it.receive(&first.send.expect("one"))).expect("it fits");
    let Then::Receive(client) = first.then else { unreachable!("two messages") };
    let last = client.receive(&answer.send.expect("one")).expect("it fits");
    match (last.then, answer.then) {
        (Then::Done(client), Then::Done(server)) => ([ours, theirs], [client, server]),
        _ => unreachable!("two messages"),
    }
}

fn needle_of(bytes: &[u8; 32]) -> Needle {
    needle(|at| u32::from_le_bytes(std::array::from_fn(|n| bytes[4 * at + n])))
}

/// What two keys have in common, as a needle.
#[inline(never)]
fn shared(curve: Curve, key: &StaticKey, other: &StaticKey) -> Needle {
    let shared = curve.agree(key.secret(), other.public().as_bytes());
    needle_of(&shared.expect("an honest key"))
}

#[test]
fn nothing_of_an_agreement_lies_there_whoever_computes_it() {
    let (ours, theirs) = (StaticKey::generate().expect("key"), StaticKey::generate().expect("key"));
    for curve in Curve::all() {
        // The needle, whether it is there, and whether the thread may end.
        let words: [AtomicU32; 6] = std::array::from_fn(|_| AtomicU32::new(0));
        thread::scope(|scope| {
            let (ours, theirs, words) = (&ours, &theirs, &words);
            // Its stack stays as the computation has left it: looking, or waiting by any call,
            // would overwrite some.
            scope.spawn(move || {
                let needle = shared(curve, ours, theirs);
                sweep_stack();
                words.iter().zip(needle).for_each(|(at, word)| at.store(word, Ordering::Relaxed));
                words[4].store(1, Ordering::Release);
                while words[5].load(Ordering::Acquire) == 0 {}
            });
            while words[4].load(Ordering::Acquire) == 0 {}
            let shared = std::array::from_fn(|at| words[at].load(Ordering::Relaxed));
            let needles = [shared, needle_of(ours.secret())];
            sweep_stack();
            let found = count(&needles);
            words[5].store(1, Ordering::Release);
            assert_eq!(found, 0, "{curve:?}");
        });
    }
}

#[test]
fn no_key_lies_where_a_core_dump_would_have_it() {
    Backend::all().for_each(no_key_of_it_lies_there);
}

fn no_key_of_it_lies_there(backend: Backend) {
    let (keys, [mut client, mut server]) = session();
    for channel in [&mut client, &mut server] {
        let (sealer, opener) = channel.ends();
        (sealer.direction().backend, opener.direction().backend) = (backend, backend);
    }
    for length in [10, 48, 64, 65, 1000, 70_000] {
        // The second time the key is another.
        for now in [0, 200_000_000_000] {
            let sealed = client.encrypt(&vec![1; length], now).expect("here");
            assert_eq!(server.decrypt(&sealed, now).map(|text| text.len()), Ok(length));
        }
    }
    let mut needles = keys_of(&mut client);
    needles.extend(keys.iter().map(|key| needle_of(key.secret())));
    // The handshake has computed it at both ends.
    needles.push(shared(Curve::detect(), &keys[0], &keys[1]));
    sweep_stack();
    assert!(needles.len() > 10, "{} needles", needles.len());
    assert_eq!(count(&needles), 0, "keys in memory that is dumped");
    // It would be found: a key where it should not be.
    let astray: Vec<u32> = needles[0].iter().map(|word| word ^ MASK).collect();
    let astray = std::hint::black_box(astray);
    assert!(count(&needles) > 0, "a key of {} words is found", astray.len());
}

/// Two ends in the middle of XX, and what of them is secret: the ephemeral keys, the key of the
/// next messages, and the chaining key, of which all later ones are made.
#[inline(never)]
fn in_the_middle() -> ([Handshake; 2], Vec<Needle>) {
    let (ours, theirs) = (StaticKey::generate().expect("key"), StaticKey::generate().expect("key"));
    let client = Handshake::client(Pattern::Xx, &ours, None, &BINDING).expect("memory");
    let server = Handshake::server(Pattern::Xx, &theirs, None, &BINDING).expect("memory");
    let first = client.begin().expect("its turn");
    let second = server.receive(&first.send.expect("a message")).expect("it fits");
    let (Then::Receive(client), Then::Receive(server)) = (first.then, second.then) else {
        unreachable!("three messages")
    };
    let message = second.send.expect("a message");
    let [own] = client.secrets()[..] else { panic!("an ephemeral key, and no other yet") };
    let agree = |public: &[u8; 32]| Curve::Dalek.agree(&own, public).expect("an honest key");
    let name = Pattern::Xx.name().as_bytes().first_chunk().expect("as long as a hash");
    let [chain, _] = mixed(name, &agree(message.first_chunk().expect("a key")));
    let [chain, key] = mixed(&chain, &agree(theirs.public().as_bytes()));
    let mut its = server.secrets();
    assert!(its.len() == 2 && its.contains(&key), "an ephemeral key, and this one");
    let mut needles = vec![needle_of(&chain), needle_of(&own)];
    needles.extend(its.iter().map(needle_of));
    its.fill([0; 32]);
    ([client, server], needles)
}

#[test]
fn nothing_of_a_handshake_in_its_middle_lies_in_a_core_or_in_a_child() {
    let (ends, needles) = in_the_middle();
    sweep_stack();
    assert_eq!(count(&needles), 0, "secrets in memory that is dumped");
    for (at, needle) in needles.iter().enumerate() {
        let is_there = count_in(Where::Anywhere, std::slice::from_ref(needle)) > 0;
        assert!(is_there, "the ends that wait have secret {at}, in pages of their own");
    }
    let code = in_a_child(|| count_in(Where::Anywhere, &needles) as i32);
    assert_eq!(code, 0, "secrets in a child");
    drop(ends);
    assert_eq!(count_in(Where::Anywhere, &needles), 0, "nothing is left of a dropped one");
}
