use super::*;
use crate::session::vault::in_a_child;

const BINDING: Binding<'static> = Binding {
    client: "api",
    service: "storage",
    client_id: 7,
    service_id: 9,
    epoch: 3,
    channel: 12,
};

struct Keys {
    client: StaticKey,
    server: StaticKey,
}

fn keys() -> Keys {
    let key = || StaticKey::generate().expect("random");
    Keys { client: key(), server: key() }
}

fn client(pattern: Pattern, keys: &Keys, binding: &Binding<'_>) -> Handshake {
    Handshake::client(pattern, &keys.client, Some(keys.server.public()), binding).expect("memory")
}

fn server(pattern: Pattern, keys: &Keys, binding: &Binding<'_>) -> Handshake {
    Handshake::server(pattern, &keys.server, Some(keys.client.public()), binding).expect("memory")
}

/// Carries the messages, after `change` had its way with each, until both ends are done or one has
/// failed.
fn run(
    client: Handshake,
    server: Handshake,
    mut change: impl FnMut(usize, &mut Vec<u8>),
) -> Result<[Box<SecureChannel>; 2], HandshakeError> {
    let mut waiting = Some(server);
    let mut step = client.begin()?;
    let mut done = [None, None];
    for number in 0.. {
        let message = step.send.take();
        match step.then {
            Then::Receive(handshake) => {
                let mut message = message.expect("or it would wait forever");
                change(number, &mut message);
                let receiver = waiting.replace(handshake).expect("both wait");
                step = receiver.receive(&message)?;
            }
            Then::Done(channel) => {
                done[number % 2] = Some(channel);
                let Some(mut message) = message else { break };
                change(number, &mut message);
                let receiver = waiting.take().expect("it waits");
                step = receiver.receive(&message)?;
            }
        }
    }
    let [client, server] = done;
    Ok([client.expect("done"), server.expect("done")])
}

fn both(pattern: Pattern, keys: &Keys) -> [Box<SecureChannel>; 2] {
    run(client(pattern, keys, &BINDING), server(pattern, keys, &BINDING), |_, _| {})
        .expect("honest")
}

#[test]
fn every_pattern_makes_a_session_that_both_ends_agree_on() {
    for pattern in Pattern::ALL {
        let keys = keys();
        let [mut client, mut server] = both(pattern, &keys);
        assert_eq!((client.peer(), server.peer()), (keys.server.public(), keys.client.public()));
        assert_eq!(client.facts().fingerprint, server.facts().fingerprint);
        for n in 0..40_u8 {
            let there = client.encrypt(&[n; 33], 0).expect("here");
            assert_eq!(server.decrypt(&there, 0), Ok(vec![n; 33]));
            let back = server.encrypt(&[n; 200], 0).expect("here");
            assert_eq!(client.decrypt(&back, 0), Ok(vec![n; 200]));
        }
        let own = client.encrypt(b"mine", 0).expect("here");
        assert!(client.decrypt(&own, 0).is_err(), "it goes the other way");
        let facts = server.facts();
        assert_eq!((facts.sealed, facts.received, facts.refused), (40, 40, 0));
        assert_eq!((facts.pattern, client.facts().refused), (pattern, 1));
    }
}

#[test]
fn no_two_sessions_are_alike() {
    let keys = keys();
    let [[mut one, _], [_, mut other]] = [both(Pattern::Kk, &keys), both(Pattern::Kk, &keys)];
    assert_ne!(one.facts().fingerprint, other.facts().fingerprint);
    let sealed = one.encrypt(b"of one", 0).expect("here");
    assert_eq!(other.decrypt(&sealed, 0), Err(crate::session::RecordError::Altered));
}

#[test]
fn ends_that_mean_another_channel_do_not_meet() {
    let others = [
        Binding { client: "apis", ..BINDING },
        Binding { client: "apistorage", service: "", ..BINDING },
        Binding { service: "storage2", ..BINDING },
        Binding { client_id: 8, ..BINDING },
        Binding { service_id: 8, ..BINDING },
        Binding { epoch: 2, ..BINDING },
        Binding { channel: 13, ..BINDING },
    ];
    for pattern in Pattern::ALL {
        let keys = keys();
        for other in &others {
            let outcome =
                run(client(pattern, &keys, &BINDING), server(pattern, &keys, other), |_, _| {});
            assert!(matches!(outcome, Err(HandshakeError::Refused)), "{pattern:?} {other:?}");
        }
    }
}

