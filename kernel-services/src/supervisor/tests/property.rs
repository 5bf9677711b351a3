//! Random systems, random fates, random orders from outside; [`world`](super::world) judges.

use proptest::prelude::{ProptestConfig, proptest};

use super::{world::World, *};
use crate::supervisor::backoff::Random;

/// Draws numbers and things.
pub(super) struct Draw(Random);

impl Draw {
    pub(super) fn new(seed: u64) -> Draw {
        Draw(Random::new(seed))
    }

    /// Below `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0.bits() % end.max(1)
    }

    pub(super) fn percent(&mut self, share: u64) -> bool {
        self.below(100) < share
    }

    pub(super) fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize].clone()
    }

    /// Up to `most` milliseconds, to the microsecond, in nanoseconds.
    pub(super) fn delay(&mut self, most_ms: u64) -> u64 {
        self.below(most_ms * 1000) * 1000
    }
}

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Some of six services, each needing some that come earlier in a random order.
pub(super) fn any_node(draw: &mut Draw) -> Node {
    let mut names: Vec<&str> = NAMES.into_iter().filter(|_| draw.percent(70)).collect();
    for at in (1..names.len()).rev() {
        names.swap(at, draw.below(at as u64 + 1) as usize);
    }
    let mut services = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let needs: Vec<&str> = names[..at].iter().copied().filter(|_| draw.percent(35)).collect();
        services.push(any_service(name, &needs, draw));
    }
    services.sort_by(|one, other| one.name.cmp(&other.name));
    let mut members: [Vec<&str>; 3] = Default::default();
    for name in NAMES.into_iter().filter(|name| names.contains(name)) {
        members[draw.below(3) as usize].push(name);
    }
    let mut groups = Vec::new();
    for (members, name) in members.iter().zip(["core", "edge"]).filter(|(list, _)| !list.is_empty())
    {
        let strategy = draw.of(&[Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne]);
        let (restarts, within) = (draw.below(5) as u32, ms(50 + draw.below(1000)));
        groups.push(Group { name: name.to_owned(), ..group(members, strategy, restarts, within) });
    }
    Node { services, groups, ..Node::default() }
}

fn any_service(name: &str, needs: &[&str], draw: &mut Draw) -> Service {
    let mut service = service(name, needs);
    service.replicas = draw.of(&[1, 1, 1, 2, 3]);
    service.restart =
        draw.of(&[Restart::Permanent, Restart::Permanent, Restart::Transient, Restart::Temporary]);
    service.readiness.when = draw.of(&[Ready::Runs, Ready::Answers, Ready::Answers, Ready::Exits]);
    service.readiness.within = ms(draw.of(&[20, 50, 100]));
    service.stop_within = ms(draw.of(&[0, 10, 50]));
    service.arguments = vec![draw.of(&["-q", "-v"]).to_owned()];
    service.backoff.first = ms(1 + draw.below(20));
    service.backoff.most = ms(1 + draw.below(200));
    service.backoff.factor = draw.of(&[1.0, 1.5, 2.0]);
    service.backoff.jitter = draw.of(&[0.0, 0.2, 1.0]);
    service.backoff.forget_after = ms(draw.of(&[50, 300]));
    if service.readiness.when == Ready::Answers && draw.percent(50) {
        let (interval, timeout) = (ms(1 + draw.below(40)), ms(1 + draw.below(10)));
        service.watchdog = Some(Watchdog { interval, timeout, failures: 1 + draw.below(3) as u32 });
    }
    service
}

/// `SUPERVISOR_SEED=7 cargo test -p kernel-services one_history` replays what a failure names.
#[test]
fn one_history_again() {
    let seed = std::env::var("SUPERVISOR_SEED").ok().and_then(|seed| seed.parse().ok());
    World::live(seed.unwrap_or(0));
}

proptest! {
    // A seed has nothing to shrink, and is printed.
    #![proptest_config(ProptestConfig {
        max_shrink_iters: 0,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn any_history_keeps_the_promises(seed: u64) {
        World::live(seed);
    }
}
