use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn ledger() -> Ledger {
    let users = Quota { names: Some(5), messages_per_second: Some(4), ..Quota::default() };
    let mut ledger = Ledger::new(users);
    let service = Quota { names: Some(3), messages_per_second: Some(2), ..Quota::default() };
    ledger.limit_services([("echo".into(), service)].into());
    ledger
}

fn echo() -> Payer {
    Payer::new(7, Some("echo"))
}

#[test]
fn a_service_pays_from_its_own_account_and_its_user_s() {
    let mut ledger = ledger();
    let (own, user) = (Account::Service("echo".into()), Account::User(7));
    let first = ledger.charge(&echo(), Kind::Names, 2).expect("room");
    assert_eq!([ledger.held(&own, Kind::Names), ledger.held(&user, Kind::Names)], [2, 2]);
    let over = ledger.charge(&echo(), Kind::Names, 2).expect_err("3 are allowed");
    assert_eq!(over, Over { who: own.clone(), kind: Kind::Names, limit: 3, held: 2, asked: 2 });
    let other = ledger.charge(&Payer::new(7, None), Kind::Names, 3).expect("room");
    let over = ledger.charge(&echo(), Kind::Names, 1).expect_err("the user has 5");
    assert_eq!((over.who, over.limit, over.held), (user.clone(), 5, 5));
    // What one account refused is charged to neither.
    assert_eq!([ledger.held(&own, Kind::Names), ledger.held(&user, Kind::Names)], [2, 5]);
    ledger.release(first);
    ledger.release(other);
    ledger.assert_settled();
}

#[test]
fn users_do_not_pay_for_each_other() {
    let mut ledger = ledger();
    let (one, two) = (Payer::new(1, None), Payer::new(2, None));
    let first = ledger.charge(&one, Kind::Names, 5).expect("room");
    let second = ledger.charge(&two, Kind::Names, 5).expect("room of its own");
    assert!(ledger.charge(&one, Kind::Channels, 5).map(|it| ledger.release(it)).is_ok());
    ledger.release(first);
    ledger.release(second);
    ledger.assert_settled();
}

#[test]
#[should_panic(expected = "never released: [(User(1), HalfOpen, 1)]")]
fn what_is_not_released_is_found_at_teardown() {
    let mut ledger = ledger();
    let charge = ledger.charge(&Payer::new(1, None), Kind::HalfOpen, 1).expect("room");
    drop(charge);
    ledger.assert_settled();
}

#[test]
fn an_amount_that_overflows_is_refused() {
    let quota = Quota { shared_bytes: Some(u64::MAX), ..Quota::default() };
    let mut ledger = Ledger::new(quota);
    let payer = Payer::new(1, None);
    let all = ledger.charge(&payer, Kind::SharedBytes, u64::MAX).expect("allowed");
    assert!(ledger.charge(&payer, Kind::SharedBytes, 1).is_err());
    assert_eq!((all.kind(), all.amount()), (Kind::SharedBytes, u64::MAX));
    ledger.release(all);
    ledger.assert_settled();
    assert!(ledger.charge(&payer, Kind::Messages, 1).is_err(), "messages are not held");
}

#[test]
fn a_quota_that_says_nothing_is_the_runtime_s_bound() {
    let ledger = Ledger::new(Quota::default());
    for (account, kind) in [
        (Account::User(1), Kind::Names),
        (Account::Service("unknown".into()), Kind::Messages),
        (Account::User(1), Kind::SharedBytes),
    ] {
        let limit = ledger.limit(&account, kind);
        assert!(limit > 0 && limit < u64::MAX, "{account}: {limit} {}", kind.name());
    }
}

#[test]
fn a_lower_limit_takes_nothing_away() {
    let mut ledger = ledger();
    let payer = Payer::new(1, None);
    let held = ledger.charge(&payer, Kind::Names, 5).expect("room");
    ledger.limit_users(Quota { names: Some(1), ..Quota::default() });
    assert_eq!(ledger.charge(&payer, Kind::Names, 1).expect_err("over").held, 5);
    ledger.release(held);
    let one = ledger.charge(&payer, Kind::Names, 1).expect("room again");
    ledger.release(one);
    ledger.limit_services(HashMap::new());
    assert_eq!(ledger.limit(&Account::Service("echo".into()), Kind::Names), 16_384);
}

