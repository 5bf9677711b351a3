//! `ipcd` may die at any time: what runs goes on, and the next one takes it over.

use tests::duet::{Duet, Programs};

const PROGRAMS: Programs = Programs {
    ipcd: env!("CARGO_BIN_EXE_ipcd-under-test"),
    probe: env!("CARGO_BIN_EXE_probe"),
    actor: env!("CARGO_BIN_EXE_actor"),
};

#[test]
fn not_one_call_fails_while_ipcd_is_killed_twenty_times() {
    let (duet, mut ipcd) = Duet::start(PROGRAMS, &[], &[]);
    for round in 0..20 {
        ipcd.kill();
        duet.flow();
        ipcd = duet.again();
        // Every other one dies before it has seen all come back.
        if round % 2 == 0 {
            duet.assert_as_before(&ipcd);
        }
    }
    duet.assert_as_before(&ipcd);
    assert_eq!(duet.runtimes(), [ipcd.pid()]);
    duet.end(ipcd);
}
