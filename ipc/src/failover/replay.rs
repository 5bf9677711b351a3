//! What becomes of a message when the service that it was sent to is gone. Pure.
//!
//! What cannot be known is said, never guessed: a request that was taken may have been carried out.

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
pub(crate) fn request(reached: Reached, before: Before, repeatable: bool) -> Verdict {
    match (reached, before) {
        (Reached::Nowhere, _) | (Reached::Ring, Before::Final) => Verdict::Send,
        (Reached::Ring, Before::Alive) | (Reached::Taken, _) if repeatable => Verdict::Send,
        (Reached::Ring, Before::Alive) | (Reached::Taken, _) => Verdict::Maybe,
    }
}

/// Decides about a message that nobody waits for the end of.
pub(crate) fn one_way(reached: Reached, before: Before, repeatable: bool) -> Verdict {
    match (reached, before) {
        (Reached::Taken, _) => Verdict::Done,
        (Reached::Ring, Before::Alive) if !repeatable => Verdict::Done,
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
        use {Before::*, Reached::*, Verdict::*};
        let table = [
            // reached, before, repeatable: a request; a one-way message
            (Nowhere, Final, false, Send, Send),
            (Nowhere, Final, true, Send, Send),
            (Nowhere, Alive, false, Send, Send),
            (Nowhere, Alive, true, Send, Send),
            (Ring, Final, false, Send, Send),
            (Ring, Final, true, Send, Send),
            (Ring, Alive, false, Maybe, Done),
            (Ring, Alive, true, Send, Send),
            (Taken, Final, false, Maybe, Done),
            (Taken, Final, true, Send, Done),
            (Taken, Alive, false, Maybe, Done),
            (Taken, Alive, true, Send, Done),
        ];
        for (reached, before, repeatable, asked, told) in table {
            let case = (reached, before, repeatable);
            assert_eq!(request(reached, before, repeatable), asked, "{case:?}");
            assert_eq!(one_way(reached, before, repeatable), told, "{case:?}");
        }
    }

    proptest! {
        #[test]
        fn nobody_acts_twice_unless_that_is_allowed(
            position in prop::option::of(0_u64..8),
            taken in 0_u64..9,
            later in 0_u64..9,
            final_ in any::<bool>(),
            repeatable in any::<bool>(),
        ) {
            // One that lives may take more after it was looked at.
            let seen_by_service = if final_ { taken } else { taken + later };
            let before = if final_ { Before::Final } else { Before::Alive };
            let acted = position.is_some_and(|position| position < seen_by_service);
            let reached = reached(position, taken);
            let again = request(reached, before, repeatable) == Verdict::Send;
            prop_assert!(!(acted && again) || repeatable);
            let again = one_way(reached, before, repeatable) == Verdict::Send;
            prop_assert!(!(acted && again) || repeatable);
            // And nothing is given up that nobody can have acted on.
            prop_assert!(acted || !final_ || request(reached, before, false) == Verdict::Send);
            prop_assert!(acted || !final_ || one_way(reached, before, false) == Verdict::Send);
        }
    }
}
