//! The one counter of ids, for nodes, names and instances alike. No id is given twice.
//!
//! Ids below `end` are reserved durably before the first of them is given, a block at a time, so a
//! restarted runtime begins above all that its predecessors gave, at the price of the rest of a
//! block.
//!
//! ```text
//!   1 ……………………… first ………………… next ………………… end ………
//!     earlier runs      this run      reserved   not yet
//! ```

use std::{collections::HashSet, ops::Range};

use ipc::{ServiceId, Status};

/// Ids reserved at once: a million restarts fit into the counter.
pub(crate) const BLOCK: u32 = 4096;
/// How far above the reserved ids a claim may lie. It does when the directory was emptied under
/// running services; the limit keeps one wrong claim from using up the counter.
const REACH: u32 = 1 << 20;
/// Most ids claimed in one run; further claims get new ids instead.
const CLAIMS: usize = 65_536;

/// Remembers, beyond a crash, which ids may have been given.
pub(crate) trait IdSource: std::fmt::Debug + Send {
    /// Makes it durable that all ids below `end` may have been given.
    ///
    /// # Errors
    /// A status to refuse with; then none of them may be given.
    fn reserve(&mut self, end: u32) -> Result<(), Status>;
}

/// Gives ids, and gives ids of an earlier run back to those who claim them.
#[derive(Debug)]
pub(crate) struct Ids {
    first: u32,
    next: u32,
    end: u32,
    /// Claimed in this run, and outside `first..next`.
    claimed: HashSet<u32>,
    source: Box<dyn IdSource>,
}

impl Ids {
    /// Starts with a range that is reserved, at the first id that no earlier run can have given.
    pub(crate) fn new(reserved: Range<u32>, source: Box<dyn IdSource>) -> Ids {
        let (first, end) = (reserved.start.max(1), reserved.end.max(1));
        Ids { first, next: first, end, claimed: HashSet::new(), source }
    }

    /// Gives an id that was never given.
    ///
    /// # Errors
    /// `QUOTA` when the counter is used up; what the source said when it cannot reserve.
    pub(crate) fn fresh(&mut self) -> Result<ServiceId, Status> {
        loop {
            if self.next == self.end {
                self.reserve(self.end.checked_add(BLOCK).ok_or(Status::QUOTA)?)?;
            }
            let id = self.next;
            self.next += 1;
            if !self.claimed.remove(&id) {
                return Ok(ServiceId::new(id));
            }
        }
    }

    /// Takes an id back into use for one who held it before this run. False when this run has
    /// given it, when it was claimed before, or when it cannot have been given at all.
    pub(crate) fn claim(&mut self, id: ServiceId) -> bool {
        let id = id.get();
        let given = (self.first..self.next).contains(&id);
        let possible = id != 0 && id < self.end.saturating_add(REACH);
        if given || !possible || self.claimed.contains(&id) || self.claimed.len() >= CLAIMS {
            return false;
        }
        if id >= self.end && self.reserve(id + 1).is_err() {
            return false;
        }
        self.claimed.insert(id)
    }

    fn reserve(&mut self, end: u32) -> Result<(), Status> {
        self.source.reserve(end)?;
        self.end = end;
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Reserves in memory, and refuses once told to.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Memory {
        pub(crate) end: Arc<Mutex<u32>>,
        pub(crate) broken: Arc<Mutex<bool>>,
    }

    impl IdSource for Memory {
        fn reserve(&mut self, end: u32) -> Result<(), Status> {
            if *self.broken.lock().expect("not poisoned") {
                return Err(Status::IO);
            }
            *self.end.lock().expect("not poisoned") = end;
            Ok(())
        }
    }

    #[test]
    fn an_id_is_reserved_before_it_is_given() {
        let memory = Memory::default();
        let mut ids = Ids::new(1..1, Box::new(memory.clone()));
        for expected in 1..=BLOCK + 1 {
            let id = ids.fresh().expect("reserved").get();
            assert_eq!(id, expected);
            assert!(id < *memory.end.lock().expect("not poisoned"));
        }
    }

    #[test]
    fn without_a_reservation_nothing_is_given() {
        let memory = Memory::default();
        *memory.broken.lock().expect("not poisoned") = true;
        let mut ids = Ids::new(1..1, Box::new(memory.clone()));
        assert_eq!(ids.fresh(), Err(Status::IO));
        *memory.broken.lock().expect("not poisoned") = false;
        assert_eq!(ids.fresh(), Ok(ServiceId::new(1)));
    }

    #[test]
    fn a_claim_is_honoured_once_and_never_for_what_this_run_gave() {
        let mut ids = Ids::new(100..100, Box::new(Memory::default()));
        let given = ids.fresh().expect("reserved");
        assert!(!ids.claim(given));
        assert!(!ids.claim(ServiceId::NONE));
        assert!(ids.claim(ServiceId::new(7)));
        assert!(!ids.claim(ServiceId::new(7)));
        assert!(!ids.claim(ServiceId::new(u32::MAX)));
    }

    #[test]
    fn what_is_claimed_ahead_is_skipped_later() {
        let memory = Memory::default();
        let mut ids = Ids::new(1..1, Box::new(memory.clone()));
        assert!(ids.claim(ServiceId::new(2)));
        assert!(ids.claim(ServiceId::new(BLOCK + 5)));
        assert!(*memory.end.lock().expect("not poisoned") > BLOCK + 5);
        let given: Vec<u32> = (0..BLOCK + 10).map(|_| ids.fresh().expect("left").get()).collect();
        assert!(!given.contains(&2));
        assert!(!given.contains(&(BLOCK + 5)));
        assert!(!ids.claim(ServiceId::new(2)));
    }

    #[test]
    fn the_counter_ends_instead_of_wrapping() {
        let mut ids = Ids::new(u32::MAX - 10..u32::MAX - 10, Box::new(Memory::default()));
        assert_eq!(ids.fresh(), Err(Status::QUOTA));
    }
}
