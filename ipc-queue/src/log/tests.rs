//! What a log does with segments, in files: each byte of them cut off, and flipped.

use std::{fs, path::Path, sync::Arc};

use super::files::{FileLog, Work, Writer, open};
use super::*;
use crate::scan::scan;

/// The smallest that there may be.
const SMALL: u64 = 128 << 10;

fn put(id: u64, bytes: usize) -> Record {
    Record::Put(Stored {
        id,
        producer: 1,
        sequence: id,
        priority: 2,
        dead: false,
        attempts: 0,
        not_before_ms: 0,
        payload: Arc::from(vec![id as u8; bytes]),
    })
}

/// A log of a directory, and what it finds there.
fn open_log(directory: &Path) -> (FileLog, Vec<Record>) {
    let (lock, found) = open(directory).expect("nobody has it");
    let mut ledger = Ledger::new(8);
    let mut records = Vec::new();
    for file in &found {
        let scan = scan(&file.bytes, file.header);
        ledger.begin(file.header.number);
        scan.records.iter().for_each(|it| ledger.note(it, file.header.number));
        records
            .extend(scan.records.into_iter().filter(|it| !matches!(it, Record::Checkpoint { .. })));
    }
    (FileLog::new(Log::new(ledger, SMALL, true), directory, lock), records)
}

fn commit(log: &mut FileLog, writer: &mut Writer, records: Vec<Record>) -> Outcome {
    let mut work = [Work { log, records: records.into(), outcome: (0, None) }];
    writer.commit(&mut work);
    work[0].outcome
}

fn segment_files(directory: &Path) -> Vec<std::path::PathBuf> {
    let files = fs::read_dir(directory).expect("it is there").flatten().map(|it| it.path());
    let mut files: Vec<_> =
        files.filter(|it| it.extension().is_some_and(|it| it == "log")).collect();
    files.sort();
    files
}

#[test]
fn what_was_committed_is_found_by_either_means() {
    for may_use_ring in [true, false] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut writer = Writer::new(may_use_ring);
        let records: Vec<Record> = (1..=500).map(|id| put(id, 1000)).collect();
        {
            let (mut log, found) = open_log(directory.path());
            assert_eq!(found, []);
            for some in records.chunks(7) {
                assert_eq!(commit(&mut log, &mut writer, some.to_vec()), (some.len() as u64, None));
            }
            assert!(open(directory.path()).is_err(), "it is taken");
        }
        let (mut log, found) = open_log(directory.path());
        assert_eq!(found, records);
        assert_eq!(log.segments(), segment_files(directory.path()).len());
        assert!(log.segments() >= 4);
        // What is acknowledged makes room, from the left.
        let gone = Record::Gone { ids: (1..=480).collect() };
        assert_eq!(commit(&mut log, &mut writer, vec![gone]), (1, None));
        assert!(log.segments() <= 3, "{}", log.segments());
        drop(log);
        let (_log, found) = open_log(directory.path());
        for record in &records[480..] {
            assert!(found.contains(record));
        }
    }
}

#[test]
fn a_few_messages_do_not_keep_many_segments() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut writer = Writer::new(true);
    let (mut log, _) = open_log(directory.path());
    commit(&mut log, &mut writer, vec![put(1, 10)]);
    let mut id = 2;
    let mut moved = 0;
    while id < 3000 {
        let record = put(id, 1000);
        commit(&mut log, &mut writer, vec![record, Record::Gone { ids: vec![id] }]);
        id += 1;
        for id in log.to_move() {
            let Record::Put(stored) = put(id, 10) else { unreachable!() };
            commit(&mut log, &mut writer, vec![Record::Moved(stored)]);
            moved += 1;
        }
        assert!(log.segments() <= 8, "{}", log.segments());
    }
    assert!(moved >= 2);
    drop(log);
    let (_log, found) = open_log(directory.path());
    let one = |it: &Record| matches!(it, Record::Moved(stored) if stored.id == 1);
    assert!(found.iter().any(one), "it was moved, never lost");
}

