use std::{os::fd::AsFd, sync::Arc, thread};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::*;
use crate::{
    Geometry, ServiceId,
    board::OwnBoard,
    channel::{Parts, greeting::greeting},
    control::{
        Bond, Introduction,
        closer::{Closer, PeerSocket},
        name_hash,
    },
    frame::Sender,
    lane,
    life::Roll,
    session::{Pattern, PublicKey, StaticKey},
    wait::spin::Spin,
};

/// What both ends are told of whom the session is bound to.
fn bond() -> Bond {
    Bond { epoch: 3, is_known: true, opener: name_hash("api"), dest: name_hash("storage") }
}

fn introduction(peer_key: PublicKey) -> Introduction {
    Introduction {
        channel: 5 << 32 | 1,
        session: 7,
        start_ns: clock::now_ns(),
        asymmetric: false,
        peer: ServiceId::new(2),
        peer_name: ServiceId::NONE,
        peer_pid: std::process::id(),
        peer_uid: 0,
        dest: ServiceId::new(3),
        dest_name: ServiceId::new(4),
        geometry: Geometry::default(),
        permissions: u64::MAX,
        opener: ServiceId::new(2),
        encrypted: true,
        peer_key: *peer_key.as_bytes(),
        bond: bond(),
    }
}

/// Both ends of a channel, client first, each with a key and with that which it was told of the
/// other.
fn ends(keys: [&Arc<StaticKey>; 2], told: [PublicKey; 2]) -> [Channel; 2] {
    introduced(keys, &told.map(introduction), false)
}

/// The same, as each was introduced to the other; `has_met` is what the client remembers.
fn introduced(
    keys: [&Arc<StaticKey>; 2],
    introductions: &[Introduction; 2],
    has_met: bool,
) -> [Channel; 2] {
    let geometry = Geometry::default();
    let roll = Arc::new(Roll::default());
    roll.keep().expect("a list");
    let lanes = [0, 1].map(|_| {
        let (own, fd) = lane::create(geometry).expect("a lane");
        let read = lane::map_peer(fd.as_fd(), geometry).expect("verified");
        (own, read)
    });
    let bells = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
    let mut bells = <[_; 2]>::from(bells.expect("a pair")).into_iter();
    // Of its own lane both know that it lives before either looks at the other's.
    let entries = [0, 1].map(|end: usize| roll.enter(&lanes[end].0).expect("alive"));
    let mut entries = entries.into_iter();
    [Sender::Client, Sender::Server].map(|role| {
        let end = role as usize;
        let introduction = introductions[end];
        let closer = Closer::new().expect("a descriptor");
        Channel::new(Parts {
            introduction,
            role,
            own: Arc::clone(&lanes[end].0),
            peer: Arc::clone(&lanes[1 - end].1),
            entry: entries.next().expect("two"),
            bell: PeerSocket::new(bells.next().expect("two"), &closer),
            closer,
            max_payload: 1 << 20,
            max_bulk: 0,
            spin: Spin::Never,
            seat: Arc::new(OwnBoard::default()).seat(&introduction, role),
            greeting: greeting(&introduction, role, keys[end], has_met, 1 << 24).expect("keys"),
        })
    })
}

fn take(end: &Channel) -> Result<Taken, PeerCorrupt> {
    let mut rx = end.rx.claim();
    while !rx.is_ready() {
        thread::yield_now();
    }
    rx.take(Ring::Ordinary, 1 << 20).map(|it| it.expect("it is there"))
}

/// Has both greet; `alter` has a look at the client's first message on its way. Gives what either
/// says.
fn greet(
    ends: &[Channel; 2],
    alter: impl Fn(&mut Vec<u8>),
) -> (Result<(), NodeError>, Result<(), PeerCorrupt>) {
    greet_at(ends, |turn, message| {
        if turn == 0 {
            alter(message);
        }
    })
}

/// The same; `alter` sees every message of the client, with its number.
fn greet_at(
    [client, server]: &[Channel; 2],
    alter: impl Fn(usize, &mut Vec<u8>),
) -> (Result<(), NodeError>, Result<(), PeerCorrupt>) {
    thread::scope(|scope| {
        let greeting = scope.spawn(|| client.greet());
        let mut heard = Ok(());
        for turn in 0.. {
            let is_due = || server.rx.claim().is_ready() || greeting.is_finished();
            wait_until(is_due);
            if heard.is_err() || server.session().is_some() || !server.rx.claim().is_ready() {
                break;
            }
            let Ok(Taken::Hello(mut message)) = take(server) else { panic!("a greeting") };
            alter(turn, &mut message);
            heard = server.greeted(&mut server.rx.claim(), &message);
            if let Err(lie) = heard {
                server.end(Fate::Poisoned(lie));
            }
        }
        (greeting.join().expect("no panic"), heard)
    })
}

