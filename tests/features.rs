//! Kernels and sandboxes that lack something: processes that have it and processes that have not
//! call each other, and `ipctl doctor` says what is used instead.
//! `scripts/features.sh` runs the other tests on such kernels.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;
use tests::{World, proc, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const WITHOUT: &str = env!("CARGO_BIN_EXE_without");
/// Around a cell, a frame, and a message of many.
const SIZES: &str = "0,48,49,1000,20000";

/// What a kernel may lack, and the checks of the doctor that then report a fallback.
const KERNELS: [(&str, &[&str]); 7] = [
    ("membarrier", &["membarrier"]),
    ("futex_waitv", &["futex_waitv"]),
    ("io_uring", &[]),
    ("noexec_seal", &["noexec_seal"]),
    ("pidfd", &["pidfd", "peer_pidfd"]),
    ("peerpidfd", &["peer_pidfd"]),
    ("all", &["membarrier", "futex_waitv", "noexec_seal", "pidfd", "peer_pidfd"]),
];

/// Calls with one end on a kernel that lacks something; either end dies, and the other hears.
fn meet(kernel: &str, spin: &str) {
    let world = World::new(ACTOR);
    let wrapper = [WITHOUT, kernel, "--"];
    for lacking_client in [true, false] {
        let (of_server, of_client): (&[&str], &[&str]) =
            if lacking_client { (&[], &wrapper) } else { (&wrapper, &[]) };
        let mut server = world.actor_under(of_server, &[spin]);
        server.ask("serve echo 1", "serving");
        let mut client = world.actor_under(of_client, &[spin]);
        client.ask(&format!("calls echo 3 40 {SIZES}"), "called");
        let before = proc::holdings(server.pid());
        let mut mortal = world.actor_under(of_client, &[spin]);
        mortal.ask("calls echo 1 1 8", "called");
        mortal.kill();
        wait_until("nothing is left of the client", || {
            proc::holdings(server.pid()).is_within(&before)
        });
        client.tell("ask echo - !hold");
        server.hear("held");
        server.kill();
        // The server had taken the request.
        assert_eq!(client.hear("failed"), "IPC_EMAYBE", "without {kernel}");
    }
}

#[test]
fn processes_with_and_without_membarrier_meet() {
    meet("membarrier", "spin=never");
    meet("membarrier", "spin=learned");
}

#[test]
fn processes_with_and_without_futex_waitv_meet() {
    meet("futex_waitv", "spin=never");
    meet("futex_waitv", "spin=learned");
}

#[test]
fn processes_with_and_without_pidfds_and_the_rest_meet() {
    meet("pidfd,noexec_seal,io_uring", "spin=learned");
    meet("all", "spin=learned");
}

/// Runs the doctor on a kernel that lacks something, with a runtime that answers.
fn examine(world: &World, kernel: Option<&str>) -> (Option<i32>, Value) {
    let ipctl = Path::new(ACTOR).with_file_name("ipctl");
    assert!(ipctl.exists(), "build it first: cargo build -p ipctl");
    let mut command = match kernel {
        None => Command::new(ipctl),
        Some(kernel) => {
            let mut command = Command::new(WITHOUT);
            command.args([kernel, "--"]).arg(ipctl);
            command
        }
    };
    command.args(["doctor", "--json", "--runtime-dir"]).arg(world.directory());
    let output = command.stdin(Stdio::null()).output().expect("the doctor");
    let report = serde_json::from_slice(&output.stdout).expect("JSON");
    (output.status.code(), report)
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let mut checks = report["checks"].as_array().into_iter().flatten();
    checks.find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {report}"))
}

#[test]
fn the_doctor_says_what_is_used_instead() {
    let world = World::new(ACTOR);
    for (kernel, lacking) in KERNELS {
        let (code, report) = examine(&world, Some(kernel));
        assert_eq!(code, Some(0), "fallbacks suffice: {report}");
        for name in lacking {
            let check = check(&report, name);
            assert_eq!(check["state"], "fallback", "without {kernel}: {report}");
            for what in ["instead", "cost", "hint"] {
                assert!(check[what].is_string(), "without {kernel}, {what}: {check}");
            }
        }
        assert_eq!(report["verdict"] == "works", lacking.is_empty() && has_everything(&world));
        assert_eq!(check(&report, "runtime")["state"], "ok");
    }
    let (_, report) = examine(&world, Some("io_uring"));
    assert_eq!(check(&report, "io_uring")["state"], "unused");
    assert_eq!(
        check(&report, "io_uring")["found"],
        "not there: ipc-queue writes its journals by pwrite and fdatasync"
    );
}

/// Whether this machine itself lacks nothing.
fn has_everything(world: &World) -> bool {
    examine(world, None).1["verdict"] == "works"
}

#[test]
fn the_doctor_agrees_with_the_library() {
    let world = World::new(ACTOR);
    let (code, report) = examine(&world, None);
    let features = ipc::features();
    for (name, there) in [
        ("membarrier", features.membarrier),
        ("futex_waitv", features.futex_waitv),
        ("noexec_seal", features.noexec_seal),
        ("pidfd", features.pidfd || features.peer_pidfd),
        ("peer_pidfd", features.peer_pidfd),
    ] {
        let expected = if there { "ok" } else { "fallback" };
        assert_eq!(check(&report, name)["state"], expected, "{report}");
    }
    assert_eq!(code, Some(0), "{report}");
}

#[test]
fn without_memory_to_share_the_doctor_says_that_calls_go_over_sockets() {
    let world = World::new(ACTOR);
    for kernel in ["future_write", "memfd"] {
        let (code, report) = examine(&world, Some(kernel));
        assert_eq!(code, Some(0), "sockets suffice: {report}");
        let check = check(&report, "future_write");
        assert_eq!(check["state"], "fallback", "without {kernel}: {report}");
        assert!(check["instead"].as_str().is_some_and(|it| it.contains("socket")), "{check}");
    }
}
