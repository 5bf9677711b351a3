//! The rule by which a standby takes a name without asking anybody. Pure.

/// What a standby knows of one before it in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// The kernel says that its process died.
    Dead,
    /// Its process lives, or nothing is known of it.
    Unknown,
}

/// The place of a standby in the order, as it was told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The epoch that is its own: the runtime reserved it with its rank, and gives it to nobody
    /// else.
    pub(crate) epoch: u64,
    /// The first one that is not reserved.
    pub(crate) limit: u64,
    /// The last that was seen in a lane of one before it.
    pub(crate) seen: u64,
}

/// Gives the epoch at which a standby takes its name, if it may: its own, when all before it are
/// dead. What callers say plays no part.
///
/// One before it that served at a later epoch was told so after this place was: then the order is
/// another one by now, and the runtime says who is next. So a standby that has not heard of a
/// change may come too late, but never takes an epoch that is another's.
pub(crate) fn promotes(before: &[Evidence], place: Place) -> Option<u64> {
    let Place { epoch, limit, seen } = place;
    let all_dead = before.iter().all(|it| *it == Evidence::Dead);
    // Whoever has nobody before it is told to serve by the runtime, which knows why.
    (all_dead && !before.is_empty() && seen < epoch && epoch < limit).then_some(epoch)
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
        let place = Place { epoch: 11, limit: 64, seen: 10 };
        assert_eq!(promotes(&[Dead], place), Some(11));
        assert_eq!(promotes(&[Dead, Dead], place), Some(11));
        assert_eq!(promotes(&[Dead, Unknown], place), None);
        assert_eq!(promotes(&[Unknown, Dead], place), None);
        assert_eq!(promotes(&[], place), None);
    }

    #[test]
    fn an_epoch_is_its_own_reserved_and_above_all_that_were_seen() {
        use Evidence::Dead;
        let place = |epoch, limit, seen| Place { epoch, limit, seen };
        assert_eq!(promotes(&[Dead], place(63, 64, 62)), Some(63));
        assert_eq!(promotes(&[Dead], place(64, 64, 0)), None, "not reserved");
        assert_eq!(promotes(&[Dead], place(11, 64, 11)), None, "the order is another one by now");
        assert_eq!(promotes(&[Dead], place(u64::MAX, u64::MAX, 0)), None);
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
    }
}
