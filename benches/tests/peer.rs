//! The harness with its real second process.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BENCH: &str = env!("CARGO_BIN_EXE_bench");

#[test]
fn the_floor_is_measured_and_saved() {
    let json = std::env::temp_dir().join(format!("bench-{}.json", std::process::id()));
    let output = Command::new(BENCH)
        .args(["floor", "--seconds", "0.02", "--json"])
        .arg(&json)
        .output()
        .expect("bench starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("cache line"));

    let saved = fs::read(&json).expect("a file of figures");
    fs::remove_file(&json).expect("the file was there");
    let report: serde_json::Value = serde_json::from_slice(&saved).expect("JSON");
    let rows = report["groups"][0]["rows"].as_array().expect("rows");
    assert!(rows[0]["p50"].as_u64().expect("a latency") > 0);
    assert!(rows.iter().all(|row| row["p95"].is_u64() != row["per_second"].is_f64()));
}

#[test]
fn a_dead_peer_ends_the_benchmark() {
    let mut bench = Command::new(BENCH)
        .args(["floor", "--seconds", "3600"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("bench starts");
    let mut progress = BufReader::new(bench.stderr.take().expect("standard error is piped"));
    progress.read_line(&mut String::new()).expect("a line of progress");

    let children = format!("/proc/{0}/task/{0}/children", bench.id());
    let peer = loop {
        let listed = fs::read_to_string(&children).expect("the kernel lists children");
        if let Some(pid) = listed.split_whitespace().next() {
            break Pid::from_raw(pid.parse().expect("a process id"));
        }
        std::thread::yield_now();
    };
    kill(peer, Signal::SIGKILL).expect("the peer is alive");

    let mut said = String::new();
    progress.read_to_string(&mut said).expect("standard error to its end");
    assert!(!bench.wait().expect("bench ends").success());
    assert!(said.contains("died"), "{said}");
}
