//! The epochs at which names are served. None is given twice, by no run: they ascend, and are
//! reserved durably before anybody hears of them.
//!
//! A name has a block of them, of which its standbys take the next without asking. The counter is
//! the same for all names, so a name's epochs ascend with gaps. Lanes show their low halves, and by
//! small numbers other things: no low half is as small as those.

use std::ops::Range;

use ipc::Status;

/// Epochs of one name, before it needs another block. No low half of an epoch is below that.
pub(crate) const BLOCK: u64 = 64;
/// Epochs reserved at once: for a thousand names.
pub(crate) const RESERVE: u64 = 1024 * BLOCK;

/// Remembers, beyond a crash, which epochs may have been given.
pub(crate) trait EpochSource: std::fmt::Debug + Send {
    /// Makes it durable that all epochs below `end` may have been given.
    ///
    /// # Errors
    /// A status to refuse with; then none of them may be given.
    fn reserve(&mut self, end: u64) -> Result<(), Status>;
}

/// Gives blocks of epochs.
#[derive(Debug)]
pub(crate) struct Epochs {
    next: u64,
    end: u64,
    source: Box<dyn EpochSource>,
}

impl Epochs {
    /// Starts at the first epoch that no earlier run has reserved.
    pub(crate) fn new(first: u64, source: Box<dyn EpochSource>) -> Epochs {
        let first = first.next_multiple_of(BLOCK).max(BLOCK);
        Epochs { next: first, end: first, source }
    }

    /// The first that is given next: no earlier run has reserved it.
    pub(crate) fn first(&self) -> u64 {
        self.next
    }

    /// Reserves as many as are reserved at once.
    ///
    /// # Errors
    /// As for [`block`](Epochs::block).
    pub(crate) fn reserve(&mut self) -> Result<(), Status> {
        let end = self.end.checked_add(RESERVE).ok_or(Status::QUOTA)?;
        self.source.reserve(end)?;
        self.end = end;
        Ok(())
    }

    /// Gives a block that was never given.
    ///
    /// # Errors
    /// What the source said when it cannot reserve; `QUOTA` when the counter is used up.
    pub(crate) fn block(&mut self) -> Result<Range<u64>, Status> {
        if self.next == self.end {
            self.reserve()?;
        }
        let first = self.next;
        self.next += BLOCK;
        if first as u32 == 0 {
            return self.block();
        }
        Ok(first..self.next)
    }
}

/// Reserves nothing: for a broker that no other run comes after.
#[derive(Debug)]
pub(crate) struct Forgetful;

impl EpochSource for Forgetful {
    fn reserve(&mut self, _: u64) -> Result<(), Status> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Debug)]
    struct Memory(Arc<Mutex<Result<u64, Status>>>);

    impl EpochSource for Memory {
        fn reserve(&mut self, end: u64) -> Result<(), Status> {
            let mut memory = self.0.lock().expect("not poisoned");
            (*memory)?;
            *memory = Ok(end);
            Ok(())
        }
    }

    #[test]
    fn blocks_ascend_and_are_reserved_before_they_are_given() {
        let memory = Arc::new(Mutex::new(Ok(0)));
        let mut epochs = Epochs::new(100, Box::new(Memory(Arc::clone(&memory))));
        let mut last = 100;
        for _ in 0..3000 {
            let block = epochs.block().expect("reserved");
            assert!(
                block.start >= last && block.end <= memory.lock().expect("kept").expect("some")
            );
            assert_eq!(block.start % BLOCK, 0);
            last = block.end;
        }
        // Another run begins above all that were given.
        let mut again =
            Epochs::new(memory.lock().expect("kept").expect("some"), Box::new(Forgetful));
        assert!(again.block().expect("reserved").start >= last);
    }

    #[test]
    fn without_a_reservation_nothing_is_given() {
        let memory = Arc::new(Mutex::new(Err(Status::IO)));
        let mut epochs = Epochs::new(0, Box::new(Memory(Arc::clone(&memory))));
        assert_eq!(epochs.block(), Err(Status::IO));
        *memory.lock().expect("kept") = Ok(0);
        assert_eq!(epochs.block(), Ok(BLOCK..2 * BLOCK));
    }

    #[test]
    fn no_low_half_of_an_epoch_is_a_small_number() {
        let mut epochs = Epochs::new((1 << 32) - BLOCK, Box::new(Forgetful));
        assert_eq!(epochs.block(), Ok((1 << 32) - BLOCK..1 << 32));
        assert_eq!(epochs.block(), Ok((1 << 32) + BLOCK..(1 << 32) + 2 * BLOCK));
    }
}
