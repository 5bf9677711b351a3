//! To whom a caller goes, when who served it does no more. Pure.

use super::rule;
use crate::{ServiceId, control::Group};

/// Chooses among the channels that were opened ahead, each to an instance and with the mark that
/// it shows: who serves, or, where all before it in the order are dead, the first who stands by.
///
/// One that shows an older epoch than the group has, or than `served_at`, at which the caller was
/// served, was passed over, and may not know it: what it did would be of an epoch that is past. A
/// standby that has a living one before it does not serve: who went there would wait for ever.
pub(crate) fn next(
    group: &Group,
    served_at: u64,
    is_dead: impl Fn(ServiceId) -> bool,
    open: impl Iterator<Item = (ServiceId, u32)>,
) -> Option<usize> {
    let served_at = served_at.max(group.served_at);
    let epoch = |mark| rule::whole(mark, served_at);
    // Each is looked at once: one that begins to serve meanwhile would be neither of the two.
    let open: Vec<(ServiceId, u32)> = open.collect();
    let serves =
        |(_, (_, mark)): &(usize, &(ServiceId, u32))| *mark != 0 && !is_past(*mark, served_at);
    let serving = open.iter().enumerate().filter(serves);
    if let Some((index, _)) = serving.max_by_key(|(_, (_, mark))| epoch(*mark)) {
        return Some(index);
    }
    let heir = group.members.iter().find(|id| !is_dead(**id))?;
    open.iter().position(|(id, mark)| id == heir && *mark == 0)
}

/// Tells whether one that shows this mark serves at an epoch before that one.
pub(crate) fn is_past(mark: u32, served_at: u64) -> bool {
    mark != 0 && rule::whole(mark, served_at) < served_at
}

/// The later of an epoch and the one that a lane shows, if it shows any.
pub(crate) fn later(served_at: u64, mark: u32) -> u64 {
    if mark == 0 { served_at } else { served_at.max(rule::whole(mark, served_at)) }
}

/// Tells whether another than who serves on a channel, at the epoch of this mark, serves now: its
/// caller heard so, and knows who is dead.
///
/// Where who serves is dead, the next that lives is about to: a caller that is there stays.
pub(crate) fn supersedes(
    group: &Group,
    is_dead: impl Fn(ServiceId) -> bool,
    current: ServiceId,
    mark: u32,
) -> bool {
    let heir = group.members.iter().find(|id| !is_dead(**id));
    if heir.is_none_or(|heir| *heir == current) {
        return false;
    }
    mark == 0 || group.served_at > rule::whole(mark, group.served_at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::HealthCheck;

    fn ids(ids: &[u32]) -> Vec<ServiceId> {
        ids.iter().copied().map(ServiceId::new).collect()
    }

    fn group(epoch: u64, members: &[u32]) -> Group {
        Group {
            name: ServiceId::new(100),
            epoch,
            served_at: epoch,
            limit: 64,
            flags: 0,
            ordered: true,
            health: HealthCheck::default(),
            members: ids(members),
        }
    }

    #[test]
    fn who_serves_is_gone_to_and_a_standby_only_when_all_before_it_are_dead() {
        let next = |open: &[(u32, u32)], dead: &[u32]| {
            let open = open.iter().map(|&(id, mark)| (ServiceId::new(id), mark));
            next(&group(7, &[1, 2, 3]), 7, |id| ids(dead).contains(&id), open)
        };
        assert_eq!(next(&[(3, 0), (2, 9)], &[]), Some(1));
        assert_eq!(next(&[(3, 8), (2, 9)], &[1]), Some(1), "the later one");
        assert_eq!(next(&[(3, 7), (2, 0)], &[1]), Some(0));
        assert_eq!(next(&[(3, 6), (2, 0)], &[1]), Some(1), "it was passed over");
        assert_eq!(next(&[(3, 0), (2, 0)], &[1]), Some(1));
        assert_eq!(next(&[(3, 0)], &[1]), None, "the second may live");
        assert_eq!(next(&[(3, 0)], &[1, 2]), Some(0));
        assert_eq!(next(&[(3, 0), (2, 0)], &[]), None);
        assert_eq!(next(&[], &[1]), None);
        assert_eq!(next(&[(1, 6), (2, 0)], &[]), None, "the first, before it hears so");
    }

    #[test]
    fn one_that_begins_to_serve_while_it_is_looked_at_is_gone_to() {
        let mark = std::cell::Cell::new(0);
        let open = std::iter::once_with(|| (ServiceId::new(2), mark.replace(9)));
        let is_dead = |id| id == ServiceId::new(1);
        assert_eq!(next(&group(7, &[1, 2]), 7, is_dead, open), Some(0));
    }

    #[test]
    fn nobody_goes_back_to_an_epoch_before_the_one_at_which_he_was_served() {
        let open = [(ServiceId::new(1), 7), (ServiceId::new(2), 0)].into_iter();
        let next = |served_at| next(&group(7, &[1, 2]), served_at, |_| false, open.clone());
        assert_eq!((next(0), next(7), next(8)), (Some(0), Some(0), None));
        assert!(is_past(7, 8) && !is_past(8, 8) && !is_past(0, 8), "0 stands by");
        let beyond = (1 << 32) + 5;
        assert!(is_past(u32::MAX, beyond) && !is_past(5, beyond) && !is_past(6, beyond));
        assert_eq!([later(8, 0), later(8, 7), later(8, 9)], [8, 8, 9]);
        assert_eq!(later(u64::from(u32::MAX), 5), beyond);
    }

    #[test]
    fn only_news_of_another_who_is_later_ends_a_channel() {
        let (one, two) = (ServiceId::new(1), ServiceId::new(2));
        let leaves = |epoch, members: &[u32], dead: &[u32], current, mark| {
            supersedes(&group(epoch, members), |id| ids(dead).contains(&id), current, mark)
        };
        assert!(leaves(12, &[2, 1], &[], one, 11));
        assert!(leaves(11, &[2, 1], &[], one, 0), "it stands by");
        assert!(!leaves(12, &[2, 1], &[], two, 12), "it is that one");
        assert!(!leaves(11, &[2, 1], &[2], one, 0), "it is about to serve");
        assert!(!leaves(12, &[2, 1], &[], one, 13), "older than what serves here");
        assert!(!leaves(12, &[], &[], one, 11));
    }
}
