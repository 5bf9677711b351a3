//! The rule by which a standby takes a name without asking anybody. Pure.

/// What a standby knows of one before it in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// The kernel says that its process died.
    Dead,
    /// Its process lives, or nothing is known of it.
    Unknown,
}

/// The epochs that a standby has heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epochs {
    /// The last one that the runtime told.
    pub(crate) told: u64,
    /// The first one that is not reserved.
    pub(crate) limit: u64,
    /// The last that was seen in a lane of one before it.
    pub(crate) seen: u64,
}

/// Gives the epoch at which a standby takes its name, if it may: when all before it are dead, and
/// the epoch is reserved. What callers say plays no part.
///
/// Each of those before it may have served, and died before its lanes said so: for each there is an
/// epoch of its own.
pub(crate) fn promotes(before: &[Evidence], epochs: Epochs) -> Option<u64> {
    let of_this_place = epochs.told.checked_add(before.len() as u64)?;
    let epoch = of_this_place.max(epochs.seen.checked_add(1)?);
    let all_dead = before.iter().all(|it| *it == Evidence::Dead);
    // Whoever has nobody before it is told to serve by the runtime, which knows why.
    (all_dead && !before.is_empty() && epoch < epochs.limit).then_some(epoch)
}

/// Finds the whole epoch of which a lane shows the low half, near one that is known.
pub(crate) fn whole(low: u32, near: u64) -> u64 {
    let ahead = low.wrapping_sub(near as u32) as i32;
    near.wrapping_add_signed(i64::from(ahead))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_that_lives_is_enough_to_stand_by() {
        use Evidence::*;
        let epochs = Epochs { told: 10, limit: 64, seen: 0 };
        assert_eq!(promotes(&[Dead], epochs), Some(11));
        assert_eq!(promotes(&[Dead, Dead], epochs), Some(12));
        assert_eq!(promotes(&[Dead, Unknown], epochs), None);
        assert_eq!(promotes(&[Unknown, Dead], epochs), None);
        assert_eq!(promotes(&[], epochs), None);
    }

    #[test]
    fn an_epoch_is_above_all_that_were_told_or_seen_and_reserved() {
        use Evidence::Dead;
        let epochs = |told, limit, seen| Epochs { told, limit, seen };
        assert_eq!(promotes(&[Dead], epochs(10, 64, 12)), Some(13));
        assert_eq!(promotes(&[Dead], epochs(62, 64, 0)), Some(63));
        assert_eq!(promotes(&[Dead], epochs(63, 64, 0)), None);
        assert_eq!(promotes(&[Dead], epochs(u64::MAX, u64::MAX, 0)), None);
    }

    proptest! {
        #[test]
        fn an_epoch_is_found_again_from_its_low_half(
            near in 1_u64 << 20..1 << 60,
            off in -99_i64..99,
        ) {
            let epoch = near.wrapping_add_signed(off);
            prop_assert_eq!(whole(epoch as u32, near), epoch);
        }

        /// Any number of standbys, each of which sees the deaths in an order of its own: whoever
        /// goes first in the end is later than all who went before, and two that serve at a time
        /// never do so at one epoch.
        #[test]
        fn epochs_ascend_along_the_order(deaths in 1_usize..6, told in 1_u64..1000) {
            for (dead, seen) in (1..=deaths).zip(told..) {
                let before = vec![Evidence::Dead; dead];
                let epochs = Epochs { told, limit: told + 64, seen };
                prop_assert_eq!(promotes(&before, epochs), Some(seen + 1));
            }
        }
    }
}
