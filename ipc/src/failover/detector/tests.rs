//! The detector, on a simulated clock.

use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;

fn fresh() -> Detector {
    Detector::new(HealthCheck::default())
}

/// Looks whenever it is time, from `now` to `until`; gives the times at which it asked, and those
/// at which it suspected.
fn run(it: &mut Detector, mut now: u64, until: u64, count: u64) -> (Vec<u64>, Vec<u64>) {
    let (since, mut asked, mut suspected) = (now, Vec::new(), Vec::new());
    while now < until {
        let advice = it.look(now, since, count);
        match advice {
            Advice::Wait(_) => {}
            Advice::Ask(_) => asked.push(now),
            Advice::Suspect(_) => suspected.push(now),
        }
        assert!(advice.until_ns() > now, "it would look again at once");
        now = advice.until_ns();
    }
    (asked, suspected)
}

#[test]
fn one_that_is_silent_is_suspected_after_interval_and_missed_answers() {
    let (asked, suspected) = run(&mut fresh(), 100 * MS, 130 * MS, 7);
    assert_eq!(asked, [110, 115, 120].map(|at| at * MS));
    assert_eq!(suspected, [125 * MS]);
}

#[test]
fn one_that_answers_is_asked_less_than_once_an_interval_and_never_suspected() {
    let mut it = fresh();
    let (mut now, mut asked) = (0, 0);
    while now < 1000 * MS {
        match it.look(now, 0, 0) {
            Advice::Wait(until) => now = until,
            Advice::Ask(_) => {
                asked += 1;
                it.answered(now + MS);
                now += MS;
            }
            Advice::Suspect(_) => panic!("suspected at {now}"),
        }
    }
    assert!((80..=100).contains(&asked), "{asked}");
}

#[test]
fn what_comes_of_its_own_accord_counts_as_an_answer() {
    let mut it = fresh();
    for count in 0..1000 {
        let now = count * 9 * MS;
        assert!(matches!(it.look(now, 0, count + 1), Advice::Wait(_)));
    }
}

#[test]
fn a_caller_that_has_just_come_waits_for_the_interval_though_nothing_was_heard_for_long() {
    let mut it = fresh();
    it.answered(0);
    assert_eq!(it.look(500 * MS, 500 * MS, 0), Advice::Wait(510 * MS));
}

#[test]
fn a_suspicion_is_told_again_but_ever_more_rarely() {
    let (_, suspected) = run(&mut fresh(), 0, 60_000 * MS, 0);
    let pauses: Vec<u64> = suspected.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert!(pauses[0] < 50 * MS, "{pauses:?}");
    assert_eq!(pauses.last(), Some(&MOST_PAUSE_NS));
    assert!(suspected.len() < 100, "{}", suspected.len());
}

#[test]
fn one_that_is_known_to_answer_late_is_given_more_time() {
    let mut it = fresh();
    let mut now = 0;
    // Its answers take 14 ms: within what is allowed, but barely.
    while it.answers.count < WINDOW {
        match it.look(now, 0, 0) {
            Advice::Wait(until) => now = until,
            Advice::Ask(_) => {
                now += 14 * MS;
                it.answered(now);
            }
            Advice::Suspect(_) => panic!("suspected at {now}"),
        }
    }
    let (_, suspected) = run(&mut it, now, now + 200 * MS, 0);
    let first = suspected.first().expect("suspected in the end") - now;
    assert!((26 * MS..=75 * MS).contains(&first), "{first}");
}

#[test]
fn phi_rises_with_silence() {
    let mut answers = Answers::default();
    for took in 0..40 {
        answers.push(2 * MS + took % 7 * 100_000);
    }
    let phis: Vec<f64> = (0..100).map(|ms| answers.phi(ms * MS)).collect();
    assert!(phis.is_sorted(), "{phis:?}");
    assert!(phis[1] < 1.0 && phis[2] < 1.0 && phis[20] > PHI, "{phis:?}");
}

fn checks() -> impl Strategy<Value = HealthCheck> {
    (1..200_u32, 1..200_u32, 1..10_u32).prop_map(|(interval_ms, timeout_ms, threshold)| {
        HealthCheck { interval_ms, timeout_ms, threshold, busy_ms: 0 }
    })
}

proptest! {
    /// Whatever it answered before: one that falls silent is suspected, within a bound that the
    /// check sets, and not before the time that the check allows.
    #[test]
    fn silence_is_found_out_in_bounded_time(
        health in checks(),
        before in prop::collection::vec(0..2000 * MS, 0..100),
    ) {
        let mut it = Detector::new(health);
        let mut now = 0;
        for late in before {
            now = match it.look(now, 0, 0) {
                Advice::Ask(_) => {
                    it.answered(now + late);
                    now + late
                }
                advice => advice.until_ns(),
            };
        }
        it.asked = None;
        it.heard_ns = now;
        let (interval, silence) = (ms(health.interval_ms), ms(health.silence_ms()));
        let most = interval + silence * MOST_PATIENCE + 2 * ms(health.timeout_ms);
        let (_, suspected) = run(&mut it, now, now + most + 1, 0);
        let first = suspected.first().map(|at| at - now);
        prop_assert!(first.is_some_and(|at| (interval + silence..=most).contains(&at)));
    }

    /// One that answers each question before the time is over is never suspected, whatever the
    /// order in which several callers look.
    #[test]
    fn one_that_answers_in_time_is_never_suspected(
        health in checks(),
        steps in prop::collection::vec((0..20 * MS, 0..1000_u64), 1..500),
    ) {
        let mut it = Detector::new(health);
        let (mut now, mut due) = (0_u64, None::<u64>);
        for (pause, late) in steps {
            now += pause;
            if due.is_some_and(|at| at <= now) {
                it.answered(due.take().expect("just seen"));
            }
            match it.look(now, 0, 0) {
                Advice::Ask(_) if due.is_none() => {
                    due = Some(now + late * ms(health.timeout_ms) / 1001);
                }
                Advice::Suspect(_) => prop_assert!(false, "suspected at {now}"),
                Advice::Ask(_) | Advice::Wait(_) => {}
            }
        }
    }
}
