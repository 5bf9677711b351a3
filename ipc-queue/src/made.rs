//! How many queues were made because somebody named them, and by whom.

use std::collections::HashMap;

/// Counts them, in all and by users.
#[derive(Debug, Default)]
pub(crate) struct Made {
    all: u32,
    by: HashMap<u32, u32>,
}

impl Made {
    /// One that was there already: whose it is was not written down.
    pub(crate) fn found(&mut self) {
        self.all += 1;
    }

    /// Counts one more of a user's, if there may be one; tells whether.
    pub(crate) fn admit(&mut self, uid: u32, most: u32, most_of_one: u32) -> bool {
        // As many users as queues at most: the counts are bounded.
        let own = self.by.get(&uid).copied().unwrap_or(0);
        if self.all >= most || own >= most_of_one {
            return false;
        }
        self.all += 1;
        *self.by.entry(uid).or_default() += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_makes_so_many_and_all_together_so_many() {
        let mut made = Made::default();
        made.found();
        let admitted: Vec<bool> = [1, 1, 1, 2, 2].map(|uid| made.admit(uid, 4, 2)).to_vec();
        assert_eq!(admitted, [true, true, false, true, false]);
        assert!(!Made::default().admit(1, 4, 0));
    }
}
