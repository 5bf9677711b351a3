//! The primitives and the handshakes against other people's vectors: `tests/vectors/README.md`.

use serde_json::Value;
use snow::{Builder, HandshakeState, resolvers::CryptoResolver, types::Dh};

use super::{
    chacha::{BLOCKS, Backend, key_words},
    poly::Poly,
    resolver::Primitives,
    x25519::Curve,
};
use crate::frame;

const CACOPHONY: &str = include_str!("../../../tests/vectors/noise-cacophony.json");
const SNOW: &str = include_str!("../../../tests/vectors/noise-snow.json");
const AEAD: &str = include_str!("../../../tests/vectors/wycheproof-chacha20-poly1305.json");
const XDH: &str = include_str!("../../../tests/vectors/wycheproof-x25519.json");

fn hex(text: &str) -> Vec<u8> {
    let text: String = text.chars().filter(|it| !it.is_whitespace()).collect();
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal"))
        .collect()
}

fn field(it: &Value, name: &str) -> Vec<u8> {
    hex(it[name].as_str().unwrap_or_default())
}

fn tests(file: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(file).expect("JSON");
    let groups = file["testGroups"].as_array().expect("groups").clone();
    groups.iter().flat_map(|group| group["tests"].as_array().expect("tests").clone()).collect()
}

/// The AEAD of RFC 8439 in full generality, from our core and our Poly1305: ciphertext and tag.
fn seal(backend: Backend, key: &[u8], nonce: &[u8], head: &[u8], text: &[u8]) -> Vec<u8> {
    let key = key_words(key.try_into().expect("32 bytes"));
    let nonce: [u32; 3] = std::array::from_fn(|word| {
        u32::from_le_bytes(nonce[4 * word..4 * word + 4].try_into().expect("12 bytes"))
    });
    let pass = |from: usize| {
        let mut blocks = [[0; 8]; BLOCKS];
        let counters = std::array::from_fn(|lane| (from + lane) as u32);
        let [a, b, c] = nonce;
        backend.blocks(&key, &[counters, [a; BLOCKS], [b; BLOCKS], [c; BLOCKS]], &mut blocks);
        blocks
    };
    let stream = (0..=text.len() / 64 / BLOCKS + 1).flat_map(|n| pass(n * BLOCKS)).flatten();
    let stream: Vec<u8> = stream.flat_map(u64::to_le_bytes).collect();
    let mut sealed: Vec<u8> = text.iter().zip(&stream[64..]).map(|(a, b)| a ^ b).collect();
    let mut poly = Poly::new(frame::pack(&stream[..32]));
    for part in [head, &sealed] {
        part.chunks(16).for_each(|piece| poly.block(frame::pack(piece)));
    }
    poly.block([head.len() as u64, text.len() as u64]);
    sealed.extend(poly.tag().into_iter().flat_map(u64::to_le_bytes));
    sealed
}

#[test]
fn wycheproof_chacha20_poly1305() {
    let mut checked = 0;
    for it in tests(AEAD).iter().filter(|it| field(it, "iv").len() == 12) {
        let [key, nonce, head, text] = ["key", "iv", "aad", "msg"].map(|name| field(it, name));
        let expected = [field(it, "ct"), field(it, "tag")].concat();
        for backend in Backend::all() {
            let sealed = seal(backend, &key, &nonce, &head, &text);
            assert_eq!(sealed == expected, it["result"] == "valid", "{backend:?}: {it}");
        }
        checked += 1;
    }
    assert!(checked > 250, "{checked}");
}

fn by(curve: Curve) -> Primitives {
    Primitives::new(curve, None).expect("memory")
}

/// What two keys have in common, on which all agree.
fn agree(private: &[u8], public: &[u8]) -> Option<Vec<u8>> {
    let mut all = Curve::all().map(|curve| {
        let choice = snow::params::DHChoice::Curve25519;
        let mut own: Box<dyn Dh> = by(curve).resolve_dh(&choice).expect("X25519");
        own.set(private);
        let mut shared = vec![0; 32];
        own.dh(public, &mut shared).is_ok().then_some(shared)
    });
    let first = all.next().expect("at least one");
    assert!(all.all(|it| it == first), "they agree");
    first
}

#[test]
fn wycheproof_x25519() {
    let (mut agreed, mut refused) = (0, 0);
    for it in &tests(XDH) {
        let [public, private, shared] = ["public", "private", "shared"].map(|it_| field(it, it_));
        let got = agree(&private, &public);
        if shared == [0; 32] {
            assert_eq!(got, None, "of low order: {it}");
            refused += 1;
        } else {
            assert_eq!(got, Some(shared), "{it}");
            agreed += 1;
        }
    }
    assert!(agreed > 400 && refused > 20, "{agreed} {refused}");
}

