use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_800_000_000;
const API: ServiceId = ServiceId::new(7);
const STORE: ServiceId = ServiceId::new(9);

fn key() -> TokenKey {
    TokenKey::from_seed(&[3; 32])
}

fn wanted() -> Wanted {
    let permissions = Operation::Call.bit() | Operation::Send.bit();
    Wanted { subject: API, audience: STORE, permissions, lifetime_ms: 60_000 }
}

fn token() -> AuthToken {
    issue(&key(), wanted(), Operation::MASK, NOW, [5; 16]).expect("allowed")
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits = hex.trim_matches('-').as_bytes();
    let pair = |it: &[u8]| u8::from_str_radix(std::str::from_utf8(it).expect("ASCII"), 16);
    digits.chunks(2).map(|it| pair(it).expect("hexadecimal")).collect()
}

#[test]
fn keys_and_signatures_are_those_of_rfc_8032() {
    let lines: Vec<Vec<u8>> = include_str!("rfc8032.txt")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(bytes_of)
        .collect();
    assert_eq!(lines.len(), 4 * 4);
    for vector in lines.chunks(4) {
        let seed: [u8; 32] = vector[0].as_slice().try_into().expect("32 bytes");
        let key = TokenKey::from_seed(&seed);
        assert_eq!(key.public().to_bytes().as_slice(), vector[1]);
        let signature = key.sign(&vector[2]).expect("not forked");
        assert_eq!(signature.as_slice(), vector[3]);
        assert!(key.public().holds(&vector[2], &signature));
    }
}

#[test]
fn the_bytes_are_those_of_the_c_struct() {
    let token = AuthToken {
        version: 0x0403_0201,
        subject: ServiceId::new(0x0807_0605),
        audience: ServiceId::new(0x0c0b_0a09),
        permissions: 0x1817_1615_1413_1211,
        expiry_time: 0x201f_1e1d_1c1b_1a19,
        nonce: std::array::from_fn(|at| 0x21 + at as u8),
        signature: std::array::from_fn(|at| 0x31 + at as u8),
    };
    let mut expected: [u8; TOKEN_BYTES] = std::array::from_fn(|at| at as u8 + 1);
    expected[12..16].fill(0);
    assert_eq!(token.to_bytes(), expected);
    assert_eq!(AuthToken::from_bytes(&expected), Ok(token));
    assert_eq!(AuthToken::from_bytes(&expected[1..]), Err(Refusal::Malformed));
}

#[test]
fn what_is_issued_is_what_was_asked_for_and_allowed() {
    let calls = Operation::Call.bit();
    let token = issue(&key(), wanted(), calls | Operation::Admin.bit(), NOW, [0; 16]);
    assert_eq!(token.map(|it| it.permissions), Ok(calls));
    let with = |change: fn(&mut Wanted)| {
        let mut wanted = wanted();
        change(&mut wanted);
        issue(&key(), wanted, calls, NOW, [0; 16]).map(|it| it.expiry_time - NOW)
    };
    assert_eq!(with(|it| it.permissions = Operation::Admin.bit()), Err(IssueError::Denied));
    assert_eq!(with(|it| it.permissions = 0), Err(IssueError::Invalid));
    assert_eq!(with(|it| it.permissions |= 1 << 6), Err(IssueError::Invalid));
    assert_eq!(with(|it| it.subject = ServiceId::NONE), Err(IssueError::Invalid));
    assert_eq!(with(|it| it.audience = ServiceId::NONE), Err(IssueError::Invalid));
    assert_eq!(with(|it| it.lifetime_ms = 0), Err(IssueError::Invalid));
    assert_eq!(with(|it| it.lifetime_ms = 1), Ok(1));
    assert_eq!(with(|it| it.lifetime_ms = 1001), Ok(2));
    assert_eq!(with(|it| it.lifetime_ms = u32::MAX), Ok(MOST_LIFETIME_S));
}

