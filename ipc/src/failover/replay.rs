//! What becomes of a message when the service that it was sent to is gone. Pure.
//!
//! What cannot be known is said, never guessed: a request that was taken may have been carried out.

use crate::control::{SERVICE_DEDUP, SERVICE_IDEMPOTENT};

/// How far a message had come on the channel that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// Not all of it had been sent, so nobody can have acted on it.
    Nowhere,
    /// It was in the ring.
    Ring,
    /// The service had taken it.
    Taken,
}

/// What is known of the one who served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// It takes nothing more: it is dead, or has let the name go.
    Final,
    /// It may go on, and take what is there.
    Alive,
}

/// Whether a service bears to get a request again that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It would be carried out again.
    Never,
    /// It is known from a record, which is complete when the one before can write no more.
    AfterTheEnd,
    /// It does no harm to carry it out again, even twice at a time.
    Always,
}

impl Repeat {
    /// What the flags say that all of a group registered with.
    pub(crate) fn of(flags: u32) -> Repeat {
        if flags & SERVICE_IDEMPOTENT != 0 {
            Repeat::Always
        } else if flags & SERVICE_DEDUP != 0 {
            Repeat::AfterTheEnd
        } else {
            Repeat::Never
        }
    }

    fn allows(self, before: Before) -> bool {
        match self {
            Repeat::Never => false,
            Repeat::AfterTheEnd => before == Before::Final,
            Repeat::Always => true,
        }
    }
}

/// What is to be done with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Send it again, as it was.
    Send,
    /// Its sender is told that it may have been acted on.
    Maybe,
    /// It is done with: nobody waits for an answer.
    Done,
}

/// Decides about a request that has no answer.
pub(crate) fn request(reached: Reached, before: Before, repeat: Repeat) -> Verdict {
    match (reached, before) {
        (Reached::Nowhere, _) | (Reached::Ring, Before::Final) => Verdict::Send,
        (Reached::Ring | Reached::Taken, _) if repeat.allows(before) => Verdict::Send,
        (Reached::Ring, Before::Alive) | (Reached::Taken, _) => Verdict::Maybe,
    }
}

/// Decides about a message that nobody waits for the end of.
pub(crate) fn one_way(reached: Reached, before: Before, repeat: Repeat) -> Verdict {
    match (reached, before) {
        (Reached::Taken, _) => Verdict::Done,
        (Reached::Ring, Before::Alive) if !repeat.allows(before) => Verdict::Done,
        (Reached::Nowhere | Reached::Ring, _) => Verdict::Send,
    }
}

/// How far a message had come whose last frame is at `position`, of whose ring so many are taken.
pub(crate) fn reached(position: Option<u64>, taken: u64) -> Reached {
    match position {
        None => Reached::Nowhere,
        Some(position) if position < taken => Reached::Taken,
        Some(_) => Reached::Ring,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_not_taken_is_sent_again_and_what_was_is_doubtful() {
        use {Before::*, Reached::*, Repeat::*, Verdict::*};
        let table = [
            // reached, before, repeat: a request; a one-way message
            (Nowhere, Final, Never, Send, Send),
            (Nowhere, Final, AfterTheEnd, Send, Send),
            (Nowhere, Final, Always, Send, Send),
            (Nowhere, Alive, Never, Send, Send),
            (Nowhere, Alive, AfterTheEnd, Send, Send),
            (Nowhere, Alive, Always, Send, Send),
            (Ring, Final, Never, Send, Send),
            (Ring, Final, AfterTheEnd, Send, Send),
            (Ring, Final, Always, Send, Send),
            (Ring, Alive, Never, Maybe, Done),
            (Ring, Alive, AfterTheEnd, Maybe, Done),
            (Ring, Alive, Always, Send, Send),
            (Taken, Final, Never, Maybe, Done),
            (Taken, Final, AfterTheEnd, Send, Done),
            (Taken, Final, Always, Send, Done),
            (Taken, Alive, Never, Maybe, Done),
            (Taken, Alive, AfterTheEnd, Maybe, Done),
            (Taken, Alive, Always, Send, Done),
        ];
        for (reached, before, repeat, asked, told) in table {
            let case = (reached, before, repeat);
            assert_eq!(request(reached, before, repeat), asked, "{case:?}");
            assert_eq!(one_way(reached, before, repeat), told, "{case:?}");
        }
    }

    #[test]
    fn who_is_idempotent_needs_no_record() {
        assert_eq!(Repeat::of(0), Repeat::Never);
        assert_eq!(Repeat::of(SERVICE_DEDUP), Repeat::AfterTheEnd);
        assert_eq!(Repeat::of(SERVICE_DEDUP | SERVICE_IDEMPOTENT), Repeat::Always);
    }

    proptest! {
        #[test]
        fn nobody_acts_twice_unless_that_is_allowed(
            position in prop::option::of(0_u64..8),
            taken in 0_u64..9,
            later in 0_u64..9,
            final_ in any::<bool>(),
            repeat in prop::sample::select(vec![
                Repeat::Never, Repeat::AfterTheEnd, Repeat::Always,
            ]),
        ) {
            // One that lives may take more after it was looked at.
            let seen_by_service = if final_ { taken } else { taken + later };
            let before = if final_ { Before::Final } else { Before::Alive };
            let acted = position.is_some_and(|position| position < seen_by_service);
            let harmless = match repeat {
                Repeat::Never => false,
                // The record is read when nothing is added to it any more.
                Repeat::AfterTheEnd => final_,
                Repeat::Always => true,
            };
            let reached = reached(position, taken);
            let again = request(reached, before, repeat) == Verdict::Send;
            prop_assert!(!(acted && again) || harmless);
            let again = one_way(reached, before, repeat) == Verdict::Send;
            prop_assert!(!(acted && again) || harmless);
            // And nothing is given up that nobody can have acted on.
            let doubtful = acted || !final_;
            let again = request(reached, before, Repeat::Never) == Verdict::Send;
            prop_assert!(doubtful || again);
            let again = one_way(reached, before, Repeat::Never) == Verdict::Send;
            prop_assert!(doubtful || again);
        }
    }
}
