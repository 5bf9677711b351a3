//! Who compares authentication tags, and how.

use super::{before_tests, numbered, rust, settle, words};

/// The one place where tags are compared by this library's own code; others compare their own.
const PLACE: &str = "ipc/src/session/aead.rs";

/// Names of tags.
const TAGS: [&str; 5] = ["tag", "tags", "tag_at", "alleged", "expected_tag"];

/// Whether a line compares something that is a tag, in a time that may tell where it differs.
fn compares_a_tag(line: &str) -> bool {
    let compares = ["==", "!=", ".eq(", ".ne(", ".cmp(", "matches!("];
    compares.iter().any(|it| line.contains(it)) && words(line).any(|word| TAGS.contains(&word))
}

#[test]
fn tags_are_compared_in_one_place_and_in_constant_time() {
    let mut faults = Vec::new();
    let is_asked = |path: &str| {
        path.starts_with("ipc/src/session/") && !path.ends_with("tests.rs")
            || path.starts_with("ipc/src/ring/sealed")
    };
    for file in rust().filter(|file| is_asked(&file.path) && !file.path.ends_with("/tests.rs")) {
        for (number, line) in numbered(before_tests(&file.code)) {
            if compares_a_tag(line) {
                faults
                    .push(format!("{}:{number}: compare tags by `is_equal` of {PLACE}", file.path));
            }
        }
    }
    let place = rust().find(|file| file.path == PLACE).expect("it is there");
    let (_, after) = place.code.split_once("fn is_equal(").expect("what compares them");
    let body = after.split_once('}').map_or(after, |(body, _)| body);
    if !body.contains("one.ct_eq(&other).into()") || body.contains("==") {
        faults.push(format!("{PLACE}: `is_equal` is to compare by `ct_eq` and nothing else"));
    }
    settle(&faults);
}

#[test]
fn a_comparison_of_a_tag_is_seen() {
    for line in ["if tag == alleged {", "(tag[0] != 0)", "one.eq(&tag)"] {
        assert!(compares_a_tag(line), "{line}");
    }
    for line in ["is_equal(tag, alleged)", "let staged == 1", "let tag = 3;"] {
        assert!(!compares_a_tag(line), "{line}");
    }
}
