//! A queue from its log.

use std::collections::BTreeMap;

use super::{Limits, Machine, Now};
use crate::{
    record::{Record, Stored},
    windows::Windows,
};

impl Machine {
    /// Makes a queue as its records say it was. Who had a message has it for a whole lease from
    /// now on: it may be at work, and comes back.
    pub fn recover(limits: Limits, records: &[Record], now: Now) -> Machine {
        let mut machine = Machine::new(limits);
        let mut messages: BTreeMap<u64, (Stored, Option<u64>)> = BTreeMap::new();
        for record in records {
            match record {
                Record::Checkpoint { next_id, windows } => {
                    machine.next_id = machine.next_id.max(*next_id);
                    machine.windows = Windows::new(limits.producers as usize);
                    for (producer, window) in windows {
                        machine.windows.restore(*producer, *window);
                    }
                }
                Record::Put(stored) => {
                    if stored.producer != 0 {
                        machine.windows.mark(stored.producer, stored.sequence);
                    }
                    machine.next_id = machine.next_id.max(stored.id + 1);
                    messages.insert(stored.id, (stored.clone(), None));
                }
                Record::Moved(stored) => {
                    machine.next_id = machine.next_id.max(stored.id + 1);
                    messages.insert(stored.id, (stored.clone(), None));
                }
                Record::Gone { ids } => ids.iter().for_each(|id| drop(messages.remove(id))),
                Record::Taken { id, .. } | Record::Back { id, .. } | Record::Dead { id } => {
                    if let Some((stored, holder)) = messages.get_mut(id) {
                        *holder = change(stored, record);
                    }
                }
                // What requests are read by, before they come here.
                Record::Secret(_) => {}
                Record::Redriven { ids } => {
                    for id in ids {
                        if let Some((stored, _)) = messages.get_mut(id) {
                            stored.dead = false;
                            stored.attempts = 0;
                        }
                    }
                }
            }
        }
        let until_ns = now.after_ms(limits.lease_ms);
        for (id, (stored, holder)) in messages {
            machine.pile.insert(stored, now);
            if let Some(consumer) = holder {
                machine.pile.hold(id, consumer, until_ns);
            }
        }
        machine
    }

    /// Other messages had the ids below, as far as anybody can tell.
    pub fn give_no_id_below(&mut self, id: u64) {
        self.next_id = self.next_id.max(id);
    }
}

/// Notes what happened to a message; gives who has it now.
fn change(stored: &mut Stored, record: &Record) -> Option<u64> {
    match record {
        Record::Taken { attempt, consumer, .. } => {
            stored.attempts = *attempt;
            Some(*consumer)
        }
        Record::Back { not_before_ms, .. } => {
            stored.not_before_ms = *not_before_ms;
            None
        }
        Record::Dead { .. } => {
            stored.dead = true;
            stored.not_before_ms = 0;
            None
        }
        _ => None,
    }
}
