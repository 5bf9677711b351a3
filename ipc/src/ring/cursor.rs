//! The arithmetic of the slab: where the next piece lies. Pure; both sides compute it alike.

/// Pieces start at multiples of this.
const ALIGN: u64 = 8;

/// Counts slab bytes from the beginning of time; the place in memory is the count modulo the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlabCursor {
    position: u64,
    size: u64,
}

/// A piece of the slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Count at its first byte: offset and generation in one.
    pub(crate) place: u64,
    /// Count after its last byte, rounded up.
    pub(crate) end: u64,
}

impl SlabCursor {
    /// Starts at 0. `size` is a power of two.
    pub(crate) fn new(size: u32) -> SlabCursor {
        debug_assert!(size.is_power_of_two());
        SlabCursor { position: 0, size: u64::from(size) }
    }

    /// Tells where a piece of `length` bytes goes: next, or at the start of the slab when the rest
    /// of it is too short. `length` is at most half the slab, so a piece always fits in the end.
    #[inline]
    pub(crate) fn next(self, length: usize) -> Piece {
        let length = length as u64;
        let offset = self.position & (self.size - 1);
        let place = if offset + length > self.size {
            self.position + (self.size - offset)
        } else {
            self.position
        };
        Piece { place, end: (place + length).next_multiple_of(ALIGN) }
    }

    /// Moves behind a piece.
    #[inline]
    pub(crate) fn advance(&mut self, piece: Piece) {
        self.position = piece.end;
    }

    /// Tells whether a piece fits while everything from `freed` on is still in use.
    #[inline]
    pub(crate) fn fits(self, piece: Piece, freed: u64) -> bool {
        piece.end - freed <= self.size
    }

    /// The count so far.
    #[inline]
    pub(crate) fn position(self) -> u64 {
        self.position
    }

    /// The offset in memory of a place.
    #[inline]
    pub(crate) fn offset(self, place: u64) -> usize {
        (place & (self.size - 1)) as usize
    }
}

/// Largest piece that one frame may have in a slab of this size.
pub(crate) fn max_piece(slab: u32) -> u32 {
    slab / 2
}

/// Length of the pieces in which a long message is cut: so that a few are under way at a time.
pub(crate) fn stream_piece(slab: u32) -> u32 {
    slab / 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_never_overlap_and_never_wrap(
            log2 in 11_u32..16, lengths in prop::collection::vec(1_usize..32_768, 1..400),
        ) {
            let size = 1_u32 << log2;
            let mut cursor = SlabCursor::new(size);
            let mut live = std::collections::VecDeque::new();
            for length in lengths {
                let length = length % (size as usize / 2) + 1;
                let piece = cursor.next(length);
                loop {
                    let freed = live.front().map_or(cursor.position(), |p: &Piece| p.place);
                    if cursor.fits(piece, freed) {
                        break;
                    }
                    prop_assert!(live.pop_front().is_some(), "an empty slab fits every piece");
                }
                let offset = cursor.offset(piece.place);
                prop_assert!(offset + length <= size as usize);
                for other in &live {
                    let start = cursor.offset(other.place);
                    let end = start + (other.end - other.place) as usize;
                    prop_assert!(offset + length <= start || end <= offset);
                }
                cursor.advance(piece);
                live.push_back(piece);
            }
        }
    }
}
