//! The steward: writes journals, and watches the clock. While it is at the disk, requests go on
//! and gather for its next turn: so many of them share one sync.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    house::{Batch, now},
    log::files::{FileLog, Work, Writer},
    machine::Event,
    service::Desk,
};

/// How long it sleeps when nothing is due.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// What only the steward touches.
#[derive(Debug)]
pub struct Steward {
    desk: Arc<Desk>,
    writer: Writer,
    /// By queue.
    journals: HashMap<usize, FileLog>,
    stop: Arc<AtomicBool>,
}

impl Steward {
    /// Takes care of these queues' journals, until told to stop.
    pub fn new(
        desk: Arc<Desk>,
        writer: Writer,
        journals: HashMap<usize, FileLog>,
        stop: Arc<AtomicBool>,
    ) -> Steward {
        Steward { desk, writer, journals, stop }
    }

    /// Works.
    pub fn run(&mut self) {
        while !self.stop.load(Ordering::Acquire) {
            let batches = self.next_batches();
            self.store(batches);
        }
    }

    /// Waits until there is something to store, letting time pass for the queues.
    fn next_batches(&self) -> Vec<Batch> {
        let mut house = self.desk.house();
        loop {
            let now = now();
            house.tick(now);
            let batches = house.take_batches();
            if !batches.is_empty() || self.stop.load(Ordering::Acquire) {
                house.steward_at = 0;
                return batches;
            }
            let longest = now.mono_ns.saturating_add(LONGEST_NS);
            let at = house.deadline_ns().unwrap_or(longest).min(longest);
            house.steward_at = at;
            let left = Duration::from_nanos(at.saturating_sub(now.mono_ns));
            let waited = self.desk.bell.wait_timeout(house, left);
            house = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
            house.steward_at = 0;
        }
    }

    fn store(&mut self, batches: Vec<Batch>) {
        let mut by_queue: HashMap<usize, Batch> =
            batches.into_iter().map(|batch| (batch.queue, batch)).collect();
        let mut work = Vec::with_capacity(by_queue.len());
        let mut facts = Vec::with_capacity(by_queue.len());
        for (queue, log) in &mut self.journals {
            let Some(Batch { records, before, .. }) = by_queue.remove(queue) else { continue };
            facts.push((*queue, before, before + records.len() as u64));
            work.push(Work { log, records, outcome: (0, None) });
        }
        self.writer.commit(&mut work);
        let outcomes: Vec<_> = work.into_iter().map(|it| it.outcome).collect();
        let now = now();
        let mut house = self.desk.house();
        for ((queue, before, appended), (stored, trouble)) in facts.into_iter().zip(outcomes) {
            let Some(log) = self.journals.get_mut(&queue) else { continue };
            if let Some(trouble) = trouble {
                eprintln!("ipc-queue: a journal could not be written: {trouble:?}");
            }
            let failed = trouble.map(|trouble| (appended, trouble));
            house.stored(queue, before + stored, failed, log.segments(), now);
            let to_move = log.to_move();
            if !to_move.is_empty() {
                house.tell(queue, Event::Move(to_move), None, now);
            }
        }
    }
}
