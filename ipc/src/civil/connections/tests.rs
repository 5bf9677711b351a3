use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use super::*;
use crate::civil::ManualClock;

/// Numbers what it opens, and counts what is open.
#[derive(Clone, Default)]
struct Numbers {
    next: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    is_ill: Arc<AtomicBool>,
    is_shut: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Number {
    number: usize,
    open: Arc<AtomicUsize>,
}

impl Drop for Number {
    fn drop(&mut self) {
        self.open.fetch_sub(1, SeqCst);
    }
}

impl Connector for Numbers {
    type Connection = Number;
    type Error = ();

    fn connect(&self, _: &str) -> Result<Number, ()> {
        if self.is_shut.load(SeqCst) {
            return Err(());
        }
        self.open.fetch_add(1, SeqCst);
        let number = self.next.fetch_add(1, SeqCst);
        Ok(Number { number, open: Arc::clone(&self.open) })
    }

    fn is_healthy(&self, _: &mut Number) -> bool {
        !self.is_ill.load(SeqCst)
    }
}

const NOW: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_hours(1);

fn pool(min_size: usize, max_size: usize) -> (Numbers, ManualClock, Pool) {
    let (numbers, clock) = (Numbers::default(), ManualClock::new());
    let sizes = PoolSizes { min_size, max_size, ..PoolSizes::default() };
    let pool = ConnectionPool::with_clock(numbers.clone(), sizes, clock.clone());
    (numbers, clock, pool)
}

type Pool = ConnectionPool<Numbers, ManualClock>;

#[test]
fn what_comes_back_is_lent_again_and_there_are_not_too_many() {
    let (numbers, _, pool) = pool(0, 2);
    let first = pool.get("a", NOW).expect("a new one");
    let second = pool.get("a", NOW).expect("another");
    assert_eq!((first.number, second.number), (0, 1));
    assert!(matches!(pool.get("a", NOW), Err(PoolError::TimedOut)));
    assert_eq!(pool.get("b", NOW).expect("each address has its own").number, 2);
    drop(first);
    assert_eq!(pool.get("a", NOW).expect("back").number, 0);
    second.discard();
    assert_eq!(pool.len("a"), (1, 1));
    assert_eq!(numbers.open.load(SeqCst), 2);
    drop(pool);
    assert_eq!(numbers.open.load(SeqCst), 0);
}

#[test]
fn one_that_cannot_be_opened_takes_no_place() {
    let (numbers, _, pool) = pool(0, 1);
    numbers.is_shut.store(true, SeqCst);
    for _ in 0..3 {
        assert!(matches!(pool.get("a", NOW), Err(PoolError::Connect(()))));
    }
    assert!(pool.lock().is_empty(), "nor is its address remembered");
    numbers.is_shut.store(false, SeqCst);
    assert!(pool.get("a", NOW).is_ok());
}

#[test]
fn the_idle_are_closed_down_to_the_smallest_number() {
    let (numbers, clock, pool) = pool(1, 3);
    let all: Vec<_> = (0..3).map(|_| pool.get("a", NOW).expect("room")).collect();
    drop(all);
    clock.advance(Duration::from_secs(59));
    pool.tend();
    assert_eq!(pool.len("a"), (3, 3));
    clock.advance(Duration::from_secs(1));
    pool.tend();
    assert_eq!((pool.len("a"), numbers.open.load(SeqCst)), ((1, 1), 1));
}

#[test]
fn the_ill_are_replaced() {
    let (numbers, clock, pool) = pool(2, 3);
    drop(pool.get("a", NOW).expect("room"));
    pool.tend();
    assert_eq!(pool.len("a"), (2, 2), "as many as are to be there");
    numbers.is_ill.store(true, SeqCst);
    assert!(pool.get("a", NOW).expect("not asked so soon").number < 2);
    clock.advance(Duration::from_secs(10));
    let fresh = pool.get("a", NOW).expect("a new one");
    assert_eq!((fresh.number, numbers.open.load(SeqCst)), (2, 1));
    drop(fresh);
    clock.advance(Duration::from_secs(10));
    pool.tend();
    assert_eq!((pool.len("a"), numbers.open.load(SeqCst)), ((2, 2), 2));
    assert!(pool.get("a", NOW).expect("a new one").number >= 3);
}

#[test]
fn who_waits_gets_one_in_the_order_of_asking() {
    let (_, _, pool) = pool(0, 1);
    let held = pool.get("a", NOW).expect("room");
    let order = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for place in 0..4_usize {
            let (pool, order) = (&pool, &order);
            scope.spawn(move || {
                let lent = pool.get("a", LONG).expect("in time");
                order.lock().expect("nobody panics").push(place);
                drop(lent);
            });
            while pool.lock()["a"].waiting.len() <= place {
                thread::yield_now();
            }
        }
        assert!(matches!(pool.get("a", NOW), Err(PoolError::TimedOut)), "nobody jumps the queue");
        drop(held);
    });
    assert_eq!(*order.lock().expect("nobody panics"), [0, 1, 2, 3]);
    assert!(pool.lock()["a"].waiting.is_empty());
}

#[test]
fn who_waits_too_long_leaves_the_others_their_places() {
    let (_, clock, pool) = pool(0, 1);
    let held = pool.get("a", NOW).expect("room");
    thread::scope(|scope| {
        let impatient = scope.spawn(|| pool.get("a", LONG / 2).map(drop));
        while pool.lock()["a"].waiting.is_empty() {
            thread::yield_now();
        }
        let patient = scope.spawn(|| pool.get("a", LONG).map(drop));
        while pool.lock()["a"].waiting.len() < 2 {
            thread::yield_now();
        }
        clock.advance(LONG / 2);
        // The clock does not say that it was moved; the pool is told to look.
        while !impatient.is_finished() {
            pool.tend();
        }
        assert_eq!(impatient.join().expect("no panic"), Err(PoolError::TimedOut));
        drop(held);
        assert_eq!(patient.join().expect("no panic"), Ok(()));
    });
}