#[test]
fn a_token_counts_for_its_subject_with_its_audience_until_it_ends() {
    let (key, token) = (key().public(), token());
    let check =
        |presenter, audience: &[ServiceId], now_s| verify(&key, &token, presenter, audience, now_s);
    let ends = token.expiry_time;
    assert_eq!(check(API, &[STORE], NOW), Ok(token.permissions));
    assert_eq!(check(API, &[ServiceId::new(1), STORE], ends - 1), Ok(token.permissions));
    assert_eq!(check(STORE, &[STORE], NOW), Err(Refusal::Subject));
    assert_eq!(check(API, &[API], NOW), Err(Refusal::Audience));
    assert_eq!(check(API, &[], NOW), Err(Refusal::Audience));
    assert_eq!(check(API, &[STORE], ends), Err(Refusal::Expired));
    assert_eq!(check(API, &[STORE], u64::MAX), Err(Refusal::Expired));
    // The clock went back: at first it is no matter, and at last the token could live for ever.
    let earliest = ends - MOST_LIFETIME_S - SKEW_S;
    assert_eq!(check(API, &[STORE], earliest), Ok(token.permissions));
    assert_eq!(check(API, &[STORE], earliest - 1), Err(Refusal::TooFarAhead));
    assert_eq!(check(API, &[STORE], 0), Err(Refusal::TooFarAhead));
}

#[test]
fn any_flipped_bit_is_refused() {
    let (key, good) = (key().public(), token().to_bytes());
    let check = |bytes: &[u8]| {
        AuthToken::from_bytes(bytes).and_then(|it| verify(&key, &it, API, &[STORE], NOW))
    };
    assert!(check(&good).is_ok());
    for bit in 0..TOKEN_BYTES * 8 {
        let mut bytes = good;
        bytes[bit / 8] ^= 1 << (bit % 8);
        let expected = match bit / 8 {
            0..4 => Refusal::Version,
            12..16 => Refusal::Malformed,
            _ => Refusal::Signature,
        };
        assert_eq!(check(&bytes), Err(expected), "bit {bit}");
    }
}

#[test]
fn another_key_or_another_statement_does_not_hold() {
    let token = token();
    let other = TokenKey::from_seed(&[4; 32]).public();
    assert_eq!(verify(&other, &token, API, &[STORE], NOW), Err(Refusal::Signature));
    let statement = [&DOMAIN[..], &token.fields()].concat();
    assert!(key().public().holds(&statement, &token.signature), "what the contract says is signed");
    // The same fields signed bare, as another protocol might.
    let bare = AuthToken { signature: key().sign(&token.fields()).expect("not forked"), ..token };
    assert_eq!(verify(&key().public(), &bare, API, &[STORE], NOW), Err(Refusal::Signature));
    // Under a point of small order every statement has a signature.
    let mut identity = [0; 32];
    identity[0] = 1;
    assert_eq!(PublicKey::from_bytes(&identity), Err(Refusal::Malformed));
    let again = PublicKey::from_bytes(&other.to_bytes());
    assert_eq!(again, Ok(other));
}

#[test]
fn the_order_of_the_group_added_to_a_signature_does_not_hold() {
    // Added to s it gives another s that solves the equation: malleability, which strictness ends.
    let order = bytes_of("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
    let mut token = token();
    let mut carry = 0;
    for (byte, add) in token.signature[32..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        (*byte, carry) = (sum as u8, sum >> 8);
    }
    assert_eq!(carry, 0);
    assert_eq!(verify(&key().public(), &token, API, &[STORE], NOW), Err(Refusal::Signature));
}

#[test]
fn a_key_is_made_once_for_its_owner_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    // What a crash left behind is not in the way.
    fs::write(directory.path().join("token.key.new"), b"torn").expect("writable");
    let first = TokenKey::open(directory.path()).expect("made");
    let again = TokenKey::open(directory.path()).expect("read");
    assert_eq!(first.public(), again.public());
    let path = directory.path().join("token.key");
    let found = fs::metadata(&path).expect("there");
    assert_eq!((found.mode() & 0o7777, found.len()), (0o600, 32));
    assert!(!directory.path().join("token.key.new").exists());
    let other = tempfile::tempdir().expect("a directory");
    assert_ne!(TokenKey::open(other.path()).expect("made").public(), first.public());
    let shown = format!("{first:?}");
    let seed = fs::read(&path).expect("ours");
    assert!(!shown.contains(&format!("{seed:?}")), "{shown}");
}