#[test]
fn every_flip_of_one_bit_ends_a_handshake() {
    for pattern in Pattern::ALL {
        let keys = keys();
        let mut lengths = Vec::new();
        let length_of = |_: usize, message: &mut Vec<u8>| lengths.push(message.len());
        run(client(pattern, &keys, &BINDING), server(pattern, &keys, &BINDING), length_of)
            .expect("honest");
        for (at, length) in lengths.into_iter().enumerate() {
            // Each byte, and each bit of some of them.
            for bit in (0..8 * length).step_by(5) {
                let flip = |number, message: &mut Vec<u8>| {
                    if number == at {
                        message[bit / 8] ^= 1 << (bit % 8);
                    }
                };
                let ends =
                    run(client(pattern, &keys, &BINDING), server(pattern, &keys, &BINDING), flip);
                assert!(
                    matches!(ends, Err(HandshakeError::Refused)),
                    "{pattern:?}: message {at}, bit {bit}"
                );
            }
        }
    }
}

#[test]
fn messages_that_are_cut_or_grown_end_a_handshake() {
    for pattern in Pattern::ALL {
        for by in [-1_isize, 1, -100, 70_000] {
            let keys = keys();
            let resize = |_: usize, message: &mut Vec<u8>| {
                let length = message.len().saturating_add_signed(by);
                message.resize(length, 0);
            };
            let ends =
                run(client(pattern, &keys, &BINDING), server(pattern, &keys, &BINDING), resize);
            assert!(matches!(ends, Err(HandshakeError::Refused)), "{pattern:?} {by}");
        }
    }
}

/// One in the middle, with a key of its own, who shakes hands with both ends.
fn meet_in_the_middle(
    pattern: Pattern,
    expects: bool,
) -> (Result<(), HandshakeError>, Result<(), HandshakeError>) {
    let keys = keys();
    let middle = StaticKey::generate().expect("random");
    let known = |key: PublicKey| Some(key).filter(|_| expects);
    let to_server = || {
        let its = Handshake::client(pattern, &middle, Some(keys.server.public()), &BINDING);
        let end = Handshake::server(pattern, &keys.server, known(keys.client.public()), &BINDING)?;
        run(its?, end, |_, _| {}).map(drop)
    };
    let to_client = || {
        let end = Handshake::client(pattern, &keys.client, known(keys.server.public()), &BINDING)?;
        let its = Handshake::server(pattern, &middle, Some(keys.client.public()), &BINDING);
        run(end, its?, |_, _| {}).map(drop)
    };
    (to_client(), to_server())
}

#[test]
fn one_in_the_middle_who_swaps_keys_is_found_out() {
    for pattern in Pattern::ALL {
        let (client, server) = meet_in_the_middle(pattern, true);
        let is_found = |end: &Result<(), _>| {
            matches!(end, Err(HandshakeError::Refused | HandshakeError::Impostor { .. }))
        };
        assert!(is_found(&client), "{pattern:?}: {client:?}");
        assert!(is_found(&server), "{pattern:?}: {server:?}");
    }
    // Who expects nobody in particular meets whoever it is, and can ask who that was.
    let (client, server) = meet_in_the_middle(Pattern::Xx, false);
    assert!(client.is_ok() && server.is_ok());
}

