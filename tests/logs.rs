//! The files of services' output: whose they are, how they are rotated under a writer, and what
//! their ends say.

use std::{
    fs::{self, File},
    io::Write,
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, symlink},
    },
    sync::atomic::{AtomicBool, Ordering},
};

use kernel_services::{
    logs::{LogError, Logs},
    node::{Log, LogFormat},
};
use nix::{
    fcntl::{FallocateFlags, fallocate},
    sys::stat::Mode,
    unistd::mkfifo,
};
use tests::Watchdog;

const LOG: Log = Log { format: LogFormat::Text, rotate_at: 1000, keep: 3 };

fn logs() -> (tempfile::TempDir, Logs) {
    let directory = tempfile::tempdir().expect("a directory");
    let logs = Logs::open(&directory.path().join("made/here")).expect("logs");
    (directory, logs)
}

#[test]
fn a_log_is_its_owner_s_alone_and_only_grows() {
    let (directory, logs) = logs();
    let path = directory.path().join("made/here/a.log");
    for line in ["one\n", "two\n"] {
        File::from(logs.append("a").expect("opened")).write_all(line.as_bytes()).expect("written");
    }
    assert_eq!(fs::read_to_string(&path).expect("read"), "one\ntwo\n");
    assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
    let made = fs::metadata(directory.path().join("made/here")).expect("there");
    assert_eq!(made.mode() & 0o777, 0o700);
}

#[test]
fn links_and_devices_are_not_followed() {
    let _watchdog = Watchdog::start();
    let (directory, logs) = logs();
    let here = directory.path().join("made/here");
    let target = directory.path().join("precious");
    fs::write(&target, "precious\n").expect("written");
    symlink(&target, here.join("soft.log")).expect("linked");
    fs::hard_link(&target, here.join("hard.log")).expect("linked");
    mkfifo(&here.join("pipe.log"), Mode::S_IRUSR | Mode::S_IWUSR).expect("made");
    fs::create_dir(here.join("dir.log")).expect("made");
    for name in ["soft", "hard", "pipe", "dir"] {
        for refused in [
            logs.append(name).map(drop),
            logs.rotate(name, &Log { rotate_at: 0, ..LOG }).map(drop),
            logs.last_lines(name, 1).map(drop),
        ] {
            // A directory can be opened to be read, and is refused all the same.
            assert!(matches!(refused, Err(LogError::NotOurs { .. })), "{name}: {refused:?}");
        }
    }
    // What stands in the way of a rotation is removed, not written through.
    symlink(&target, here.join("a.log.new")).expect("linked");
    symlink(&target, here.join("a.log.1")).expect("linked");
    let mut file = File::from(logs.append("a").expect("opened"));
    file.write_all(&[b'x'; 2000]).expect("written");
    assert!(logs.rotate("a", &LOG).expect("rotated"));
    assert_eq!(fs::read_to_string(&target).expect("read"), "precious\n");
}

#[test]
fn rotation_keeps_so_many_and_shifts_the_rest() {
    let (directory, logs) = logs();
    let here = directory.path().join("made/here");
    assert!(!logs.rotate("a", &LOG).expect("nothing there"), "no log yet");
    let mut file = File::from(logs.append("a").expect("opened"));
    file.write_all(b"short\n").expect("written");
    assert!(!logs.rotate("a", &LOG).expect("looked"), "too short");
    for round in 0..6_u8 {
        file.write_all(&[b'a' + round; 2000]).expect("written");
        file.write_all(b"\n").expect("written");
        assert!(logs.rotate("a", &LOG).expect("rotated"));
    }
    let mut names: Vec<_> =
        fs::read_dir(&here).expect("there").flatten().map(|one| one.file_name()).collect();
    names.sort();
    assert_eq!(names, ["a.log", "a.log.1", "a.log.2", "a.log.3"]);
    let first = |name| fs::read_to_string(here.join(name)).expect("read").remove(0);
    assert_eq!(["a.log.3", "a.log.2", "a.log.1"].map(first), ['d', 'e', 'f']);
    assert_eq!(fs::metadata(here.join("a.log")).expect("there").len(), 0);
    // The writer goes on in the same file, at its new end.
    file.write_all(b"after\n").expect("written");
    assert_eq!(fs::read_to_string(here.join("a.log")).expect("read"), "after\n");
    assert!(logs.rotate("a", &Log { keep: 0, rotate_at: 1, ..LOG }).expect("rotated"));
    assert_eq!(fs::metadata(here.join("a.log")).expect("there").len(), 0);
}

#[test]
fn rotation_under_a_writer_loses_nothing_where_the_file_system_can_help() {
    let _watchdog = Watchdog::start();
    let (directory, logs) = logs();
    let here = directory.path().join("made/here");
    let can_cut = {
        let file = File::create(directory.path().join("probe")).expect("made");
        let block = file.metadata().expect("asked").blksize();
        file.set_len(2 * block).expect("grown");
        let cut = FallocateFlags::FALLOC_FL_COLLAPSE_RANGE;
        fallocate(file.as_fd(), cut, 0, block as i64).is_ok()
    };
    let mut file = File::from(logs.append("a").expect("opened"));
    let done = AtomicBool::new(false);
    let log = Log { rotate_at: 100_000, keep: 1000, ..LOG };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..100_000 {
                writeln!(file, "line {number}").expect("written");
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            logs.rotate("a", &log).expect("rotated");
        }
    });
    let mut whole = String::new();
    for number in (1..1000).rev() {
        whole += &fs::read_to_string(here.join(format!("a.log.{number}"))).unwrap_or_default();
    }
    assert!(!whole.is_empty(), "it was rotated");
    whole += &fs::read_to_string(here.join("a.log")).expect("read");
    if can_cut {
        let expected = (0..100_000).map(|number| format!("line {number}"));
        assert!(whole.lines().eq(expected), "each line once, in order");
    } else {
        // Each that is there is there once and in order; a few may be missing.
        let numbers: Vec<u32> =
            whole.lines().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b));
        eprintln!("this file system cannot cut: {} of 100000 lines", numbers.len());
    }
}

#[test]
fn the_last_lines_are_bounded_and_reach_into_the_rotated_file() {
    let (_directory, logs) = logs();
    assert!(logs.last_lines("a", 10).expect("nothing").is_empty());
    let mut file = File::from(logs.append("a").expect("opened"));
    file.write_all(b"one\n\xfftwo\n").expect("written");
    assert_eq!(logs.last_lines("a", 1).expect("read"), ["\u{fffd}two"]);
    assert_eq!(logs.last_lines("a", 10).expect("read"), ["one", "\u{fffd}two"]);
    assert!(logs.rotate("a", &Log { rotate_at: 1, ..LOG }).expect("rotated"));
    file.write_all(b"three\nfour").expect("written");
    assert_eq!(logs.last_lines("a", 3).expect("read"), ["\u{fffd}two", "three", "four"]);
    // A line without end, and a log without end, are cut.
    file.write_all(&vec![b'x'; 1 << 20]).expect("written");
    let lines = logs.last_lines("a", 10).expect("read");
    assert!(lines.iter().all(|line| line.len() <= 4096), "long lines are cut");
    file.write_all(&b"\n".repeat(1 << 20)).expect("written");
    assert!(logs.last_lines("a", usize::MAX).expect("read").len() <= 2 * 64 * 1024);
}