fn wait_until(is_due: impl Fn() -> bool) {
    while !is_due() {
        thread::yield_now();
    }
}

fn keys() -> [Arc<StaticKey>; 2] {
    [0, 1].map(|_| Arc::new(StaticKey::generate().expect("random")))
}

#[test]
fn after_the_handshake_frames_of_every_length_are_sealed_both_ways() {
    let [a, b] = &keys();
    let ends = ends([a, b], [b.public(), a.public()]);
    let (greeted, served) = greet(&ends, |_| {});
    greeted.expect("both hold their keys");
    served.expect("both hold their keys");
    for (from, to, kind) in [(0, 1, Kind::Request), (1, 0, Kind::Response)] {
        for length in [0, 1, 32, 33, 64, 65, 1000] {
            let payload = vec![length as u8; length];
            let label = Label::new(kind, 2).with_id(9);
            ends[from].tx.claim().push(label, &payload, &mut 0).expect("room");
            let Ok(Taken::Whole(frame, 0)) = take(&ends[to]) else { panic!("{length} bytes") };
            assert_eq!(frame.head.length as usize, length);
            assert_eq!(ends[to].rx.claim().buffer[..length], payload);
        }
    }
}

#[test]
fn who_has_another_key_than_the_runtime_said_is_refused_at_either_end() {
    let [a, b] = &keys();
    let [stranger, _] = &keys();
    for (held, told) in
        [([stranger, b], [b.public(), a.public()]), ([a, stranger], [b.public(), a.public()])]
    {
        let ends = ends(held, told);
        let (greeted, served) = greet(&ends, |_| {});
        assert!(matches!(greeted, Err(NodeError::Refused(Status::AUTH))), "{greeted:?}");
        assert_eq!(served, Err(PeerCorrupt::Handshake));
    }
}

#[test]
fn a_greeting_that_was_altered_or_cut_short_is_refused() {
    let [a, b] = &keys();
    let alterations: [fn(&mut Vec<u8>); 4] =
        [|it| it[0] ^= 1, |it| it[40] ^= 128, |it| it.truncate(20), Vec::clear];
    for alter in alterations {
        let ends = ends([a, b], [b.public(), a.public()]);
        let (greeted, served) = greet(&ends, alter);
        assert!(matches!(greeted, Err(NodeError::Refused(Status::AUTH))), "{greeted:?}");
        assert_eq!(served, Err(PeerCorrupt::Handshake));
    }
}

#[test]
fn nothing_comes_before_the_handshake_and_no_second_one_after_it() {
    let [a, b] = &keys();
    let [client, server] = &ends([a, b], [b.public(), a.public()]);
    let request = Label::new(Kind::Request, 2).with_id(9);
    client.tx.claim().push(request, b"in plain", &mut 0).expect("room");
    assert_eq!(take(server).map(drop), Err(PeerCorrupt::Handshake));
    let ends = ends([a, b], [b.public(), a.public()]);
    greet(&ends, |_| {}).0.expect("both hold their keys");
    let again = Label::new(Kind::Hello, HELLO_LEVEL);
    ends[0].tx.claim().push(again, b"hello", &mut 0).expect("room");
    assert_eq!(take(&ends[1]).map(drop), Err(PeerCorrupt::Kind));
}

#[test]
fn an_end_whose_peer_has_no_key_is_not_made() {
    let [a, _] = &keys();
    let it = Introduction { peer_key: [0; 32], ..introduction(a.public()) };
    let refused = greeting(&it, Sender::Client, a, false, 1).map(drop);
    assert!(matches!(refused, Err(NodeError::Refused(Status::AUTH))), "{refused:?}");
    let plain = Introduction { encrypted: false, ..it };
    assert!(greeting(&plain, Sender::Client, a, false, 1).expect("no handshake").is_none());
}

/// Which pattern a pair took, at both ends alike.
fn pattern(ends: &[Channel; 2]) -> Pattern {
    let [client, server] = ends.each_ref().map(|it| it.session().expect("sealed"));
    assert_eq!((client.pattern, client.fingerprint), (server.pattern, server.fingerprint));
    client.pattern
}

