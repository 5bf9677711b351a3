use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const NOW: u64 = 1_800_000_000_000_000;

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn open(directory: &TempDir) -> Log {
    Log::open(directory.path(), Keep::default(), NOW).expect("opens")
}

fn denial(subject: &str) -> Record<'_> {
    Record {
        object: "name store".into(),
        operation: "call".into(),
        verdict: Some(false),
        because: "no rule".into(),
        ..Record::new(Kind::Denial, subject)
    }
}

/// Makes a log of so many denials, after the record of its opening.
fn filled(directory: &TempDir, denials: u64) -> Log {
    let mut log = open(directory);
    for number in 0..denials {
        log.record(&denial(&format!("service {number}")), NOW + number);
    }
    log.flush(NOW).expect("room");
    log
}

fn growing(directory: &TempDir) -> PathBuf {
    directory.path().join("audit.log")
}

fn kinds(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("UTF-8");
    let kind = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        value["kind"].as_str().expect("a string").to_owned()
    };
    text.lines().map(kind).collect()
}

#[test]
fn a_record_is_a_line_of_json_that_says_what_happened() {
    let directory = directory();
    let log = filled(&directory, 1);
    let text = fs::read_to_string(growing(&directory)).expect("there");
    let line: serde_json::Value =
        serde_json::from_str(text.lines().nth(1).expect("two lines")).expect("JSON");
    assert_eq!(line["seq"], 2);
    assert_eq!(line["time_us"], NOW);
    assert_eq!(line["kind"], "denial");
    assert_eq!(line["subject"], "service 0");
    assert_eq!(line["object"], "name store");
    assert_eq!(line["operation"], "call");
    assert_eq!(line["verdict"], false);
    assert_eq!(line["because"], "no rule");
    assert_eq!(line["hash"], log.head().to_string());
    assert_eq!(fs::metadata(growing(&directory)).expect("there").mode() & 0o7777, 0o600);
}

#[test]
fn a_log_that_was_left_alone_verifies() {
    let directory = directory();
    let log = filled(&directory, 99);
    let expected = Found { count: 100, first: 1, head: log.head(), incidents: 0 };
    assert_eq!(verify(directory.path()).expect("holds"), expected);
    assert_eq!(verify(&growing(&directory)).expect("holds"), expected);
    assert_eq!(verify_to(directory.path(), log.head()).expect("is there"), expected);
}

#[test]
fn nothing_is_written_before_a_flush_and_nothing_by_an_empty_one() {
    let directory = directory();
    let mut log = filled(&directory, 1);
    let written = fs::read(growing(&directory)).expect("there");
    log.record(&denial("late"), NOW);
    assert_eq!(fs::read(growing(&directory)).expect("there"), written);
    log.flush(NOW).expect("room");
    let length = fs::metadata(growing(&directory)).expect("there").len();
    assert!(length > written.len() as u64);
    log.flush(NOW).expect("nothing to do");
    assert_eq!(fs::metadata(growing(&directory)).expect("there").len(), length);
}

#[test]
fn a_new_run_continues_the_chain() {
    let directory = directory();
    drop(filled(&directory, 3));
    let log = filled(&directory, 2);
    let expected = Found { count: 7, first: 1, head: log.head(), incidents: 0 };
    assert_eq!(verify(directory.path()).expect("holds"), expected);
    let expected = ["opened", "denial", "denial", "denial", "opened", "denial", "denial"];
    assert_eq!(kinds(&growing(&directory)), expected);
}

