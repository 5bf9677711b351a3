//! Requests to the runtime that are made within a trace: the context stands between head and
//! fields.

use std::borrow::Cow;

use super::{HEAD, MAX_PACKET};
use crate::{layout::EXTENSION, trace::Context};

/// In the verb of a packet with a context.
const TRACED: u16 = 0x8000;

/// Puts a context into a packet; leaves one that has no room for it as it is.
pub(crate) fn with_context(mut packet: Vec<u8>, context: Context) -> Vec<u8> {
    if packet.len() + EXTENSION > MAX_PACKET {
        return packet;
    }
    if let (Some(verb), true) = (verb(&packet), packet.len() >= HEAD) {
        packet[2..4].copy_from_slice(&(verb | TRACED).to_le_bytes());
        packet.splice(HEAD..HEAD, context.to_bytes());
    }
    packet
}

/// Takes the context out of a packet that has one. What is too short for the one that it announces
/// stays as it is, and has a verb that nobody knows.
pub fn take_context(packet: &[u8]) -> (Option<Context>, Cow<'_, [u8]>) {
    let traced = verb(packet).filter(|verb| verb & TRACED != 0);
    let (Some(verb), Some(fields)) = (traced, packet.get(HEAD + EXTENSION..)) else {
        return (None, Cow::Borrowed(packet));
    };
    let mut plain = packet[..HEAD].to_vec();
    plain[2..4].copy_from_slice(&(verb & !TRACED).to_le_bytes());
    plain.extend_from_slice(fields);
    (Context::from_bytes(&packet[HEAD..HEAD + EXTENSION]), Cow::Owned(plain))
}

fn verb(packet: &[u8]) -> Option<u16> {
    Some(u16::from_le_bytes(*packet.get(2..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::{Request, decode_request, encode_request};

    #[test]
    fn a_packet_and_its_context_are_told_apart_again() {
        let request = Request::Discover { name: "echo".to_owned() };
        let (plain, context) = (encode_request(7, &request), Context::root());
        let traced = with_context(plain.clone(), context);
        assert!(decode_request(&traced).is_err(), "who does not know of contexts refuses it");
        assert_eq!(take_context(&traced), (Some(context), Cow::Borrowed(&plain[..])));
        assert_eq!(take_context(&plain), (None, Cow::Borrowed(&plain[..])));
        let long = Request::Command { text: "x".repeat(MAX_PACKET - HEAD - 20) };
        let long = encode_request(7, &long);
        assert_eq!(with_context(long.clone(), context), long, "there is no room");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_taken_apart(packet in prop::collection::vec(any::<u8>(), 0..100)) {
            let (context, plain) = take_context(&packet);
            prop_assert!(context.is_none() || plain.len() + EXTENSION == packet.len());
        }
    }
}
