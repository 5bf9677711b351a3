//! Sixteen lanes in a register of 512 bits: all blocks in one pass, and no state in memory.

#![allow(unsafe_code)] // instructions that not every processor has

use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_loadu_si512, _mm512_rol_epi32, _mm512_set1_epi32,
    _mm512_shuffle_i32x4, _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64, _mm512_xor_si512,
};

use super::{
    BLOCKS, Block, Places,
    vector::{Vector, run},
};

/// Proof that the processor has AVX-512F.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Present(());

impl Present {
    /// Asks the processor.
    pub(super) fn detect() -> Option<Present> {
        is_x86_feature_detected!("avx512f").then_some(Present(()))
    }

    /// Makes the blocks.
    #[allow(clippy::unused_self, reason = "it is the proof")]
    pub(super) fn blocks(self, key: &[u32; 8], places: &Places, blocks: &mut [Block; BLOCKS]) {
        // SAFETY: there is a `Present` only where there is AVX-512F.
        unsafe { with_avx512(key, places, blocks) };
    }
}

#[target_feature(enable = "avx512f")]
fn with_avx512(key: &[u32; 8], places: &Places, blocks: &mut [Block; BLOCKS]) {
    // SAFETY: (1) so it says above.
    unsafe { run::<Words>(key, places, blocks) };
}

#[derive(Clone, Copy)]
struct Words(__m512i);

// Of the instructions below: a `Words` exists only where the processor has them, see `Vector`.
impl Vector for Words {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(word: u32) -> Words {
        // SAFETY: (1).
        Words(unsafe { _mm512_set1_epi32(word as i32) })
    }

    #[inline(always)]
    unsafe fn gather(words: &[u32; BLOCKS], _: usize) -> Words {
        // SAFETY: (1); sixteen words are 512 bits.
        Words(unsafe { _mm512_loadu_si512(words.as_ptr().cast()) })
    }

    #[inline(always)]
    fn add(self, other: Words) -> Words {
        // SAFETY: see above.
        Words(unsafe { _mm512_add_epi32(self.0, other.0) })
    }

    #[inline(always)]
    fn xor_rotate<const LEFT: i32, const RIGHT: i32>(self, other: Words) -> Words {
        // SAFETY: see above.
        Words(unsafe { _mm512_rol_epi32::<LEFT>(_mm512_xor_si512(self.0, other.0)) })
    }

    #[inline(always)]
    fn scatter(state: [Words; 16], blocks: &mut [Block]) {
        let blocks: &mut [Block; 16] = blocks.try_into().expect("a block for each lane");
        // [q][j]: words 4q to 4q + 3 of the lanes j, j + 4, j + 8 and j + 12, side by side.
        let quarters: [[__m512i; 4]; 4] = std::array::from_fn(|quarter| {
            quarters([0, 1, 2, 3].map(|row| state[4 * quarter + row]))
        });
        for lane in 0..4 {
            let [a, b, c, d] = quarters.map(|quarter| quarter[lane]);
            // SAFETY: see above; a block is 512 bits.
            unsafe {
                let (ab, cd) =
                    (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d));
                let (ab_far, cd_far) =
                    (_mm512_shuffle_i32x4::<0xEE>(a, b), _mm512_shuffle_i32x4::<0xEE>(c, d));
                let whole = [
                    _mm512_shuffle_i32x4::<0x88>(ab, cd),
                    _mm512_shuffle_i32x4::<0xDD>(ab, cd),
                    _mm512_shuffle_i32x4::<0x88>(ab_far, cd_far),
                    _mm512_shuffle_i32x4::<0xDD>(ab_far, cd_far),
                ];
                for (group, block) in whole.into_iter().enumerate() {
                    _mm512_storeu_si512((&raw mut blocks[4 * group + lane]).cast(), block);
                }
            }
        }
    }
}

/// Transposes four rows: the groups of 128 bits of [j] are the words of lanes j, j + 4, j + 8 and
/// j + 12.
#[inline(always)]
fn quarters([a, b, c, d]: [Words; 4]) -> [__m512i; 4] {
    // SAFETY: a `Words` exists only where the processor has AVX-512F.
    unsafe {
        let (ab, cd) = (_mm512_unpacklo_epi32(a.0, b.0), _mm512_unpacklo_epi32(c.0, d.0));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a.0, b.0), _mm512_unpackhi_epi32(c.0, d.0));
        [
            _mm512_unpacklo_epi64(ab, cd),
            _mm512_unpackhi_epi64(ab, cd),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}