#[test]
fn messages_come_at_their_rate_with_a_burst_of_a_second() {
    let mut ledger = ledger();
    let payer = echo();
    let now = 5 * SECOND;
    ledger.admit(&payer, now).expect("first of two");
    ledger.admit(&payer, now).expect("second of two");
    let over = ledger.admit(&payer, now).expect_err("none left");
    assert_eq!(
        (over.who, over.kind, over.limit),
        (Account::Service("echo".into()), Kind::Messages, 2)
    );
    assert!(ledger.admit(&payer, now + SECOND / 2 - 1).is_err());
    ledger.admit(&payer, now + SECOND / 2).expect("two a second");
    assert!(ledger.admit(&payer, now).is_err(), "a clock that goes back gives nothing");
    assert!(ledger.admit(&payer, now + SECOND / 2).is_err(), "nor when it comes forward again");
    // The refused ones cost the user nothing: of 4 it has used 3, and refilled 2.
    let other = Payer::new(7, None);
    (0..3).for_each(|_| ledger.admit(&other, now + SECOND / 2).expect("the user's own"));
    assert_eq!(ledger.admit(&other, now + SECOND / 2).expect_err("used up").who, Account::User(7));
    ledger.admit(&other, now + 99 * SECOND).expect("full again");
    (0..4).for_each(|_| ledger.admit(&other, now + 199 * SECOND).expect("full, and not fuller"));
    assert!(ledger.admit(&other, now + 199 * SECOND).is_err());
}

#[test]
fn an_idle_account_is_forgotten_only_once_that_changes_nothing() {
    let mut ledger = ledger();
    let payer = echo();
    ledger.admit(&payer, 0).expect("full");
    ledger.forget_idle(1);
    assert_eq!(ledger.books.len(), 2, "a new bucket would be full");
    let charge = ledger.charge(&Payer::new(9, None), Kind::Names, 1).expect("room");
    ledger.forget_idle(SECOND);
    assert_eq!(ledger.books.keys().collect::<Vec<_>>(), [&Account::User(9)]);
    ledger.release(charge);
    ledger.forget_idle(SECOND);
    assert!(ledger.books.is_empty());
}

fn anything() -> impl Strategy<Value = (u32, Option<&'static str>, usize, u64, bool)> {
    let service = prop::option::of(prop::sample::select(vec!["a", "b"]));
    (0..2u32, service, 0..Kind::HELD.len(), 0..6u64, any::<bool>())
}

proptest! {
    #[test]
    fn sums_are_right_never_over_and_zero_at_the_end(
        steps in prop::collection::vec((anything(), any::<prop::sample::Index>()), 0..120)
    ) {
        let quota = Quota {
            names: Some(10), channels: Some(9), descriptors: Some(8), shared_bytes: Some(7),
            half_open: Some(6), messages_per_second: None,
        };
        let mut ledger = Ledger::new(quota);
        ledger.limit_services([("a".into(), Quota { names: Some(4), ..quota })].into());
        let mut held: Vec<Charge> = Vec::new();
        for ((uid, service, kind, amount, releases), which) in steps {
            if releases && !held.is_empty() {
                ledger.release(held.swap_remove(which.index(held.len())));
            } else if let Ok(charge) =
                ledger.charge(&Payer::new(uid, service), Kind::HELD[kind], amount)
            {
                held.push(charge);
            } else {
                // Refused rightly: some account of the payer would be over.
                let payer = Payer::new(uid, service);
                let kind = Kind::HELD[kind];
                let sum = |it: &Account| ledger.held(it, kind) + amount;
                prop_assert!(payer.accounts().any(|it| sum(it) > ledger.limit(it, kind)));
            }
            let users = [0, 1].map(Account::User);
            let services = ["a", "b"].map(|name| Account::Service(name.into()));
            for account in users.into_iter().chain(services) {
                for kind in Kind::HELD {
                    let mine = |it: &&Charge| {
                        it.kind == kind && it.payer.accounts().any(|payer| *payer == account)
                    };
                    let sum: u64 = held.iter().filter(mine).map(|it| it.amount).sum();
                    prop_assert_eq!(ledger.held(&account, kind), sum);
                    prop_assert!(sum <= ledger.limit(&account, kind));
                }
            }
        }
        for charge in held {
            ledger.release(charge);
        }
        ledger.assert_settled();
    }
}
