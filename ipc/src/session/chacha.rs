//! The `ChaCha20` block function (RFC 8439, 2.3) for sixteen blocks at once, each in a SIMD lane.
//!
//! A record needs two blocks: number 0 gives the Poly1305 key, number 1 the first 64 bytes of
//! keystream. Both depend on the key and the nonce only, and the next nonces are known: so they
//! are made for [`NONCES`] nonces at a time, ahead of the records. What a block is made of is a
//! lane's own affair: the same code makes sixteen consecutive blocks of one nonce.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
mod vector;

use super::vault::{sweep_shallow, wipe_registers};

/// Blocks made at a time.
pub(crate) const BLOCKS: usize = 16;
/// Nonces that these serve, with two blocks each.
pub(crate) const NONCES: usize = BLOCKS / 2;

/// 64 bytes of keystream, in little-endian words.
pub(crate) type Block = [u64; 8];

/// The last four words of each block's state: the counter, and the three words of the nonce.
type Places = [[u32; BLOCKS]; 4];

/// The instructions to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Sixteen lanes of 32 bits.
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Present),
    /// Eight lanes, twice.
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Present),
    /// One block after the other.
    Portable,
}

impl Backend {
    /// All that this processor can run, the fastest first.
    pub(crate) fn all() -> impl Iterator<Item = Backend> {
        #[cfg(target_arch = "x86_64")]
        let special = [
            avx512::Present::detect().map(Backend::Avx512),
            avx2::Present::detect().map(Backend::Avx2),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let special = [None; 0];
        special.into_iter().flatten().chain([Backend::Portable])
    }

    /// The fastest that this processor can run.
    pub(crate) fn detect() -> Backend {
        Backend::all().next().unwrap_or(Backend::Portable)
    }

    /// Names it.
    #[cfg(feature = "bare")]
    pub(crate) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Backend::Avx512(_) => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Backend::Avx2(_) => "AVX2",
            Backend::Portable => "portable",
        }
    }

    /// Whether all of the state is in registers, and none on the stack.
    fn has_room(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Backend::Avx512(_) => !cfg!(debug_assertions),
            _ => false,
        }
    }

    pub(super) fn blocks(self, key: &[u32; 8], places: &Places, blocks: &mut [Block; BLOCKS]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Backend::Avx512(present) => present.blocks(key, places, blocks),
            #[cfg(target_arch = "x86_64")]
            Backend::Avx2(present) => present.blocks(key, places, blocks),
            Backend::Portable => portable::blocks(key, places, blocks),
        }
        // They have held the key, and keystream that is not used yet: a core has the stack, and
        // registers, too.
        if self.has_room() { wipe_registers() } else { sweep_shallow() }
    }

    /// Makes blocks 0 and 1 of the nonces `first`, `first` + 1 and so on: nonce *n*'s are at
    /// 2*n* and 2*n* + 1. A nonce is four zero bytes and the number, as in Noise.
    #[inline(never)]
    pub(crate) fn ahead(self, key: &[u32; 8], first: u64, blocks: &mut [Block; BLOCKS]) {
        let mut places = [[0; BLOCKS]; 4];
        let [counters, _, low, high] = &mut places;
        let lanes = counters.iter_mut().zip(low).zip(high);
        for (lane, ((counter, low), high)) in lanes.enumerate() {
            let number = first.wrapping_add(lane as u64 / 2);
            *counter = lane as u32 % 2;
            *low = number as u32;
            *high = (number >> 32) as u32;
        }
        self.blocks(key, &places, blocks);
    }

    /// Makes sixteen consecutive blocks of one nonce, from the counter `from`.
    #[inline(never)]
    pub(crate) fn consecutive(
        self,
        key: &[u32; 8],
        number: u64,
        from: u32,
        blocks: &mut [Block; BLOCKS],
    ) {
        let counters = std::array::from_fn(|lane| from.wrapping_add(lane as u32));
        let (low, high) = (number as u32, (number >> 32) as u32);
        let places = [counters, [0; BLOCKS], [low; BLOCKS], [high; BLOCKS]];
        self.blocks(key, &places, blocks);
    }
}

/// The words of a key.
pub(crate) fn key_words(key: &[u8; 32]) -> [u32; 8] {
    std::array::from_fn(|word| u32::from_le_bytes(std::array::from_fn(|byte| key[4 * word + byte])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use chacha20poly1305::{ChaCha20Poly1305, KeyInit, aead::AeadInOut};
    use proptest::prelude::*;

    fn bytes(blocks: &[Block]) -> Vec<u8> {
        blocks.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// The crate's keystream from block 1 on: what it makes of zeros.
    fn by_the_crate(key: &[u8; 32], number: u64, length: usize) -> Vec<u8> {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&number.to_le_bytes());
        let mut text = vec![0; length];
        ChaCha20Poly1305::new(key.into())
            .encrypt_inout_detached(&nonce.into(), &[], text.as_mut_slice().into())
            .expect("short");
        text
    }

    proptest! {
        #[test]
        fn every_backend_makes_the_blocks_of_the_crate(key: [u8; 32], number: u64) {
            for backend in Backend::all() {
                let mut blocks = [[0; 8]; BLOCKS];
                backend.consecutive(&key_words(&key), number, 1, &mut blocks);
                prop_assert_eq!(bytes(&blocks), by_the_crate(&key, number, 64 * BLOCKS));
                backend.ahead(&key_words(&key), number, &mut blocks);
                let mut zeroth = [[0; 8]; BLOCKS];
                for n in 0..NONCES {
                    let number = number.wrapping_add(n as u64);
                    backend.consecutive(&key_words(&key), number, 0, &mut zeroth);
                    prop_assert_eq!(&blocks[2 * n..2 * n + 2], &zeroth[..2], "{:?}", backend);
                }
            }
        }
    }

    #[test]
    fn the_block_of_rfc_8439_2_3_2() {
        let key = std::array::from_fn(|n| n as u8);
        let mut places = [[0; BLOCKS]; 4];
        places.iter_mut().zip([1, 0x0900_0000, 0x4a00_0000, 0]).for_each(|(row, word)| {
            row.fill(word);
        });
        let expected = [
            0xe4e7_f110,
            0x1559_3bd1,
            0x1fdd_0f50,
            0xc471_20a3,
            0xc7f4_d1c7,
            0x0368_c033,
            0x9aaa_2204,
            0x4e6c_d4c3,
            0x4664_82d2,
            0x09aa_9f07,
            0x05d7_c214,
            0xa202_8bd9,
            0xd19c_12b5,
            0xb94e_16de,
            0xe883_d0cb,
            0x4e3c_50a2_u32,
        ];
        let expected: Vec<u8> = expected.into_iter().flat_map(u32::to_le_bytes).collect();
        for backend in Backend::all() {
            let mut blocks = [[0; 8]; BLOCKS];
            backend.blocks(&key_words(&key), &places, &mut blocks);
            for block in &blocks {
                assert_eq!(bytes(&[*block]), expected, "{backend:?}");
            }
        }
    }
}
