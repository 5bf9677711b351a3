//! Messages that are counted on the board together.

/// Messages, and the bytes of them, in one number: what is done for each message of a stream is
/// one addition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tally(u64);

/// Above the bytes: so many messages have fewer than this, even of 4 GiB each.
const MESSAGE: u64 = 1 << 48;
/// With the next message the number is over, and begins anew.
const EMPTY: u64 = 0_u64.wrapping_sub(Tally::MOST * MESSAGE);

impl Tally {
    /// Most messages that one tally holds.
    pub(crate) const MOST: u64 = 256;
    pub(crate) const NOTHING: Tally = Tally(EMPTY);

    /// Adds a message. Returns true for the last that it holds: take them, then.
    #[inline(always)]
    pub(crate) fn add(&mut self, bytes: u64) -> bool {
        let (sum, is_full) = self.0.overflowing_add(MESSAGE + bytes);
        self.0 = sum;
        is_full
    }

    /// Takes the messages and bytes out of it.
    pub(crate) fn take(&mut self) -> (u64, u64) {
        let sum = std::mem::replace(&mut self.0, EMPTY);
        (sum.wrapping_sub(EMPTY) / MESSAGE, sum % MESSAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_is_taken_when_it_is_full_or_before() {
        let mut tally = Tally::NOTHING;
        assert_eq!(tally.take(), (0, 0));
        assert!(!tally.add(7) && !tally.add(0));
        assert_eq!(tally.take(), (2, 7));
        let largest = 1 << 32;
        let full: Vec<u64> = (1..=Tally::MOST).filter(|_| tally.add(largest)).collect();
        assert_eq!(full, [Tally::MOST]);
        assert_eq!(tally.take(), (Tally::MOST, Tally::MOST * largest));
        assert_eq!(tally.take(), (0, 0));
    }
}
