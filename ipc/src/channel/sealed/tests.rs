use std::{os::fd::AsFd, sync::Arc, thread};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::*;
use crate::{
    Geometry, ServiceId,
    board::OwnBoard,
    channel::Parts,
    control::closer::{Closer, PeerSocket},
    lane,
    life::Roll,
    wait::spin::Spin,
};

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
    }
}

/// Both ends of a channel, client first, each with a key and with that which it was told of the
/// other.
fn ends(keys: [&StaticKey; 2], told: [PublicKey; 2]) -> [Channel; 2] {
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
        let introduction = introduction(told[end]);
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
            greeting: greeting(&introduction, role, keys[end]).expect("keys"),
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

/// Has both greet; `alter` has a look at the client's message on its way. Gives what either says.
fn greet(
    [client, server]: &[Channel; 2],
    alter: fn(&mut Vec<u8>),
) -> (Result<(), NodeError>, Result<(), PeerCorrupt>) {
    thread::scope(|scope| {
        let greeting = scope.spawn(|| client.greet());
        let Ok(Taken::Hello(mut message)) = take(server) else { panic!("a greeting") };
        alter(&mut message);
        let heard = server.greeted(&mut server.rx.claim(), &message);
        if let Err(lie) = heard {
            server.end(Fate::Poisoned(lie));
        }
        (greeting.join().expect("no panic"), heard)
    })
}

fn keys() -> [StaticKey; 2] {
    [0, 1].map(|_| StaticKey::generate().expect("random"))
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
    let refused = greeting(&it, Sender::Client, a).map(drop);
    assert!(matches!(refused, Err(NodeError::Refused(Status::AUTH))), "{refused:?}");
    let plain = Introduction { encrypted: false, ..it };
    assert!(greeting(&plain, Sender::Client, a).expect("no handshake").is_none());
}