#[test]
fn a_key_that_others_may_know_or_that_is_none_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(TokenKey::open(directory.path()).expect("made"));
    let path = directory.path().join("token.key");
    let open = || TokenKey::open(directory.path());
    fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("ours");
    assert!(matches!(open(), Err(KeyError::Exposed { .. })));
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("ours");
    assert!(open().is_ok());
    fs::hard_link(&path, directory.path().join("copy")).expect("ours");
    assert!(matches!(open(), Err(KeyError::Exposed { .. })));
    fs::remove_file(&path).expect("ours");
    std::os::unix::fs::symlink("copy", &path).expect("ours");
    assert!(matches!(open(), Err(KeyError::File { .. })));
    fs::remove_file(&path).expect("ours");
    fs::write(&path, [1; 31]).expect("ours");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("ours");
    assert!(matches!(open(), Err(KeyError::Damaged { .. })));
}

/// Reads the flags of the mapping that holds the key.
fn flags_of_the_page(key: &TokenKey) -> String {
    // Neighbours of the same flags are one mapping.
    let holds = |line: &&str| {
        let (from, to) = line.split(' ').next()?.split_once('-')?;
        let [from, to] = [from, to].map(|it| usize::from_str_radix(it, 16));
        Some((from.ok()?..to.ok()?).contains(&key.page_address()))
    };
    let maps = fs::read_to_string("/proc/self/smaps").expect("ours");
    let mut lines = maps.lines().skip_while(|line| holds(line) != Some(true));
    let flags = lines.find(|line| line.starts_with("VmFlags:"));
    flags.expect("every mapping has flags").to_owned()
}

#[test]
fn the_page_of_a_key_is_in_no_core_and_no_child() {
    let flags = flags_of_the_page(&key());
    let has = |flag: &str| flags.split_whitespace().any(|it| it == flag);
    assert!(has("dd"), "kept out of cores: {flags}");
    assert!(has("dc"), "not copied to children: {flags}");
}

#[test]
fn a_forked_child_signs_nothing() {
    let mut key = key();
    key.fork();
    assert_eq!(issue(&key, wanted(), Operation::MASK, NOW, [0; 16]), Err(IssueError::Forked));
}

#[test]
fn nonces_differ() {
    assert_ne!(random_nonce(), random_nonce());
}

proptest! {
    #[test]
    fn whatever_is_issued_verifies_and_no_bit_of_it_may_change(
        subject in 1..=u32::MAX,
        audience in 1..=u32::MAX,
        permissions in 1..=Operation::MASK,
        lifetime_ms in 1..=u32::MAX,
        now_s in 0..u64::MAX / 2,
        nonce in any::<[u8; 16]>(),
        bit in 0..TOKEN_BYTES * 8,
    ) {
        let (subject, audience) = (ServiceId::new(subject), ServiceId::new(audience));
        let wanted = Wanted { subject, audience, permissions, lifetime_ms };
        let key = key();
        let token = issue(&key, wanted, Operation::MASK, now_s, nonce).expect("allowed");
        let mut bytes = token.to_bytes();
        let check = |bytes: &[u8]| AuthToken::from_bytes(bytes)
            .and_then(|it| verify(&key.public(), &it, subject, &[audience], now_s));
        prop_assert_eq!(check(&bytes), Ok(permissions));
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(check(&bytes).is_err());
    }

    #[test]
    fn random_bytes_are_no_token(mut bytes in any::<[u8; 32]>(), rest in any::<[u8; 80]>()) {
        bytes[..4].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].fill(0);
        let token = AuthToken::from_bytes(&[&bytes[..], &rest].concat()).expect("its shape");
        let (subject, audience) = (token.subject, [token.audience]);
        let found = verify(&key().public(), &token, subject, &audience, NOW);
        prop_assert_eq!(found, Err(Refusal::Signature));
    }
}
