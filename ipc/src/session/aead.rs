//! ChaCha20-Poly1305 (RFC 8439, 2.8) by the quickest way for each length: with keystream that was
//! made ahead, or by `ring`. Both give the same bytes.

use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    error::Unspecified,
};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use super::{
    chacha::Block,
    poly::{Half, Poly},
    vault::sweep_shallow,
};
use crate::frame;

/// Bytes of a tag.
pub(crate) const TAG: usize = 16;
/// Longest text that keystream made ahead serves: one block.
pub(crate) const SHORT: usize = 64;

/// What is authenticated beside the text: 32 bytes, as little-endian words.
pub(crate) type Head = [u64; 4];

/// The key of a pad, and one block of keystream: good for one record.
pub(crate) type Pad = [Block; 2];

/// Seals words of text with a pad: the first `length` bytes of `8 * N`; behind them the words must
/// be zero, and are so in the answer.
#[inline(always)]
pub(crate) fn seal_words<const N: usize>(
    pad: &Pad,
    head: &Head,
    text: [u64; N],
    length: usize,
) -> ([u64; N], Half) {
    let sealed = std::array::from_fn(|word| (text[word] ^ pad[1][word]) & mask(length, word));
    (sealed, tag(&pad[0], head, &sealed, length))
}

/// Opens what [`seal_words`] made. What lies behind `length` has to be zero, as it left it.
#[inline(always)]
pub(crate) fn open_words<const N: usize>(
    pad: &Pad,
    head: &Head,
    sealed: [u64; N],
    length: usize,
    alleged: Half,
) -> Option<[u64; N]> {
    let behind = (0..N).fold(0, |behind, word| behind | sealed[word] & !mask(length, word));
    let is_genuine = is_equal(tag(&pad[0], head, &sealed, length), alleged);
    (is_genuine && behind == 0)
        .then(|| std::array::from_fn(|word| (sealed[word] ^ pad[1][word]) & mask(length, word)))
}

/// The bytes of a word that lie before `length`.
#[inline(always)]
fn mask(length: usize, word: usize) -> u64 {
    match length.saturating_sub(8 * word) {
        0 => 0,
        bytes @ 1..8 => (1 << (8 * bytes)) - 1,
        _ => u64::MAX,
    }
}

/// The tag over head and ciphertext, whose words behind `length` are zero.
#[inline(always)]
fn tag<const N: usize>(zeroth: &Block, head: &Head, sealed: &[u64; N], length: usize) -> Half {
    let mut poly = begin(zeroth, head);
    let (blocks, _) = sealed.as_chunks::<2>();
    for block in &blocks[..length.div_ceil(16).min(N / 2)] {
        poly.block(*block);
    }
    end(poly, length)
}

#[inline(always)]
fn begin(zeroth: &Block, head: &Head) -> Poly {
    let mut poly = Poly::new([zeroth[0], zeroth[1], zeroth[2], zeroth[3]]);
    poly.block([head[0], head[1]]);
    poly.block([head[2], head[3]]);
    poly
}

#[inline(always)]
fn end(mut poly: Poly, length: usize) -> Half {
    poly.block([size_of::<Head>() as u64, length as u64]);
    poly.tag()
}

/// Compares in a time that depends on neither.
#[inline(always)]
fn is_equal(one: Half, other: Half) -> bool {
    one.ct_eq(&other).into()
}

/// One key, for texts of any length.
#[derive(Clone, Copy)]
pub(crate) struct Cipher<'a> {
    pub(crate) key: &'a [u32; 8],
}

impl Cipher<'_> {
    /// Seals a text of any length in place. `number` makes the nonce.
    pub(crate) fn seal(self, number: u64, head: &Head, text: &mut [u8]) -> Half {
        let tag = self.seal_by_library(number, head, text);
        sweep_shallow();
        tag
    }

    /// Opens a text in place, if it was sealed so; else what it is then means nothing.
    pub(crate) fn open(self, number: u64, head: &Head, text: &mut [u8], alleged: Half) -> bool {
        let is_open = self.open_by_library(number, head, text, alleged);
        sweep_shallow();
        is_open
    }

    #[inline(never)]
    fn seal_by_library(self, number: u64, head: &Head, text: &mut [u8]) -> Half {
        let sealed = self.library().and_then(|key| {
            key.seal_in_place_separate_tag(nonce(number), Aad::from(bytes(head)), text)
        });
        frame::pack(sealed.expect("far below ChaCha20's limit of 256 GiB").as_ref())
    }

    #[inline(never)]
    pub(super) fn open_by_library(
        self,
        number: u64,
        head: &Head,
        text: &mut [u8],
        alleged: Half,
    ) -> bool {
        let mut tag = [0; TAG];
        frame::unpack(|word| alleged[word], &mut tag);
        let opened = self.library().and_then(|key| {
            let aad = Aad::from(bytes(head));
            key.open_in_place_separate_tag(nonce(number), aad, tag.into(), text, 0..).map(|_| ())
        });
        opened.is_ok()
    }

    fn library(self) -> Result<LessSafeKey, Unspecified> {
        let mut key = [0; 32];
        let word = |at: usize| u64::from(self.key[2 * at]) | u64::from(self.key[2 * at + 1]) << 32;
        frame::unpack(word, &mut key);
        let made = UnboundKey::new(&CHACHA20_POLY1305, &key).map(LessSafeKey::new);
        key.zeroize();
        made
    }
}