#[test]
fn an_old_message_opens_no_new_session() {
    for pattern in Pattern::ALL {
        let keys = keys();
        let mut heard = Vec::new();
        let listen = |_: usize, message: &mut Vec<u8>| heard.push(message.clone());
        run(client(pattern, &keys, &BINDING), server(pattern, &keys, &BINDING), listen)
            .expect("honest");
        for (at, old) in heard.iter().enumerate() {
            let replay = |number, message: &mut Vec<u8>| {
                if number == at {
                    message.clone_from(old);
                }
            };
            let ends =
                run(client(pattern, &keys, &BINDING), server(pattern, &keys, &BINDING), replay);
            assert!(ends.is_err(), "{pattern:?}: message {at}");
        }
        // All that the client ever said, to a server that begins anew.
        let step = server(pattern, &keys, &BINDING).receive(&heard[0]).expect("a first message");
        match step.then {
            Then::Receive(server) => assert!(server.receive(&heard[2]).is_err()),
            // The session stands, with whom it cannot tell yet: what was heard does not open, and
            // who replays has no key to seal anything with.
            Then::Done(mut channel) => {
                let [mut other, _] = both(pattern, &keys);
                let sealed = other.encrypt(b"old", 0).expect("here");
                assert!(channel.decrypt(&sealed, 0).is_err());
            }
        }
    }
}

#[test]
fn a_handshake_that_is_left_in_the_middle_leaves_nothing_behind() {
    for pattern in Pattern::ALL {
        let keys = keys();
        let first = client(pattern, &keys, &BINDING).begin().expect("its turn");
        let message = first.send.clone().expect("a message");
        drop(first);
        // The server answers to nobody; the same end comes back with a new handshake.
        let answered = server(pattern, &keys, &BINDING).receive(&message).expect("it fits");
        let Then::Receive(anew) = client(pattern, &keys, &BINDING).begin().expect("begun").then
        else {
            panic!("it waits")
        };
        assert!(anew.receive(&answered.send.expect("a message")).is_err(), "of another handshake");
        both(pattern, &keys);
    }
}

#[test]
fn points_of_low_order_are_refused() {
    let keys = keys();
    for point in [[0; 32], std::array::from_fn(|at| u8::from(at == 0))] {
        let low = |number, message: &mut Vec<u8>| {
            if number == 0 {
                message[..32].copy_from_slice(&point);
            }
        };
        for pattern in Pattern::ALL {
            let ends = run(client(pattern, &keys, &BINDING), server(pattern, &keys, &BINDING), low);
            assert!(matches!(ends, Err(HandshakeError::Refused)));
        }
        let known = Some(PublicKey::from_bytes(point));
        let kk = Handshake::client(Pattern::Kk, &keys.client, known, &BINDING).expect("unchecked");
        assert!(matches!(kk.begin(), Err(HandshakeError::Refused)));
    }
}

#[test]
fn out_of_turn_and_without_a_key_nothing_is_done() {
    let keys = keys();
    let xx = || server(Pattern::Xx, &keys, &BINDING);
    assert!(matches!(xx().begin(), Err(HandshakeError::Turn)));
    let begun = client(Pattern::Xx, &keys, &BINDING);
    assert!(matches!(begun.receive(b"early"), Err(HandshakeError::Turn)));
    for (pattern, needs) in [(Pattern::Kk, true), (Pattern::Ik, true), (Pattern::Xx, false)] {
        let end = Handshake::client(pattern, &keys.client, None, &BINDING);
        assert_eq!(matches!(end, Err(HandshakeError::NoKey)), needs);
    }
    let ik = Handshake::server(Pattern::Ik, &keys.server, None, &BINDING);
    assert!(ik.is_ok(), "it learns the key");
}

#[test]
fn a_forked_child_has_neither_key_nor_handshake() {
    let keys = keys();
    let begun = client(Pattern::Xx, &keys, &BINDING);
    let code = in_a_child(|| {
        let anew = Handshake::client(Pattern::Xx, &keys.client, None, &BINDING);
        let is_right = matches!(anew, Err(HandshakeError::Forked))
            && matches!(begun.begin(), Err(HandshakeError::Forked));
        i32::from(!is_right)
    });
    assert_eq!(code, 0);
}

#[test]
fn what_is_shown_of_a_session_is_no_key() {
    let keys = keys();
    let [client, _] = both(Pattern::Ik, &keys);
    let shown = format!("{client:?} {:?}", server(Pattern::Ik, &keys, &BINDING));
    assert!(shown.contains(&keys.server.public().to_string()), "{shown}");
    assert!(!shown.contains("sealer") && !shown.contains("state"), "{shown}");
}
