//! Publishing and subscribing, as told.

use std::{collections::HashMap, time::Duration};

use ipc::{
    Node,
    bus::{
        EventError, EventHead, PublishOptions, Publisher, Start, SubscribeOptions, Subscription,
    },
};
use tests::{LONG, wait_until};

use crate::say;

/// What a node publishes and subscribes to, by the names that the test gave.
#[derive(Default)]
pub(crate) struct Events {
    publishers: HashMap<String, (Publisher, u64)>,
    subscriptions: HashMap<String, Subscription>,
}

impl Events {
    /// - `event-advertise TOPIC [EVENTS]`
    /// - `event-await TOPIC`: until a reliable subscriber is there
    /// - `event-publish TOPIC COUNT SIZE`: numbered events, the next number first in each
    /// - `event-retire TOPIC`
    /// - `event-subscribe TOPIC now|last|N [reliable]`
    /// - `event-take TOPIC COUNT [PAUSE_US]`: so many events, counting what is lost, with a pause
    ///   after each; they must be numbered in order
    /// - `event-next TOPIC TIMEOUT_MS`: what comes next
    /// - `event-leave TOPIC`
    pub(crate) fn act(&mut self, node: &Node, command: &str, words: &[&str]) -> bool {
        match (command, words) {
            ("event-advertise", [topic, rest @ ..]) => {
                let events = rest.first().map(|it| it.parse().expect("a number"));
                say(&match node.publisher(*topic, PublishOptions { events }) {
                    Ok(publisher) => {
                        let id = publisher.topic();
                        self.publishers.insert((*topic).to_owned(), (publisher, 0));
                        format!("advertised {id}")
                    }
                    Err(error) => format!("failed {}", error.status().name()),
                });
            }
            ("event-await", [topic]) => {
                let (publisher, _) = &self.publishers[*topic];
                wait_until("somebody is waited for", || publisher.reliable() > 0);
                say("awaited");
            }
            ("event-publish", [topic, count, size]) => self.publish(topic, count, size),
            ("event-retire", [topic]) => {
                self.publishers.remove(*topic);
                say("retired");
            }
            ("event-subscribe", [topic, start, rest @ ..]) => {
                let start = match *start {
                    "now" => Start::Now,
                    "last" => Start::Last,
                    count => Start::Retained(count.parse().expect("a number")),
                };
                let reliable = Some(rest.contains(&"reliable"));
                say(&match node.subscribe(*topic, SubscribeOptions { start, reliable }) {
                    Ok(subscription) => {
                        self.subscriptions.insert((*topic).to_owned(), subscription);
                        "subscribed".to_owned()
                    }
                    Err(error) => format!("failed {}", error.status().name()),
                });
            }
            ("event-take", [topic, count, rest @ ..]) => {
                let pause = rest.first().map_or(0, |it| it.parse().expect("a number"));
                self.take(topic, count.parse().expect("a number"), Duration::from_micros(pause));
            }
            ("event-next", [topic, timeout]) => {
                let timeout = Duration::from_millis(timeout.parse().expect("a number"));
                let subscription = self.subscriptions.get_mut(*topic).expect("subscribed");
                say(&match subscription.recv(Some(timeout)) {
                    Ok(event) => {
                        format!("event {} {}", event.head.sequence, number(&event.payload))
                    }
                    Err(error) => format!("event {error:?}"),
                });
            }
            ("event-leave", [topic]) => {
                self.subscriptions.remove(*topic);
                say("left");
            }
            _ => return false,
        }
        true
    }

    fn publish(&mut self, topic: &str, count: &str, size: &str) {
        let (publisher, next) = self.publishers.get_mut(topic).expect("advertised");
        let (count, size) = (count.parse::<u64>().expect("a number"), size.parse().expect("one"));
        let mut payload = vec![0x5A; size];
        for _ in 0..count {
            payload[..8].copy_from_slice(&next.to_le_bytes());
            match publisher.publish(&payload) {
                Ok(()) => *next += 1,
                Err(error) => return say(&format!("published {}", error.status().name())),
            }
        }
        say(&format!("published {next}"));
    }

    /// Takes events of each publisher in order until `count`, taken and lost, have passed.
    fn take(&mut self, topic: &str, count: u64, pause: Duration) {
        let subscription = self.subscriptions.get_mut(topic).expect("subscribed");
        let mut payload = Vec::new();
        let (mut taken, mut lost) = (0, 0);
        let mut next: HashMap<u32, u64> = HashMap::new();
        while taken + lost < count {
            payload.clear();
            match subscription.recv_into(&mut payload, Some(LONG)) {
                Ok(EventHead { pid, sequence, .. }) => {
                    let next = next.entry(pid).or_insert(sequence);
                    assert_eq!(*next, sequence, "out of order, or lost unsaid");
                    assert_eq!(number(&payload), sequence);
                    assert!(payload[8..].iter().all(|&byte| byte == 0x5A), "torn");
                    *next += 1;
                    taken += 1;
                    if !pause.is_zero() {
                        std::thread::sleep(pause);
                    }
                }
                Err(EventError::Lagged { count, .. }) => {
                    lost += count;
                    // One publisher only is told to be that fast.
                    for next in next.values_mut() {
                        *next += count;
                    }
                }
                Err(error) => return say(&format!("took {taken} {lost} {error:?}")),
            }
        }
        say(&format!("took {taken} {lost}"));
    }
}

fn number(payload: &[u8]) -> u64 {
    payload.first_chunk().copied().map_or(u64::MAX, u64::from_le_bytes)
}
