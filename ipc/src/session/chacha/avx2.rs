//! Eight lanes in a register of 256 bits.

#![allow(unsafe_code)] // instructions that not every processor has

use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_loadu_si256, _mm256_or_si256, _mm256_permute2x128_si256,
    _mm256_set1_epi32, _mm256_setr_epi8, _mm256_shuffle_epi8, _mm256_slli_epi32, _mm256_srli_epi32,
    _mm256_storeu_si256, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32,
    _mm256_unpacklo_epi64, _mm256_xor_si256,
};

use super::{
    BLOCKS, Block, Places,
    vector::{Vector, run},
};

/// Proof that the processor has AVX2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Present(());

impl Present {
    /// Asks the processor.
    pub(super) fn detect() -> Option<Present> {
        is_x86_feature_detected!("avx2").then_some(Present(()))
    }

    /// Makes the blocks.
    #[allow(clippy::unused_self, reason = "it is the proof")]
    pub(super) fn blocks(self, key: &[u32; 8], places: &Places, blocks: &mut [Block; BLOCKS]) {
        // SAFETY: there is a `Present` only where there is AVX2.
        unsafe { with_avx2(key, places, blocks) };
    }
}

#[target_feature(enable = "avx2")]
fn with_avx2(key: &[u32; 8], places: &Places, blocks: &mut [Block; BLOCKS]) {
    // SAFETY: (1) so it says above.
    unsafe { run::<Words>(key, places, blocks) };
}

#[derive(Clone, Copy)]
struct Words(__m256i);

// Of the instructions below: a `Words` exists only where the processor has them, see `Vector`.
impl Vector for Words {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(word: u32) -> Words {
        // SAFETY: (1).
        Words(unsafe { _mm256_set1_epi32(word as i32) })
    }

    #[inline(always)]
    unsafe fn gather(words: &[u32; BLOCKS], from: usize) -> Words {
        let words = &words[from..from + 8];
        // SAFETY: (1); eight words are 256 bits.
        Words(unsafe { _mm256_loadu_si256(words.as_ptr().cast()) })
    }

    #[inline(always)]
    fn add(self, other: Words) -> Words {
        // SAFETY: see above.
        Words(unsafe { _mm256_add_epi32(self.0, other.0) })
    }

    #[inline(always)]
    fn xor_rotate<const LEFT: i32, const RIGHT: i32>(self, other: Words) -> Words {
        // SAFETY: see above.
        unsafe {
            let word = _mm256_xor_si256(self.0, other.0);
            // Whole bytes are one shuffle.
            Words(match LEFT {
                16 => _mm256_shuffle_epi8(
                    word,
                    _mm256_setr_epi8(
                        2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13, 2, 3, 0, 1, 6, 7, 4,
                        5, 10, 11, 8, 9, 14, 15, 12, 13,
                    ),
                ),
                8 => _mm256_shuffle_epi8(
                    word,
                    _mm256_setr_epi8(
                        3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14, 3, 0, 1, 2, 7, 4, 5,
                        6, 11, 8, 9, 10, 15, 12, 13, 14,
                    ),
                ),
                _ => _mm256_or_si256(
                    _mm256_slli_epi32::<LEFT>(word),
                    _mm256_srli_epi32::<RIGHT>(word),
                ),
            })
        }
    }

    #[inline(always)]
    fn scatter(state: [Words; 16], blocks: &mut [Block]) {
        let blocks: &mut [Block; 8] = blocks.try_into().expect("a block for each lane");
        for half in 0..2 {
            // Of two quarters of the state: [j] has those of lanes j and j + 4, in two registers.
            let [low, high] = [0, 1].map(|quarter| {
                let at = 8 * half + 4 * quarter;
                quarters([state[at], state[at + 1], state[at + 2], state[at + 3]])
            });
            for lane in 0..4 {
                // SAFETY: see above; four words of a block are 256 bits.
                unsafe {
                    let near = _mm256_permute2x128_si256::<0x20>(low[lane], high[lane]);
                    let far = _mm256_permute2x128_si256::<0x31>(low[lane], high[lane]);
                    let [near_at, far_at] = [lane, lane + 4]
                        .map(|block| &raw mut blocks[block][4 * half..4 * half + 4]);
                    _mm256_storeu_si256(near_at.cast(), near);
                    _mm256_storeu_si256(far_at.cast(), far);
                }
            }
        }
    }
}

/// Transposes four rows: [j] has the four words of lane j in its low, of lane j + 4 in its high
/// half.
#[inline(always)]
fn quarters([a, b, c, d]: [Words; 4]) -> [__m256i; 4] {
    // SAFETY: a `Words` exists only where the processor has AVX2.
    unsafe {
        let (ab, cd) = (_mm256_unpacklo_epi32(a.0, b.0), _mm256_unpacklo_epi32(c.0, d.0));
        let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a.0, b.0), _mm256_unpackhi_epi32(c.0, d.0));
        [
            _mm256_unpacklo_epi64(ab, cd),
            _mm256_unpackhi_epi64(ab, cd),
            _mm256_unpacklo_epi64(ab_high, cd_high),
            _mm256_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}
