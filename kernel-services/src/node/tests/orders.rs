//! Start and stop in the order of dependencies.

use proptest::prelude::*;

use super::{super::*, any, node};

fn named(waves: &[Vec<&Service>]) -> Vec<Vec<String>> {
    waves.iter().map(|wave| wave.iter().map(|it| it.name.clone()).collect()).collect()
}

#[test]
fn services_start_as_early_as_they_can_and_stop_in_reverse() {
    let node = node(
        r#"
        [service.api]
        executable = "x"
        depends_on = ["chain", "auth"]
        [service.metrics]
        executable = "x"
        [service.chain]
        executable = "x"
        depends_on = ["storage"]
        [service.auth]
        executable = "x"
        depends_on = ["storage"]
        [service.storage]
        executable = "x"
        "#,
    );
    let started = named(&start_order(&node.services));
    assert_eq!(started, [vec!["metrics", "storage"], vec!["chain", "auth"], vec!["api"]]);
    let stopped = named(&stop_order(&node.services));
    assert_eq!(stopped, [vec!["api"], vec!["auth", "chain"], vec!["storage", "metrics"]]);
    assert!(start_order(&[]).is_empty());
}

#[test]
fn unchecked_services_are_not_lost() {
    let service = |name: &str, depends_on: &str| Service {
        depends_on: vec![depends_on.to_owned()],
        ..parse::defaults(name.to_owned(), "/".into())
    };
    let services = [service("a", "b"), service("b", "a"), service("c", "nobody")];
    assert_eq!(named(&start_order(&services)), [vec!["c"], vec!["a", "b"]]);
}

proptest! {
    #[test]
    fn everybody_starts_once_and_after_what_it_depends_on(node in any::node()) {
        let mut ready = Vec::new();
        for wave in start_order(&node.services) {
            for service in &wave {
                prop_assert!(service.depends_on.iter().all(|name| ready.contains(name)));
            }
            // None of them could have been in the wave before.
            let early = |it: &&Service| it.depends_on.is_empty();
            prop_assert!(ready.is_empty() || !wave.iter().any(early));
            ready.extend(wave.iter().map(|service| service.name.clone()));
        }
        ready.sort();
        let mut names: Vec<_> = node.services.iter().map(|it| it.name.clone()).collect();
        names.sort();
        prop_assert_eq!(ready, names);
    }
}