/// Whether a text of any length was sealed under a nonce whose block 0 this is.
pub(crate) fn is_sealed(zeroth: &Block, head: &Head, sealed: &[u8], alleged: Half) -> bool {
    let mut poly = begin(zeroth, head);
    absorb(&mut poly, sealed);
    is_equal(end(poly, sealed.len()), alleged)
}

fn bytes(head: &Head) -> [u8; 32] {
    let mut bytes = [0; 32];
    frame::unpack(|word| head[word], &mut bytes);
    bytes
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Takes text into the tag, filled up with zeros to whole blocks.
#[inline]
fn absorb(poly: &mut Poly, sealed: &[u8]) {
    let (blocks, tail) = sealed.as_chunks::<16>();
    // In a register while it goes on.
    let mut sum = *poly;
    for block in blocks {
        sum.block(frame::pack(block));
    }
    if !tail.is_empty() {
        sum.block(frame::pack(tail));
    }
    *poly = sum;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::chacha::{BLOCKS, Backend, key_words};
    use chacha20poly1305::{ChaCha20Poly1305, KeyInit, aead::AeadInOut};
    use proptest::prelude::*;

    /// Ciphertext and tag by the crate.
    fn by_the_crate(key: &[u8; 32], number: u64, head: &Head, text: &[u8]) -> (Vec<u8>, Half) {
        let mut full = [0; 12];
        full[4..].copy_from_slice(&number.to_le_bytes());
        let mut sealed = text.to_vec();
        let tag = ChaCha20Poly1305::new(key.into())
            .encrypt_inout_detached(&full.into(), &bytes(head), sealed.as_mut_slice().into())
            .expect("short");
        (sealed, frame::pack(&tag))
    }

    fn check(key: [u8; 32], number: u64, head: Head, text: &[u8]) {
        let (expected, expected_tag) = by_the_crate(&key, number, &head, text);
        let key = key_words(&key);
        for backend in Backend::all() {
            let mut blocks = [[0; 8]; BLOCKS];
            backend.ahead(&key, number, &mut blocks);
            assert!(is_sealed(&blocks[0], &head, &expected, expected_tag));
            if text.len() <= SHORT {
                let pad = [blocks[0], blocks[1]];
                let words = frame::pack::<8>(text);
                let (sealed, tag) = seal_words(&pad, &head, words, text.len());
                assert_eq!((sealed, tag), (frame::pack(&expected), expected_tag));
                assert_eq!(open_words(&pad, &head, sealed, text.len(), tag), Some(words));
                let false_tag = [tag[0], tag[1] ^ 1];
                assert_eq!(open_words(&pad, &head, sealed, text.len(), false_tag), None);
                if text.len() < SHORT {
                    let mut longer = sealed;
                    longer[7] |= 1 << 63;
                    assert_eq!(open_words(&pad, &head, longer, text.len(), tag), None);
                }
            }
        }
        let cipher = Cipher { key: &key };
        let mut sealed = text.to_vec();
        let tag = cipher.seal(number, &head, &mut sealed);
        assert_eq!((&sealed, tag), (&expected, expected_tag));
        assert!(!cipher.open(number, &head, &mut sealed, [tag[0] ^ 1, tag[1]]));
        sealed.clone_from(&expected);
        assert!(cipher.open(number, &head, &mut sealed, tag));
        assert_eq!(sealed, text);
    }

    #[test]
    fn every_length_up_to_2_kib_is_sealed_as_the_crate_does() {
        let text: Vec<u8> = (0..2048_u32).map(|n| (n * 31 + n / 256) as u8).collect();
        for length in 0..=text.len() {
            let key = std::array::from_fn(|n| (n * length) as u8);
            check(key, length as u64, [length as u64, 2, 3, u64::MAX], &text[..length]);
        }
    }

    proptest! {
        #[test]
        fn any_key_nonce_head_and_text_are_sealed_as_the_crate_does(
            key: [u8; 32], number: u64, head: Head,
            text in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            check(key, number, head, &text);
        }

        #[test]
        fn extreme_words_carry_right(
            key in prop_oneof![Just([0xFF_u8; 32]), Just([0; 32]), any::<[u8; 32]>()],
            text in proptest::collection::vec(prop_oneof![Just(0_u8), Just(0xFF)], 0..130),
            s in prop_oneof![Just(u64::MAX), Just(0)],
        ) {
            check(key, s, [s; 4], &text);
        }
    }
}