#[test]
fn a_newcomer_takes_xx_who_comes_back_ik_and_who_is_known_kk() {
    let [a, b] = &keys();
    for (is_known, has_met, expected) in [
        (true, false, Pattern::Kk),
        (true, true, Pattern::Kk),
        (false, false, Pattern::Xx),
        (false, true, Pattern::Ik),
    ] {
        let told = [b, a].map(|key| {
            let bond = Bond { is_known, ..bond() };
            Introduction { bond, ..introduction(key.public()) }
        });
        let ends = introduced([a, b], &told, has_met);
        let (greeted, served) = greet(&ends, |_| {});
        greeted.expect("both hold their keys");
        served.expect("both hold their keys");
        assert_eq!(pattern(&ends), expected);
        for (from, to) in [(0, 1), (1, 0)] {
            for priority in [0, 2] {
                let kind = [Kind::Request, Kind::Response][from];
                let label = Label::new(kind, priority).with_id(9);
                ends[from].tx.claim().push(label, b"sealed", &mut 0).expect("room");
                let ring = ring_of(priority);
                let taken = ends[to].rx.claim().take(ring, 1 << 20);
                assert!(matches!(taken, Ok(Some(Taken::Whole(..)))), "{taken:?}");
            }
        }
    }
}

#[test]
fn ends_that_were_told_different_things_have_no_session() {
    let [a, b] = &keys();
    let alterations: [fn(&mut Introduction); 8] = [
        |it| it.channel += 1,
        |it| it.dest = ServiceId::new(77),
        |it| it.opener = ServiceId::new(77),
        |it| it.bond.epoch += 1,
        |it| it.bond.opener = name_hash("another"),
        |it| it.bond.dest = name_hash("another"),
        |it| it.bond.is_known = !it.bond.is_known,
        |it| it.peer_key[3] ^= 1,
    ];
    for is_known in [true, false] {
        for has_met in [false, true] {
            for (number, alter) in alterations.into_iter().enumerate() {
                for end in 0..2 {
                    let mut told = [b, a].map(|key| {
                        let bond = Bond { is_known, ..bond() };
                        Introduction { bond, ..introduction(key.public()) }
                    });
                    alter(&mut told[end]);
                    let ends = introduced([a, b], &told, has_met);
                    let (greeted, _) = greet(&ends, |_| {});
                    let is_refused = matches!(greeted, Err(NodeError::Refused(Status::AUTH)));
                    assert!(is_refused, "{number} at {end}: {greeted:?}");
                    assert!(ends[0].session().is_none(), "{number} at {end}");
                }
            }
        }
    }
}

#[test]
fn any_message_of_any_pattern_that_was_altered_is_refused() {
    let [a, b] = &keys();
    for (is_known, has_met, messages) in [(true, false, 1), (false, false, 2), (false, true, 1)] {
        for turn in 0..messages {
            for place in [0, 1, 20, 33, 60] {
                let told = [b, a].map(|key| {
                    let bond = Bond { is_known, ..bond() };
                    Introduction { bond, ..introduction(key.public()) }
                });
                let ends = introduced([a, b], &told, has_met);
                let (greeted, served) = greet_at(&ends, |at, message| {
                    if at == turn {
                        let place = place.min(message.len() - 1);
                        message[place] ^= 1;
                    }
                });
                assert!(matches!(greeted, Err(NodeError::Refused(Status::AUTH))), "{greeted:?}");
                // The first of XX proves nothing yet: its answer fits no more.
                let is_bare = messages == 2 && turn == 0 && place > 0;
                assert_eq!(served.is_err(), !is_bare, "{place} of {turn}");
                assert!(ends.iter().all(|it| it.session().is_none()));
            }
        }
    }
}

/// A pair whose session stands.
fn sealed_pair() -> [Channel; 2] {
    let [a, b] = &keys();
    let ends = ends([a, b], [b.public(), a.public()]);
    greet(&ends, |_| {}).0.expect("both hold their keys");
    ends
}

/// Takes all that is there, at an end whose peer has closed its own; gives how the channel stands.
fn fate_of(end: &Channel) -> Fate {
    end.check_life();
    let mut rx = end.rx.claim();
    for ring in [Ring::Urgent, Ring::Ordinary] {
        while let Ok(Some(_)) = rx.take(ring, 1 << 20) {}
    }
    end.judge_end(&rx);
    end.fate()
}

