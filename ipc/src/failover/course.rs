//! To whom a caller goes, when who served it does no more. Pure.

use super::rule;
use crate::{ServiceId, control::Group};

/// Chooses among the channels that were opened ahead, each to an instance and with the mark that
/// it shows: who serves, or, where all before it in the order are dead, the first who stands by.
///
/// One that shows an older epoch than the group has, and is not its first, was passed over. A
/// standby that has a living one before it does not serve: who went there would wait for ever.
pub(crate) fn next(
    group: &Group,
    is_dead: impl Fn(ServiceId) -> bool,
    open: impl Iterator<Item = (ServiceId, u32)> + Clone,
) -> Option<usize> {
    let epoch = |mark| rule::whole(mark, group.served_at);
    let first = group.members.first().copied();
    let serves = |(_, (id, mark)): &(usize, (ServiceId, u32))| {
        *mark != 0 && (Some(*id) == first || epoch(*mark) >= group.served_at)
    };
    let serving = open.clone().enumerate().filter(serves);
    if let Some((index, _)) = serving.max_by_key(|(_, (_, mark))| epoch(*mark)) {
        return Some(index);
    }
    let heir = group.members.iter().find(|id| !is_dead(**id))?;
    let mut open = open;
    open.position(|(id, mark)| id == *heir && mark == 0)
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
            next(&group(7, &[1, 2, 3]), |id| ids(dead).contains(&id), open)
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
