//! A process that sandboxes itself once it is connected. The one test of its program: what is
//! denied stays denied.

use ipc::{Config, Spin};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter_all_threads};
use tests::{House, LONG, Watchdog};

/// Denies every thread of this process `membarrier`, as many sandboxes do.
fn deny_membarrier() {
    let filter = SeccompFilter::new(
        [(libc::SYS_membarrier, vec![])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        std::env::consts::ARCH.try_into().expect("an architecture with filters"),
    );
    let program: BpfProgram =
        filter.and_then(SeccompFilter::try_into).expect("a filter of one rule");
    apply_filter_all_threads(&program).expect("any process may deny itself something");
}

#[test]
fn calls_go_on_when_a_sandbox_takes_membarrier_away() {
    let _watchdog = Watchdog::start();
    let config = Config { spin: Spin::Never, ..Config::default() };
    let echo = |request: ipc::Request<'_>| request.reply(request.payload()).expect("replied");
    let house = House::with(&config, 2, echo);
    let client = house.client();
    // Enough of them in a row for this thread to get the turns of the claims.
    let calls = |count| {
        for number in 0..count {
            let sent = u64::to_le_bytes(number);
            assert_eq!(client.call(&sent, LONG).expect("answered"), sent);
        }
    };
    calls(200);
    deny_membarrier();
    calls(20);
    std::thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(|| calls(200))));
    });
    // A channel made afterwards, and one of the other kind of sleep.
    let other = house.other_client();
    assert_eq!(other.call(b"x", LONG).expect("answered"), b"x");
    calls(20);
}