#[test]
fn who_closes_its_end_says_so_and_whatever_else_ends_it_is_a_cut() {
    for (closer, other) in [(0, 1), (1, 0)] {
        let kind = [Kind::OneWay, Kind::Response][closer];
        let full = |end: &Channel, level| {
            let label = Label::new(kind, level).with_id(9);
            while end.tx.claim().push(label, b"sealed", &mut 0).is_ok() {}
        };
        // In order, with nothing and with as much as there is room for under way.
        let ends = sealed_pair();
        ends[closer].end(Fate::Closed);
        assert_eq!(fate_of(&ends[other]), Fate::Closed);
        let ends = sealed_pair();
        (0..=2).step_by(2).for_each(|level| full(&ends[closer], level));
        ends[closer].end(Fate::Closed);
        assert_eq!(fate_of(&ends[other]), Fate::Closed);
        // The other end closes later, and that is no cut either.
        ends[other].end(Fate::Closed);
        assert_eq!(fate_of(&ends[closer]), Fate::Closed);
        // Somebody else writes that it is closed; or it has caught the other in a lie.
        let ends = sealed_pair();
        ends[closer].entry.as_ref().expect("a life word").close();
        assert_eq!(fate_of(&ends[other]), Fate::Poisoned(PeerCorrupt::Cut));
        let ends = sealed_pair();
        ends[closer].end(Fate::Poisoned(PeerCorrupt::Record));
        assert_eq!(fate_of(&ends[other]), Fate::Poisoned(PeerCorrupt::Cut));
    }
}

#[test]
fn a_close_is_believed_only_when_all_before_it_has_come() {
    let [client, server] = &sealed_pair();
    let label = Label::new(Kind::OneWay, 2).with_id(9);
    client.tx.claim().push(label, b"sealed", &mut 0).expect("room");
    client.end(Fate::Closed);
    server.check_life();
    let mut rx = server.rx.claim();
    // Its last word, and not the message before it.
    assert!(matches!(rx.take(Ring::Urgent, 1 << 20), Ok(Some(Taken::Fragment))));
    server.judge_end(&rx);
    assert_eq!(server.fate(), Fate::Poisoned(PeerCorrupt::Cut));
}

#[test]
fn a_plain_channel_knows_no_last_word() {
    let [a, b] = &keys();
    let told = [b, a].map(|key| Introduction { encrypted: false, ..introduction(key.public()) });
    let [client, server] = &introduced([a, b], &told, false);
    let close = Label::new(Kind::Close, 0);
    client.tx.claim().push(close, &[0; 8], &mut 0).expect("room");
    assert!(matches!(server.rx.claim().take(Ring::Urgent, 1 << 20), Err(PeerCorrupt::Kind)));
    client.entry.as_ref().expect("a life word").close();
    server.check_life();
    server.judge_end(&server.rx.claim());
    assert_eq!(server.fate(), Fate::Closed);
}

/// A relay that stands between two ends which were introduced to it, one as the other.
fn relayed(keys: [&Arc<StaticKey>; 3], told: [PublicKey; 2], is_known: bool) -> [bool; 2] {
    let [a, b, relay] = keys;
    let met = |ends: &[Channel; 2]| {
        let (greeted, served) = greet(ends, |_| {});
        greeted.is_ok() && served.is_ok()
    };
    let bond = Bond { is_known, ..bond() };
    let it = |key| Introduction { bond, ..introduction(key) };
    let with_client = introduced([a, relay], &[it(told[0]), it(a.public())], false);
    let with_server = introduced([relay, b], &[it(b.public()), it(told[1])], false);
    let met = [met(&with_client), met(&with_server)];
    if met == [true, true] {
        let [one, other] =
            [&with_client, &with_server].map(|it| it[0].session().expect("sealed").fingerprint);
        assert_ne!(one, other, "who compares fingerprints finds it");
    }
    met
}

#[test]
fn a_man_in_the_middle_has_no_session_with_either_unless_the_runtime_lies_for_it() {
    let ([a, b], [relay, _]) = (&keys(), &keys());
    for is_known in [true, false] {
        // It swaps keys, and the runtime told the right ones.
        let honest = [b.public(), a.public()];
        assert_eq!(relayed([a, b, relay], honest, is_known), [false; 2]);
        // It is the runtime: then only the fingerprints tell, or a key that was expected.
        assert_eq!(relayed([a, b, relay], [relay.public(); 2], is_known), [true; 2]);
    }
}
