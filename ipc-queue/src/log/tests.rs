//! What a log does with segments, in files: each byte of them cut off, and flipped.

use std::{fs, path::Path, sync::Arc};

use super::files::{FileLog, Work, Writer, open};
use super::*;
use crate::scan::scan;

/// The smallest that there may be.
const SMALL: u64 = 128 << 10;
/// Later than any of these tests gives ids.
const NOW: Now = Now { mono_ns: 0, wall_ms: 1_000_000 };

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

fn is_beginning(record: &Record) -> bool {
    matches!(record, Record::Checkpoint { .. } | Record::Secret(_))
}

/// A log of a directory, and what it finds there.
fn open_log(directory: &Path) -> (FileLog, Vec<Record>) {
    let (lock, found) = open(directory).expect("nobody has it");
    let mut ledger = Ledger::new(8);
    let mut records = Vec::new();
    let mut obscure_ids = 0;
    for file in &found.segments {
        let scan = scan(&file.bytes, file.header);
        obscure_ids = scan.obscure_ids();
        ledger.begin(file.header.number);
        scan.records.iter().for_each(|it| ledger.note(it, file.header.number));
        records.extend(scan.records.into_iter().filter(|it| !is_beginning(it)));
    }
    ledger.skip_ids(obscure_ids);
    ledger.secret().expect("there are random bytes");
    for number in &found.unreadable {
        ledger.pass_over(*number, NOW);
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

/// Stores a record in memory that is nowhere.
fn store(log: &mut Log, record: Record) {
    let mut records = VecDeque::from([record]);
    while let Some(first) = records.front() {
        let blueprint = log.design(first, 1);
        match log.lay_out(&mut records) {
            Some(chunk) => drop(log.stored(&chunk)),
            None => log.made(&blueprint),
        }
        while log.take_needless().is_some() {}
    }
}

#[test]
fn moving_ends_though_what_is_known_of_producers_leaves_no_room_for_messages() {
    let mut log = Log::new(Ledger::new(1024), SMALL, false);
    let of = |id: u64, bytes: usize| {
        let Record::Put(stored) = put(id, bytes) else { unreachable!() };
        Stored { producer: id, sequence: 1, ..stored }
    };
    for id in 1..=1000 {
        store(&mut log, Record::Put(of(id, 10)));
        store(&mut log, Record::Gone { ids: vec![id] });
    }
    for id in 1001..=1020 {
        store(&mut log, Record::Put(of(id, 4000)));
    }
    for times in 0.. {
        let ids = log.to_move();
        if ids.is_empty() {
            break;
        }
        assert!(times < 1000, "it goes on for ever");
        for id in ids {
            store(&mut log, Record::Moved(of(id, 4000)));
        }
    }
}

#[test]
fn the_last_segment_stays_until_there_is_another() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut writer = Writer::new(true);
    let (mut log, _) = open_log(directory.path());
    commit(&mut log, &mut writer, vec![put(1, 10), Record::Gone { ids: vec![1] }]);
    drop(log);
    let (mut log, _) = open_log(directory.path());
    let in_the_way = directory.path().join("0000000000000002.new");
    fs::create_dir(&in_the_way).expect("in the way");
    let outcome = commit(&mut log, &mut writer, vec![put(2, 10)]);
    assert_eq!(outcome, (0, Some(Trouble::NoRoom)));
    assert_eq!(segment_files(directory.path()).len(), 1, "it says which ids were given");
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

/// Records of every kind that a queue with messages under way writes, in two segments: what each
/// commit had, and which segment it went to, and where it ended there.
fn two_segments(directory: &Path) -> Vec<(usize, usize, Vec<Record>)> {
    let mut writer = Writer::new(true);
    let mut commits = Vec::new();
    let taken = |id| Record::Taken { id, attempt: 1, consumer: 9 };
    let runs = [
        vec![vec![put(1, 20)], vec![put(2, 20), put(3, 21), taken(1)], vec![taken(2), put(4, 9)]],
        vec![
            vec![put(5, 30)],
            vec![Record::Gone { ids: vec![1] }, taken(3), put(6, 5)],
            vec![Record::Back { id: 3, not_before_ms: 8 }, Record::Dead { id: 2 }],
            vec![Record::Gone { ids: vec![2, 3] }, put(7, 20), Record::Redriven { ids: vec![4] }],
        ],
    ];
    for (segment, run) in runs.into_iter().enumerate() {
        let (mut log, _) = open_log(directory);
        for records in run {
            assert_eq!(commit(&mut log, &mut writer, records.clone()).1, None);
            let bytes = fs::read(&segment_files(directory)[segment]).expect("it is there");
            let bytes = &bytes[..bytes.len() - HEADER];
            let end = bytes.iter().rposition(|it| *it != 0).expect("records") + 1;
            commits.push((segment, end.next_multiple_of(8), records));
        }
    }
    commits
}

#[test]
fn a_journal_cut_off_at_any_byte_has_what_was_committed_before() {
    let directory = tempfile::tempdir().expect("a directory");
    let commits = two_segments(directory.path());
    let all: Vec<Record> = commits.iter().flat_map(|(_, _, it)| it.clone()).collect();
    let paths = segment_files(directory.path());
    let whole = paths.iter().map(|it| fs::read(it).expect("it is there")).collect::<Vec<_>>();
    assert_eq!(whole.len(), 2);
    let last = commits.last().expect("some").1;
    for cut in 0..=last {
        for is_short in [false, true] {
            let mut bytes = whole[1].clone();
            if is_short {
                bytes.truncate(cut);
            } else {
                // The copy of the header stands behind.
                let end = bytes.len() - HEADER;
                bytes[cut..end].fill(0);
            }
            fs::write(&paths[1], &bytes).expect("ours");
            let (_log, found) = open_log(directory.path());
            let before = commits.iter().filter(|(segment, end, _)| *segment == 0 || *end <= cut);
            let committed = before.map(|(_, _, records)| records.len()).sum::<usize>();
            assert!(found.len() >= committed, "cut at {cut}: {found:?}");
            assert!(all.starts_with(&found), "cut at {cut}: {found:?}");
            // Without its header at either end it is no segment any more.
            let damaged = paths[1].with_extension("damaged");
            assert_eq!(damaged.exists(), is_short && cut < HEADER, "cut at {cut}");
            let _ = fs::remove_file(damaged);
        }
    }
}

#[test]
fn a_flipped_byte_anywhere_costs_one_record_at_most() {
    let directory = tempfile::tempdir().expect("a directory");
    let commits = two_segments(directory.path());
    let all: Vec<Record> = commits.iter().flat_map(|(_, _, it)| it.clone()).collect();
    let paths = segment_files(directory.path());
    let secret = open_log(directory.path()).0.secret();
    for (segment, path) in paths.iter().enumerate() {
        let whole = fs::read(path).expect("it is there");
        let ends: Vec<usize> =
            commits.iter().filter(|it| it.0 == segment).map(|(_, end, _)| *end).collect();
        let (last, end) = (ends[ends.len() - 2], ends[ends.len() - 1]);
        // From the first byte of the header to the last record, and the header once more.
        for at in (0..end).chain(whole.len() - HEADER..whole.len()) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            fs::write(path, &bytes).expect("ours");
            let (log, found) = open_log(directory.path());
            // In the last batch also what stands behind it.
            let may_cost = if (last..end).contains(&at) { 3 } else { 1 };
            assert!(found.len() + may_cost >= all.len(), "flip at {at}: {found:?}");
            assert!(found.iter().all(|it| all.contains(it)));
            if at < begin_of_records() || at >= end {
                assert_eq!(found, all, "flip at {at}: only what is there twice");
            }
            assert!(log.secret() == secret, "flip at {at}: producers are who they were");
            let (number, id) = log.next();
            assert!(number == 3 && (8..16).contains(&id), "flip at {at}: none is given again");
        }
        fs::write(path, &whole).expect("ours");
    }
}

#[test]
fn a_segment_without_a_header_is_kept_and_neither_its_number_nor_its_ids_are_given_again() {
    let directory = tempfile::tempdir().expect("a directory");
    two_segments(directory.path());
    let paths = segment_files(directory.path());
    let mut bytes = fs::read(&paths[1]).expect("it is there");
    let copy = bytes.len() - 1;
    bytes[3] ^= 1;
    bytes[copy] ^= 1;
    fs::write(&paths[1], &bytes).expect("ours");
    let damaged = paths[1].with_extension("damaged");
    let mut writer = Writer::new(true);
    // Also when nothing was stored between two starts.
    for _ in 0..2 {
        let (log, found) = open_log(directory.path());
        assert_eq!(found.len(), 6, "all of the other segment");
        assert_eq!(fs::read(&damaged).expect("it is kept"), bytes);
        let (number, id) = log.next();
        assert_eq!(number, 3);
        assert!(id >= NOW.wall_ms * 1000, "{id}");
    }
    let id = {
        let (mut log, _) = open_log(directory.path());
        let id = log.next().1;
        assert_eq!(commit(&mut log, &mut writer, vec![put(id, 5)]), (1, None));
        id
    };
    let (log, found) = open_log(directory.path());
    assert_eq!((found.len(), log.next()), (7, (4, id + 1)));
    assert_eq!(fs::read(&damaged).expect("it is kept"), bytes);
}

#[test]
fn a_segment_of_another_version_is_refused_and_left_as_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    two_segments(directory.path());
    let path = &segment_files(directory.path())[0];
    let mut bytes = fs::read(path).expect("it is there");
    let end = bytes.len() - HEADER;
    bytes[8] = 2;
    let sum = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&sum.to_le_bytes());
    bytes.copy_within(..HEADER, end);
    fs::write(path, &bytes).expect("ours");
    let error = open(directory.path()).expect_err("it may say anything");
    assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
    assert_eq!(&fs::read(path).expect("it is there"), &bytes);
}

/// Where records begin, behind the header and two of each of what a segment begins with.
fn begin_of_records() -> usize {
    let mut ledger = Ledger::new(8);
    ledger.secret().expect("there are random bytes");
    HEADER + 2 * ledger.beginning().iter().map(Record::bytes).sum::<usize>()
}
