//! The small mistakes of `scripts/mutants.sh` are mistakes in what is there.

use std::fs;

use super::{numbered, root, settle};

/// Where they are listed.
const LIST: &str = "scripts/mutants.txt";

#[test]
fn each_small_mistake_is_in_what_is_there_once() {
    let list = fs::read_to_string(root().join(LIST)).expect("it lists small mistakes");
    let mut faults = Vec::new();
    let is_one = |line: &str| !line.is_empty() && !line.starts_with('#');
    for (number, line) in numbered(&list).filter(|(_, line)| is_one(line)) {
        let [file, before, after] = line.split(" ;; ").collect::<Vec<_>>()[..] else {
            faults.push(format!("{LIST}:{number}: FILE ;; what is there ;; what it becomes"));
            continue;
        };
        let text = fs::read_to_string(root().join(file)).unwrap_or_default();
        let times = text.matches(before).count();
        if times != 1 || before == after {
            faults.push(format!(
                "{LIST}:{number}: {file} has `{before}` {times} times: change what is there once, \
                 into something else"
            ));
        }
    }
    assert!(numbered(&list).any(|(_, line)| is_one(line)), "{LIST} lists nothing");
    settle(&faults);
}