#[test]
fn rfc_7748() {
    // 5.2, the first two.
    for (scalar, coordinate, expected) in [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ] {
        assert_eq!(agree(&hex(scalar), &hex(coordinate)), Some(hex(expected)));
    }
    // 6.1: Alice's private and Bob's public key, and the other way round.
    for (private, public) in [
        (
            "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
        ),
        (
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
        ),
    ] {
        let expected = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742";
        assert_eq!(agree(&hex(private), &hex(public)), Some(hex(expected)));
    }
}

#[test]
fn rfc_8439_2_8_2() {
    let text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for \
                 the future, sunscreen would be it.";
    let key: Vec<u8> = (0x80..0xA0).collect();
    let expected = hex("d31a8d34648e60db7b86afbc53ef7ec2 a4aded51296e08fea9e2b5a736ee62d6 \
         3dbea45e8ca9671282fafb69da92728b 1a71de0a9e060b2905d6a5b67ecd3b36 \
         92ddbd7f2d778b8c9803aee328091b58 fab324e4fad675945585808b4831d7bc \
         3ff4def08e4b7a9de576d26586cec64b 6116 1ae10b594f09e26a7e902ecbd0600691");
    for backend in Backend::all() {
        let nonce = hex("070000004041424344454647");
        let head = hex("50515253c0c1c2c3c4c5c6c7");
        assert_eq!(seal(backend, &key, &nonce, &head, text), expected, "{backend:?}");
    }
}

fn parties(it: &Value, curve: Curve) -> [HandshakeState; 2] {
    let [i, r] = ["init", "resp"].map(|who| {
        let get = |what: &str| field(it, &format!("{who}_{what}"));
        (get("static"), get("ephemeral"), get("prologue"))
    });
    let public = |private: &[u8]| {
        let choice = snow::params::DHChoice::Curve25519;
        let mut dh = by(curve).resolve_dh(&choice).expect("X25519");
        dh.set(private);
        dh.pubkey().to_vec()
    };
    let name = it["protocol_name"].as_str().expect("a name");
    let knows = |is_client| match &name[6..8] {
        "KK" => true,
        "IK" => is_client,
        _ => false,
    };
    [(&i, &r, true), (&r, &i, false)].map(|(own, other, is_client)| {
        let key = public(&other.0);
        let mut builder =
            Builder::with_resolver(name.parse().expect("a name"), Box::new(by(curve)))
                .fixed_ephemeral_key_for_testing_only(&own.1)
                .prologue(&own.2)
                .and_then(|builder| builder.local_private_key(&own.0))
                .expect("once each");
        if knows(is_client) {
            builder = builder.remote_public_key(&key).expect("once");
        }
        let built = if is_client { builder.build_initiator() } else { builder.build_responder() };
        built.expect("complete")
    })
}

#[test]
fn noise_vectors() {
    let mut names = std::collections::BTreeMap::new();
    for file in [CACOPHONY, SNOW] {
        let file: Value = serde_json::from_str(file).expect("JSON");
        for it in file["vectors"].as_array().expect("vectors") {
            Curve::all().for_each(|curve| check_noise(it, curve));
            *names.entry(it["protocol_name"].to_string()).or_insert(0) += 1;
        }
    }
    assert_eq!(names.into_values().collect::<Vec<_>>(), [2, 2, 2], "each pattern in both sets");
}

fn check_noise(it: &Value, curve: Curve) {
    let mut ends = parties(it, curve);
    let messages = it["messages"].as_array().expect("messages");
    let mut transport = None;
    let mut counts = [0_u64; 2];
    for (number, message) in messages.iter().enumerate() {
        let (payload, expected) = (field(message, "payload"), field(message, "ciphertext"));
        let is_from_client = number % 2 == 0;
        if let Some((from_client, from_server)) = transport {
            // After the split the keys are ours to use; the vectors authenticate nothing else.
            let key: [u8; 32] = if is_from_client { from_client } else { from_server };
            let count = &mut counts[number % 2];
            let mut nonce = vec![0; 4];
            nonce.extend(count.to_le_bytes());
            *count += 1;
            assert_eq!(seal(Backend::detect(), &key, &nonce, &[], &payload), expected);
            continue;
        }
        let [client, server] = &mut ends;
        let (sender, receiver) = if is_from_client { (client, server) } else { (server, client) };
        let (mut sent, mut got) = (vec![0; 1024], vec![0; 1024]);
        let length = sender.write_message(&payload, &mut sent).expect("its turn");
        assert_eq!(sent[..length], expected, "message {number} of {}", it["protocol_name"]);
        let length = receiver.read_message(&expected, &mut got).expect("it opens");
        assert_eq!(got[..length], payload);
        if ends.iter().all(HandshakeState::is_handshake_finished) {
            let hash = field(it, "handshake_hash");
            assert!(hash.is_empty() || ends.iter().all(|end| end.get_handshake_hash() == hash));
            transport = Some(ends[0].dangerously_get_raw_split());
            assert_eq!(transport, Some(ends[1].dangerously_get_raw_split()));
        }
    }
    assert!(transport.is_some() && counts[0] + counts[1] > 0, "the split was checked");
}