/// What happens to lines, at which of them it shows, and as what.
type Harm = (&'static str, fn(&mut Vec<String>), u64, Fault);

#[test]
fn harm_is_found_at_the_first_line_that_shows_it() {
    let swap_text = |lines: &mut Vec<String>| lines[3] = lines[3].replace("false", "true");
    let harms: [Harm; 6] = [
        ("changed", swap_text, 4, Fault::Changed),
        ("taken out", |lines| drop(lines.remove(3)), 4, Fault::Chain),
        ("put in twice", |lines| lines.insert(4, lines[3].clone()), 5, Fault::Chain),
        ("moved", |lines| lines.swap(2, 3), 3, Fault::Chain),
        ("spaced", |lines| lines[1] = lines[1].replace("\":", "\": "), 2, Fault::Form),
        ("no record", |lines| lines.insert(2, "{}".to_owned()), 3, Fault::Form),
    ];
    for (name, harm, at, expected) in harms {
        let directory = directory();
        drop(filled(&directory, 6));
        let text = fs::read_to_string(growing(&directory)).expect("there");
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        harm(&mut lines);
        fs::write(growing(&directory), lines.join("\n") + "\n").expect("ours");
        match verify(directory.path()) {
            Err(Bad::Line { line, why, .. }) => assert_eq!((line, why), (at, expected), "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn the_first_record_of_all_follows_nothing() {
    let directory = directory();
    for (hash, holds) in [(Hash::default(), true), (Hash([1; 32]), false)] {
        let mut text = String::new();
        line::write(&mut text, line::Link { seq: 0, hash }, NOW, &denial("api"));
        fs::write(growing(&directory), text).expect("ours");
        assert_eq!(verify(directory.path()).is_ok(), holds, "{hash}");
    }
}

#[test]
fn an_end_that_is_missing_shows_against_the_head() {
    let directory = directory();
    let log = filled(&directory, 6);
    let text = fs::read_to_string(growing(&directory)).expect("there");
    let shorter: String = text.split_inclusive('\n').take(5).collect();
    fs::write(growing(&directory), shorter).expect("ours");
    let gone = |found| match found {
        Err(Bad::Truncated { seq, hash }) => (seq, hash),
        other => panic!("{other:?}"),
    };
    assert_eq!(gone(verify(directory.path())), (7, log.head()));
    // Without the head's help: the file alone holds, and a hash noted elsewhere shows it.
    assert_eq!(verify(&growing(&directory)).expect("holds").count, 5);
    assert_eq!(gone(verify_to(&growing(&directory), log.head())), (0, log.head()));
    // The next run records it.
    drop(log);
    drop(filled(&directory, 0));
    assert_eq!(verify(directory.path()).expect("holds again").incidents, 1);
    assert_eq!(kinds(&growing(&directory))[5..], ["truncated", "opened"]);
    fs::remove_file(growing(&directory)).expect("ours");
    assert!(matches!(verify(directory.path()), Err(Bad::Truncated { seq: 7, .. })));
    fs::write(directory.path().join("audit.head"), "7 nonsense\n").expect("ours");
    assert!(matches!(verify(directory.path()), Err(Bad::Head { .. })));
}

#[test]
fn a_torn_end_is_cut_to_a_file_beside_and_recorded() {
    for keep in 1..5 {
        let directory = directory();
        drop(filled(&directory, 4));
        let text = fs::read(growing(&directory)).expect("there");
        let torn = text.len() - keep * 37;
        fs::write(growing(&directory), &text[..torn]).expect("ours");
        // The crash came before the head was noted.
        fs::remove_file(directory.path().join("audit.head")).expect("ours");
        assert!(matches!(verify(directory.path()), Err(Bad::Line { why: Fault::Torn, .. })));
        let log = filled(&directory, 1);
        let found = verify(directory.path()).expect("holds");
        assert_eq!((found.head, found.incidents), (log.head(), 2), "torn, and the head is gone");
        let whole = text[..torn].iter().rposition(|&byte| byte == b'\n').expect("lines") + 1;
        let aside = fs::read_dir(directory.path())
            .expect("ours")
            .map(|entry| entry.expect("readable").path())
            .find(|path| path.to_string_lossy().contains("audit-torn-"))
            .expect("what was cut off");
        assert_eq!(fs::read(aside).expect("ours"), &text[whole..torn]);
    }
}

#[test]
fn a_damaged_end_is_cut_off_however_long_it_is() {
    let directory = directory();
    drop(filled(&directory, 4));
    let mut text = fs::read(growing(&directory)).expect("there");
    let whole = text.len();
    text.extend(std::iter::repeat_n(0, 300_000));
    text.extend(b"\n{\"seq\":1}\n");
    fs::write(growing(&directory), &text).expect("ours");
    let log = filled(&directory, 1);
    let found = verify(directory.path()).expect("holds");
    assert_eq!((found.count, found.head, found.incidents), (8, log.head(), 1));
    let kept = fs::read(growing(&directory)).expect("there");
    assert_eq!(kept[..whole], text[..whole]);
}

#[test]
fn the_chain_goes_on_through_rotated_files() {
    let directory = directory();
    let keep = Keep { rotate_at: 1500, files: 3 };
    let mut log = Log::open(directory.path(), keep, NOW).expect("opens");
    let mut count = 1;
    while verify::rotated(directory.path()).expect("ours").len() < 3 {
        log.record(&denial("api"), NOW);
        log.flush(NOW).expect("room");
        count += 1;
    }
    // The last flush rotated, so the file that grows is empty: a new run looks at the one before.
    assert_eq!(fs::metadata(growing(&directory)).expect("there").len(), 0);
    drop(log);
    let mut log = Log::open(directory.path(), keep, NOW).expect("opens");
    log.flush(NOW).expect("room");
    let expected = Found { count: count + 1, first: 1, head: log.head(), incidents: 0 };
    assert_eq!(verify(directory.path()).expect("holds"), expected);
    for _ in 0..40 {
        log.record(&denial("api"), NOW);
        log.flush(NOW).expect("room");
    }
    assert_eq!(verify::rotated(directory.path()).expect("ours").len(), 3);
    let found = verify(directory.path()).expect("holds");
    assert!(found.first > 1, "the oldest are gone");
    assert_eq!(found.first + found.count, count + 42);
    // Without one in the middle it does not hold.
    let files = verify::rotated(directory.path()).expect("ours");
    fs::remove_file(&files[1]).expect("ours");
    assert!(matches!(verify(directory.path()), Err(Bad::Line { line: 1, why: Fault::Chain, .. })));
}

#[test]
fn a_crash_while_rotating_loses_nothing() {
    let directory = directory();
    let log = filled(&directory, 3);
    let aside = directory.path().join("audit-00000000000000000004.log");
    fs::rename(growing(&directory), aside).expect("ours");
    fs::write(directory.path().join("audit.log.new"), "").expect("ours");
    let before = log.head();
    drop(log);
    let mut log = Log::open(directory.path(), Keep { rotate_at: 1, files: 9 }, NOW).expect("opens");
    log.flush(NOW).expect("rotates over what was left");
    assert_eq!(verify_to(directory.path(), before).expect("holds").count, 5);
}

#[test]
fn a_full_disk_stops_nothing_and_loses_nothing() {
    let directory = directory();
    let mut log = filled(&directory, 1);
    let full = File::options().write(true).open("/dev/full").expect("every Linux has it");
    let file = log.write_to(full);
    for number in 0..3 {
        log.record(&denial("api"), NOW);
        let error = log.flush(NOW).expect_err("full");
        assert_eq!((error.what, error.records, error.lost), ("write", number + 1, 0));
        assert_eq!(error.source.kind(), std::io::ErrorKind::StorageFull);
    }
    log.write_to(file);
    log.flush(NOW).expect("room again");
    let expected = Found { count: 5, first: 1, head: log.head(), incidents: 0 };
    assert_eq!(verify(directory.path()).expect("holds"), expected);
}

#[test]
fn what_a_failed_write_left_is_written_over() {
    let directory = directory();
    let mut log = filled(&directory, 1);
    log.record(&denial("api"), NOW);
    // Half of the record and some more, as a write that failed in the middle leaves it.
    let mut text = fs::read(growing(&directory)).expect("there");
    text.extend(std::iter::repeat_n(b'x', 100));
    fs::write(growing(&directory), text).expect("ours");
    log.flush(NOW).expect("room");
    let expected = Found { count: 3, first: 1, head: log.head(), incidents: 0 };
    assert_eq!(verify(directory.path()).expect("holds"), expected);
}

#[test]
fn records_beyond_the_bound_are_counted_and_the_count_is_recorded() {
    let directory = directory();
    let mut log = filled(&directory, 0);
    let filler = "x".repeat(FIELD);
    let mut before = None;
    // A record that there is no room for does not move the head.
    while before != Some(log.head()) {
        before = Some(log.head());
        log.record(&denial(&filler), NOW);
    }
    (0..4).for_each(|_| log.record(&denial(&filler), NOW));
    log.flush(NOW).expect("room");
    let text = fs::read_to_string(growing(&directory)).expect("there");
    let last = text.lines().last().expect("lines");
    assert!(last.contains("\"kind\":\"lost\"") && last.contains("5 records"), "{last}");
    assert_eq!(verify(directory.path()).expect("holds").incidents, 1);
}

#[test]
fn nobody_else_s_file_is_taken_for_the_log() {
    let directory = directory();
    drop(filled(&directory, 1));
    let path = growing(&directory);
    let open = || Log::open(directory.path(), Keep::default(), NOW);
    fs::set_permissions(&path, Permissions::from_mode(0o660)).expect("ours");
    assert!(matches!(open(), Err(OpenError::Exposed { .. })));
    fs::remove_file(&path).expect("ours");
    std::os::unix::fs::symlink("/dev/null", &path).expect("ours");
    assert!(matches!(open(), Err(OpenError::File { .. })));
}

#[test]
fn no_text_breaks_out_of_its_field() {
    let nasty =
        "\"}\n{\"seq\":9} \u{1b}[2J \u{202e}evil\u{2028} \u{7f} \u{9b} \\ é → 日本 \u{1f600}";
    let directory = directory();
    let mut log = filled(&directory, 0);
    let record = Record { object: nasty.into(), because: nasty.into(), ..denial(nasty) };
    log.record(&record, NOW);
    log.flush(NOW).expect("room");
    let text = fs::read_to_string(growing(&directory)).expect("UTF-8");
    assert_eq!(text.lines().count(), 2);
    let is_safe = |c: char| c == '\n' || c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric();
    assert_eq!(text.chars().find(|&c| !is_safe(c) && c != '→'), None);
    let line: serde_json::Value =
        serde_json::from_str(text.lines().last().expect("two")).expect("JSON");
    assert_eq!(line["subject"], nasty, "what it was can still be read");
    assert!(text.contains("é → 日本"), "letters stay readable: {text}");
    verify(directory.path()).expect("holds");
}

#[test]
fn a_text_that_is_too_long_is_cut_at_a_character() {
    let directory = directory();
    let mut log = filled(&directory, 0);
    log.record(&denial(&"é".repeat(FIELD)), NOW);
    log.flush(NOW).expect("room");
    let text = fs::read_to_string(growing(&directory)).expect("UTF-8");
    let line: serde_json::Value =
        serde_json::from_str(text.lines().last().expect("two")).expect("JSON");
    let subject = line["subject"].as_str().expect("a string");
    assert!(subject.len() <= FIELD && subject.ends_with("é..."), "{}", subject.len());
    verify(directory.path()).expect("a cut text is cut no further");
}

fn anything() -> impl Strategy<Value = (String, String, Option<bool>)> {
    (".{0,40}", "\\PC{0,40}", any::<Option<bool>>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_byte_changed_is_found(
        records in prop::collection::vec(anything(), 1..8),
        at in any::<prop::sample::Index>(),
        change in 1..=u8::MAX,
    ) {
        let directory = directory();
        let mut log = open(&directory);
        for (subject, because, verdict) in &records {
            let because = because.as_str().into();
            let verdict = *verdict;
            log.record(&Record { verdict, because, ..Record::new(Kind::Grant, subject) }, NOW);
        }
        log.flush(NOW).expect("room");
        let count = records.len() as u64 + 1;
        prop_assert_eq!(verify(directory.path()).expect("holds").count, count);
        let mut text = fs::read(growing(&directory)).expect("there");
        let at = at.index(text.len());
        text[at] ^= change;
        fs::write(growing(&directory), &text).expect("ours");
        let line = text[..at].split(|&byte| byte == b'\n').count() as u64;
        match verify(directory.path()) {
            Err(Bad::Line { line: found, .. }) => prop_assert_eq!(found, line),
            other => prop_assert!(false, "{other:?}"),
        }
    }
}
