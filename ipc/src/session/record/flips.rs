//! Which bits tests flip.

/// Longest text of which every bit is flipped.
pub(crate) const LONGEST: usize = 256;

/// Lengths at which a way of sealing begins or ends.
const EDGES: [usize; 8] = [0, 1, 31, 48, 64, 65, 224, LONGEST];

/// The bits to flip of so many, which belong to a text of that length: each one in an optimized
/// build (`scripts/test.sh flips`), where that takes seconds. In one for debugging each bit at the
/// lengths that matter most, and at all others one of each word, another at the next length.
pub(crate) fn bits(count: usize, length: usize) -> impl Iterator<Item = usize> {
    let is_whole = !cfg!(debug_assertions) || EDGES.contains(&length);
    (0..count).filter(move |bit| is_whole || bit % 64 == (bit / 64 * 29 + length * 7) % 64)
}
