//! One block at a time, in ordinary registers: arrays of lanes are slower wherever the compiler
//! does not turn them into vectors, and it does not.

#![allow(unsafe_code)] // the contract of `Vector`, which nothing here depends on

use super::{
    BLOCKS, Block, Places,
    vector::{Vector, run},
};

#[derive(Clone, Copy)]
struct Word(u32);

/// Makes the blocks with no instruction that the target might lack.
pub(super) fn blocks(key: &[u32; 8], places: &Places, blocks: &mut [Block; BLOCKS]) {
    // SAFETY: (1) it needs nothing special.
    unsafe { run::<Word>(key, places, blocks) };
}

impl Vector for Word {
    const LANES: usize = 1;

    #[inline(always)]
    unsafe fn splat(word: u32) -> Word {
        Word(word)
    }

    #[inline(always)]
    unsafe fn gather(words: &[u32; BLOCKS], from: usize) -> Word {
        Word(words[from])
    }

    #[inline(always)]
    fn add(self, other: Word) -> Word {
        Word(self.0.wrapping_add(other.0))
    }

    #[inline(always)]
    fn xor_rotate<const LEFT: i32, const RIGHT: i32>(self, other: Word) -> Word {
        Word((self.0 ^ other.0).rotate_left(LEFT as u32))
    }

    #[inline(always)]
    fn scatter(state: [Word; 16], blocks: &mut [Block]) {
        blocks[0] = std::array::from_fn(|word| {
            u64::from(state[2 * word].0) | u64::from(state[2 * word + 1].0) << 32
        });
    }
}
