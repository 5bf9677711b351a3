//! The rounds, for any number of lanes.

#![allow(unsafe_code)] // the contract of `Vector`; no pointer here

use super::{BLOCKS, Block, Places};

/// The words that every state begins with: "expand 32-byte k".
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// As many blocks side by side as a register has lanes; each method acts on all of them.
pub(super) trait Vector: Copy {
    /// Lanes.
    const LANES: usize;

    /// The same word in each lane.
    ///
    /// # Safety
    /// 1. The processor has the instructions that this type stands for. Whoever holds a value may
    ///    use the other methods: only this and `gather` make the first ones.
    unsafe fn splat(word: u32) -> Self;

    /// A word for each lane.
    ///
    /// # Safety
    /// 1. As for `splat`.
    unsafe fn gather(words: &[u32; BLOCKS], from: usize) -> Self;

    fn add(self, other: Self) -> Self;
    fn xor_rotate<const LEFT: i32, const RIGHT: i32>(self, other: Self) -> Self;

    /// Turns sixteen words of each lane into the lanes' blocks.
    fn scatter(state: [Self; 16], blocks: &mut [Block]);
}

/// Makes the blocks, as many side by side as `V` has lanes.
///
/// # Safety
/// 1. The processor has the instructions that `V` stands for.
#[inline(always)]
pub(super) unsafe fn run<V: Vector>(key: &[u32; 8], places: &Places, blocks: &mut [Block; BLOCKS]) {
    for from in (0..BLOCKS).step_by(V::LANES) {
        let start: [V; 16] = std::array::from_fn(|row| {
            // SAFETY: (1).
            unsafe {
                match row {
                    0..4 => V::splat(CONSTANTS[row]),
                    4..12 => V::splat(key[row - 4]),
                    _ => V::gather(&places[row - 12], from),
                }
            }
        });
        let mut state = start;
        for _ in 0..10 {
            double_round(&mut state);
        }
        let sums = std::array::from_fn(|row| state[row].add(start[row]));
        V::scatter(sums, &mut blocks[from..from + V::LANES]);
    }
}

#[inline(always)]
fn double_round<V: Vector>(state: &mut [V; 16]) {
    for column in 0..4 {
        quarter_round(state, [column, column + 4, column + 8, column + 12]);
    }
    for diagonal in 0..4 {
        let around = |step: usize| 4 * step + (diagonal + step) % 4;
        quarter_round(state, [around(0), around(1), around(2), around(3)]);
    }
}

#[inline(always)]
fn quarter_round<V: Vector>(state: &mut [V; 16], [a, b, c, d]: [usize; 4]) {
    state[a] = state[a].add(state[b]);
    state[d] = state[d].xor_rotate::<16, 16>(state[a]);
    state[c] = state[c].add(state[d]);
    state[b] = state[b].xor_rotate::<12, 20>(state[c]);
    state[a] = state[a].add(state[b]);
    state[d] = state[d].xor_rotate::<8, 24>(state[a]);
    state[c] = state[c].add(state[d]);
    state[b] = state[b].xor_rotate::<7, 25>(state[c]);
}