#[test]
fn a_full_disk_stores_nothing_and_harms_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut writer = Writer::new(true);
    let (mut log, _) = open_log(directory.path());
    assert_eq!(commit(&mut log, &mut writer, vec![put(1, 10)]), (1, None));
    // No file of this process may be larger than it is: what a full disk does.
    fs::create_dir(directory.path().join("0000000000000002.new")).expect("in the way");
    let many: Vec<Record> = (2..=300).map(|id| put(id, 1000)).collect();
    let (stored, trouble) = commit(&mut log, &mut writer, many.clone());
    assert_eq!(trouble, Some(Trouble::NoRoom));
    assert!(stored > 10 && stored < 299, "{stored}");
    // What makes room is stored in what is left of the segment.
    assert_eq!(commit(&mut log, &mut writer, vec![Record::Gone { ids: vec![1] }]), (1, None));
    fs::remove_dir(directory.path().join("0000000000000002.new")).expect("ours");
    let rest = many[stored as usize..].to_vec();
    assert_eq!(commit(&mut log, &mut writer, rest.clone()), (rest.len() as u64, None));
    drop(log);
    let (_log, found) = open_log(directory.path());
    assert_eq!(found.len(), many.len() + 2);
}

#[test]
fn a_journal_cut_off_at_any_byte_has_what_was_committed_before() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut writer = Writer::new(true);
    // Where the file ended after each commit, and how many records there were.
    let mut ends = Vec::new();
    {
        let (mut log, _) = open_log(directory.path());
        let mut id = 0;
        for batch in [1, 3, 2, 1, 4] {
            let records: Vec<Record> =
                (0..batch).map(|n| put(id + n + 1, 20 + n as usize)).collect();
            id += batch;
            commit(&mut log, &mut writer, records);
            let bytes = fs::read(&segment_files(directory.path())[0]).expect("it is there");
            let end = bytes.iter().rposition(|it| *it != 0).expect("records") + 1;
            ends.push((end.next_multiple_of(8), id));
        }
    }
    let path = segment_files(directory.path()).remove(0);
    let whole = fs::read(&path).expect("it is there");
    let ids = |found: &[Record]| -> Vec<u64> {
        let id = |it: &Record| match it {
            Record::Put(stored) => stored.id,
            other => panic!("{other:?}"),
        };
        found.iter().map(id).collect()
    };
    let last = ends.last().expect("some").0;
    for cut in 0..=last {
        for is_short in [false, true] {
            let mut bytes = whole.clone();
            if is_short {
                bytes.truncate(cut);
            } else {
                bytes[cut..].fill(0);
            }
            fs::write(&path, &bytes).expect("ours");
            let (_log, found) = open_log(directory.path());
            let found = ids(&found);
            let committed = ends.iter().rfind(|(end, _)| *end <= cut).map_or(0, |(_, id)| *id);
            assert!(found.len() as u64 >= committed, "cut at {cut}: {found:?}");
            assert!(found.iter().copied().eq(1..=found.len() as u64), "cut at {cut}: {found:?}");
        }
    }
    for at in scan_begin()..last {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        fs::write(&path, &bytes).expect("ours");
        let (_log, found) = open_log(directory.path());
        let found = ids(&found);
        // One record at most, and in the last batch what stands behind it.
        let in_last = at >= ends[ends.len() - 2].0;
        let fewest = if in_last { ends[ends.len() - 2].1 } else { 10 };
        assert!(found.len() as u64 >= fewest, "flip at {at}: {found:?}");
        assert!(found.iter().all(|id| (1..=11).contains(id)) && found.is_sorted());
    }
}

/// Where records begin, behind the header and the first checkpoint.
fn scan_begin() -> usize {
    HEADER + Ledger::new(8).checkpoint().bytes()
}
