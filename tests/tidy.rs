//! Keeps the house: who imports whom, where `unsafe` and atomics live, the shape of files, and
//! that what is promised is shown. A failure says what to do about it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use code::{before_tests, code_of, holds_word, in_word, words};

#[path = "tidy/clock.rs"]
mod clock;
#[path = "tidy/code.rs"]
mod code;
#[path = "tidy/mutants.rs"]
mod mutants;
#[path = "tidy/tags.rs"]
mod tags;

/// Which crates of the workspace each crate may depend on; `services/*` have [`SERVICE_IMPORTS`].
const IMPORTS: &[(&str, &[&str])] = &[
    ("ipc", &[]),
    // It writes code that runs on `ipc`, in build scripts, and needs nothing of it there.
    ("ipc-build", &[]),
    ("ipc-queue", &["ipc"]),
    ("kernel-services", &["ipc"]),
    ("ipc-ffi", &["ipc", "kernel-services"]),
    // What rules say and whether the audit log holds is told without a runtime, by the code that
    // enforces and writes them: another copy could judge otherwise.
    ("ipctl", &["ipc", "kernel-services"]),
    ("benches", &["ipc", "ipc-build", "kernel-services"]),
    ("examples", &["ipc", "ipc-build"]),
    ("tests", &["ipc", "ipc-build", "ipc-queue", "kernel-services"]),
    ("store", &["ipc", "tests"]),
];

/// Services meet in messages only.
const SERVICE_IMPORTS: &[&str] = &["ipc", "ipc-build"];

/// The files that may say `unsafe`, each under its own `#![allow(unsafe_code)]`.
const UNSAFE_FILES: &[&str] = &[
    "benches/peers/src/contenders/iceoryx.rs",
    "benches/peers/src/contenders/mailbox.rs",
    "benches/peers/src/contenders/seqpacket.rs",
    "benches/peers/src/contenders/zeromq.rs",
    "benches/src/futex.rs",
    "benches/src/measure.rs",
    "benches/src/shm.rs",
    "ffi/src/boundary.rs",
    "ffi/src/call.rs",
    "ffi/src/demoted.rs",
    "ffi/src/envelope.rs",
    "ffi/src/event.rs",
    "ffi/src/failover.rs",
    "ffi/src/info.rs",
    "ffi/src/loan.rs",
    "ffi/src/message.rs",
    "ffi/src/message/page.rs",
    "ffi/src/poll.rs",
    "ffi/src/process.rs",
    "ffi/src/queue.rs",
    "ffi/src/receive.rs",
    "ffi/src/region.rs",
    "ffi/src/response.rs",
    "ffi/src/rights.rs",
    "ffi/src/runtime.rs",
    "ffi/src/send.rs",
    "ffi/src/service.rs",
    "ffi/src/session.rs",
    "ffi/src/settings.rs",
    "ffi/src/slice.rs",
    "ffi/src/stats.rs",
    "ffi/src/stop.rs",
    "ffi/src/trace.rs",
    "ffi/src/transport.rs",
    "ffi/src/types.rs",
    "fuzz/targets/exports/abi.rs",
    "fuzz/targets/exports/events.rs",
    "fuzz/targets/exports/failover.rs",
    "fuzz/targets/exports/loans.rs",
    "fuzz/targets/exports/queues.rs",
    "fuzz/targets/exports/regions.rs",
    "fuzz/targets/exports/rights.rs",
    "fuzz/targets/exports/transports.rs",
    "ipc-queue/src/log/memory.rs",
    "ipc-queue/src/log/ring.rs",
    "ipc/src/board/memory.rs",
    "ipc/src/bulk/arena.rs",
    "ipc/src/bulk/lender.rs",
    "ipc/src/bus/memory.rs",
    "ipc/src/claim.rs",
    "ipc/src/clock.rs",
    "ipc/src/control/packet.rs",
    "ipc/src/copy.rs",
    "ipc/src/features.rs",
    "ipc/src/fork.rs",
    "ipc/src/lane.rs",
    "ipc/src/lane/map.rs",
    "ipc/src/life.rs",
    "ipc/src/node/inherited.rs",
    "ipc/src/region/memory.rs",
    "ipc/src/session/chacha/avx2.rs",
    "ipc/src/session/chacha/avx512.rs",
    "ipc/src/session/chacha/portable.rs",
    "ipc/src/session/chacha/vector.rs",
    "ipc/src/session/steps.rs",
    "ipc/src/session/vault.rs",
    "ipc/src/slice.rs",
    "ipc/src/table.rs",
    "ipc/src/wait/futex.rs",
    "kernel-services/src/pidfd.rs",
    "kernel-services/src/process/child.rs",
    "kernel-services/src/process/system.rs",
    "tests/src/between.rs",
    "tests/src/bin/actor/raw.rs",
    "tests/src/bin/hostile/memory.rs",
    "tests/src/bin/probe/attacks.rs",
    "tests/src/bin/probe/facts.rs",
];

/// The only file of `ipc` that names the standard library's atomics, or loom's.
const ATOMICS: &str = "ipc/src/sync.rs";

/// What a visitor finds at the top.
const TOP_LEVEL: &[&str] = &[
    ".ci/run",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "Makefile",
    "README.md",
    PROMISES,
    "benches",
    "docs/adr",
    "examples",
    "ffi",
    "fuzz",
    "include/ipc.h",
    "ipc",
    "ipc-build",
    "ipctl",
    "kernel-services",
    "scripts",
    "services",
    "tests",
];

/// The file whose tables promise things.
const PROMISES: &str = "SPECIFICATION.md";

const MAX_LINES: usize = 600;
const MAX_COLUMNS: usize = 100;

#[test]
fn crates_import_only_whom_they_may() {
    let mut faults = Vec::new();
    for package in packages() {
        let name = text(&package["name"]);
        let Some(allowed) = allowed_imports(package) else {
            faults.push(format!("{name} is new: give it a line in IMPORTS of tests/tidy.rs"));
            continue;
        };
        for dependency in in_workspace(package) {
            let import = text(&dependency["name"]);
            if !allowed.contains(&import) {
                faults.push(format!(
                    "{name} imports {import}, but may import {allowed:?}: move what it needs \
                     there, or send a message"
                ));
            }
        }
    }
    settle(&faults);
}

#[test]
fn libipc_links_no_command_line_and_no_runtime() {
    let mut faults = Vec::new();
    let ffi = packages().iter().find(|package| package["name"] == "ipc-ffi");
    for dependency in ffi.into_iter().flat_map(in_workspace) {
        let features = dependency["features"].as_array().map_or(&[][..], Vec::as_slice);
        if dependency["name"] == "kernel-services"
            && (dependency["uses_default_features"] != false || features.contains(&"node".into()))
        {
            faults.push(
                "ffi/Cargo.toml: take kernel-services with `default-features = false` and \
                 without `node`"
                    .to_owned(),
            );
        }
    }
    let tree = cargo(&["tree", "--offline", "-p", "ipc-ffi", "-e", "normal", "--prefix", "none"]);
    faults.extend(
        tree.lines()
            .filter(|line| {
                ["clap", "seccompiler", "tokio", "toml"].iter().any(|name| line.starts_with(name))
            })
            .map(|line| format!("ipc-ffi links {line}: `cargo tree -p ipc-ffi -i` says why")),
    );
    settle(&faults);
}

#[test]
fn nothing_that_is_delivered_can_be_told_to_die() {
    let mut faults = Vec::new();
    for package in packages() {
        let name = text(&package["name"]);
        let default = package["features"]["default"].as_array().map_or(&[][..], Vec::as_slice);
        let told = |list: &[Value]| list.iter().any(|it| text(it).contains("failpoints"));
        let asks =
            in_workspace(package).any(|it| told(it["features"].as_array().map_or(&[], |a| a)));
        if told(default) || asks {
            faults.push(format!("{name}: only the feature `failpoints` of `tests` may ask for it"));
        }
    }
    settle(&faults);
}

#[test]
fn every_crate_takes_the_workspace_s_lints() {
    let mut faults = Vec::new();
    for package in packages() {
        let manifest = text(&package["manifest_path"]);
        let written = fs::read_to_string(manifest).expect("cargo has just read it");
        if !written.contains("[lints]\nworkspace = true") {
            faults.push(format!("{manifest}: add\n[lints]\nworkspace = true"));
        }
    }
    settle(&faults);
}

#[test]
fn unsafe_stays_in_its_files() {
    let mut faults = Vec::new();
    let mut found = BTreeSet::new();
    for file in rust() {
        if !words(&file.code).any(|word| word == "unsafe") {
            continue;
        }
        found.insert(file.path.as_str());
        if !file.code.contains("#![allow(unsafe_code") {
            faults.push(format!(
                "{}: move the `unsafe` into a file of UNSAFE_FILES, or, where that is worse, \
                 begin this one with #![allow(unsafe_code)]",
                file.path
            ));
        }
    }
    let listed: BTreeSet<&str> = UNSAFE_FILES.iter().copied().collect();
    for path in found.difference(&listed) {
        faults.push(format!("UNSAFE_FILES in tests/tidy.rs: add\n    \"{path}\","));
    }
    for path in listed.difference(&found) {
        faults.push(format!("UNSAFE_FILES in tests/tidy.rs: remove \"{path}\", it needs none"));
    }
    settle(&faults);
}

#[test]
fn atomics_come_from_one_module() {
    let mut faults = Vec::new();
    for file in rust().filter(|file| file.path.starts_with("ipc/src/") && file.path != ATOMICS) {
        for (number, line) in numbered(&file.code) {
            let std_sync = line.contains("std::sync::") || line.contains("core::sync::");
            if (std_sync && words(line).any(|word| word == "atomic")) || line.contains("loom::sync")
            {
                faults.push(format!(
                    "{}:{number}: import it from `crate::sync`, so that loom sees it",
                    file.path
                ));
            }
        }
    }
    settle(&faults);
}

#[test]
fn nothing_unwraps_outside_tests() {
    let mut faults = Vec::new();
    let is_checked = |path: &str| path.contains("/src/") && !path.ends_with("tests.rs");
    for file in rust().filter(|file| is_checked(&file.path)) {
        for (number, line) in numbered(before_tests(&file.code)) {
            if line.contains(".unwrap()") {
                faults.push(format!(
                    "{}:{number}: return a typed error with `?`, or prove it in \
                     `.expect(\"why this cannot fail\")`",
                    file.path
                ));
            }
        }
    }
    settle(&faults);
}

#[test]
fn files_are_short_and_lines_fit() {
    let mut faults = Vec::new();
    let generated = |path: &str| path == "include/ipc.h";
    for file in files().iter().filter(|file| file.is_source() && !generated(&file.path)) {
        let lines = file.text.lines().count();
        if lines > MAX_LINES {
            faults.push(format!(
                "{}: {lines} lines, at most {MAX_LINES}: split it where two things meet",
                file.path
            ));
        }
    }
    for file in rust() {
        for (number, line) in numbered(&file.text) {
            let columns = line.chars().count();
            if columns > MAX_COLUMNS {
                faults.push(format!(
                    "{}:{number}: {columns} columns, at most {MAX_COLUMNS}: `cargo fmt`, or \
                     break the string or comment",
                    file.path
                ));
            }
        }
    }
    settle(&faults);
}

#[test]
fn nothing_is_left_for_later() {
    // In halves, so that this file passes.
    let markers = [["TO", "DO"], ["FIX", "ME"], ["X", "XX"], ["to", "do!"], ["unimpl", "emented!"]]
        .map(|halves| halves.concat());
    let mut faults = Vec::new();
    for file in files() {
        for (number, line) in numbered(&file.text) {
            for marker in markers.iter().filter(|marker| holds_word(line, marker)) {
                faults.push(format!(
                    "{}:{number}: {marker}: do it now, or say in prose what is so and why",
                    file.path
                ));
            }
        }
    }
    settle(&faults);
}

#[test]
fn no_file_knows_somebody_s_machine() {
    // In halves, so that this file passes.
    let places = [["/ro", "ot/"], ["/ho", "me/"], ["/wo", "rk/"]].map(|halves| halves.concat());
    let mut faults = Vec::new();
    for file in files() {
        for (number, line) in numbered(&file.text) {
            for place in places.iter().filter(|place| starts_path(line, place)) {
                faults.push(format!(
                    "{}:{number}: {place}...: say it relative to the tree, $HOME or a variable",
                    file.path
                ));
            }
        }
    }
    settle(&faults);
}

#[test]
fn the_top_level_is_complete() {
    let faults: Vec<String> = TOP_LEVEL
        .iter()
        .filter(|path| !root().join(path).exists())
        .map(|path| format!("{path} is missing: write it, or take it out of TOP_LEVEL"))
        .collect();
    settle(&faults);
}

#[test]
fn every_promise_is_shown_by_something_that_exists() {
    let specification = fs::read_to_string(root().join(PROMISES))
        .unwrap_or_else(|error| panic!("{PROMISES} lists what is promised: {error}"));
    let mut faults = Vec::new();
    let promises = promises(&specification);
    if promises.is_empty() {
        faults.push(format!("{PROMISES}: no table promises anything"));
    }
    for (number, proofs) in promises {
        if proofs.is_empty() {
            faults.push(format!(
                "{PROMISES}:{number}: end the row with what shows it: `path::test_name` or `path`"
            ));
        }
        for proof in proofs {
            if let Some(fault) = fault_of(&proof) {
                faults.push(format!("{PROMISES}:{number}: `{proof}`: {fault}"));
            }
        }
    }
    settle(&faults);
}

/// Fails with all faults at once.
fn settle(faults: &[String]) {
    assert!(faults.is_empty(), "\n\n{}\n", faults.join("\n"));
}

/// A text file of the tree, and what is left of it without comments, strings and characters.
struct File {
    path: String,
    text: String,
    code: String,
}

impl File {
    fn is_source(&self) -> bool {
        ["rs", "c", "h", "cpp", "hpp", "py", "sh"].contains(&extension(&self.path))
    }
}

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the crate lies in the tree").to_owned()
}

fn files() -> &'static [File] {
    static FILES: OnceLock<Vec<File>> = OnceLock::new();
    FILES.get_or_init(|| {
        let paths = listed_by_git().unwrap_or_else(|| {
            let mut paths = Vec::new();
            walk(&root(), &mut paths);
            paths
        });
        let read = |path: String| {
            let text = fs::read_to_string(root().join(&path)).ok()?;
            let code = if is_rust(&path) { code_of(&text) } else { String::new() };
            Some(File { path, text, code })
        };
        paths.into_iter().filter(|path| is_written(path)).filter_map(read).collect()
    })
}

/// Whether somebody wrote it: not cargo, and not a fuzzer.
fn is_written(path: &str) -> bool {
    !path.ends_with("Cargo.lock") && !path.starts_with("fuzz/corpus/")
}

fn extension(path: &str) -> &str {
    Path::new(path).extension().and_then(OsStr::to_str).unwrap_or_default()
}

fn is_rust(path: &str) -> bool {
    extension(path) == "rs"
}

fn rust() -> impl Iterator<Item = &'static File> {
    files().iter().filter(|file| is_rust(&file.path))
}

/// Lists what is tracked, and what would be if it were added.
fn listed_by_git() -> Option<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let listed = String::from_utf8(output.stdout).expect("paths are UTF-8");
    Some(listed.split_terminator('\0').map(str::to_owned).collect())
}

fn walk(directory: &Path, paths: &mut Vec<String>) {
    for entry in fs::read_dir(directory).expect("a directory of the tree").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if !["target", "build", ".git"].iter().any(|skipped| name == *skipped) {
                walk(&path, paths);
            }
        } else if let Some(path) = path.strip_prefix(root()).ok().and_then(Path::to_str) {
            paths.push(path.to_owned());
        }
    }
}

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("cargo ran this test, so it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo speaks UTF-8")
}

fn packages() -> &'static [Value] {
    static METADATA: OnceLock<Value> = OnceLock::new();
    let metadata = METADATA.get_or_init(|| {
        let json = cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline"]);
        serde_json::from_str(&json).expect("cargo metadata is JSON")
    });
    metadata["packages"].as_array().expect("cargo lists its packages")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("cargo metadata says a string here")
}

fn in_workspace(package: &'static Value) -> impl Iterator<Item = &'static Value> {
    let dependencies = package["dependencies"].as_array().expect("cargo lists dependencies");
    dependencies.iter().filter(|dependency| dependency["path"].is_string())
}

fn allowed_imports(package: &Value) -> Option<&'static [&'static str]> {
    if Path::new(text(&package["manifest_path"])).starts_with(root().join("services")) {
        return Some(SERVICE_IMPORTS);
    }
    IMPORTS.iter().find(|(name, _)| package["name"] == *name).map(|(_, imports)| *imports)
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

/// Tells whether a path in `line` begins with `place`: it is not the middle of a longer one.
fn starts_path(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| {
        let longer = |character| in_word(character) || ".-~*}/".contains(character);
        !line[..at].ends_with(longer)
            && line[at + place.len()..].starts_with(|next: char| next.is_alphanumeric())
    })
}

/// Returns, for every row of every table, its line number and the references in its last cell.
fn promises(markdown: &str) -> Vec<(usize, Vec<String>)> {
    let mut promises = Vec::new();
    let mut body = false;
    for (number, line) in numbered(markdown) {
        let Some(row) = line.trim().strip_prefix('|') else {
            body = false;
            continue;
        };
        let row = row.strip_suffix('|').unwrap_or(row);
        if row.chars().all(|character| " :-|".contains(character)) {
            body = true;
        } else if body {
            let cell = row.replace(r"\|", " ");
            let cell = cell.rsplit('|').next().unwrap_or_default();
            promises.push((number, references(cell)));
        }
    }
    promises
}

/// Returns what stands in `` `code` `` and in the targets of `[links](target)`.
fn references(cell: &str) -> Vec<String> {
    let quoted = cell.split('`').skip(1).step_by(2);
    let linked = cell.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    quoted.chain(linked).map(|reference| reference.trim().to_owned()).collect()
}

fn fault_of(proof: &str) -> Option<String> {
    let (path, name) = proof.split_once("::").map_or((proof, None), |(p, n)| (p, Some(n)));
    let full = root().join(path);
    if path.is_empty() || !full.exists() {
        return Some(format!("there is no {path}"));
    }
    let name = name?.rsplit("::").next()?;
    let text = fs::read_to_string(&full).unwrap_or_default();
    let defined = if is_rust(path) {
        holds_word(&text, &format!("fn {name}"))
    } else {
        holds_word(&text, name)
    };
    (!defined).then(|| format!("there is no `{name}` in {path}: name the test that shows it"))
}

#[test]
fn rows_and_their_proofs_are_found() {
    let markdown = "| what | shown by |\n|---|---:|\n| fast | `benches/src/floor.rs::group` |\n\
                    | a \\| b | nobody |\ntext\n| what | by |\n";
    let found = promises(markdown);
    assert_eq!(found[0], (3, vec!["benches/src/floor.rs::group".to_owned()]));
    assert_eq!(found[1..], [(4, Vec::new())]);
    assert_eq!(fault_of("benches/src/floor.rs::group"), None);
    assert!(fault_of("benches/src/floor.rs::grou").is_some());
    assert!(fault_of("benches/src/nowhere.rs").is_some());
    assert_eq!(references("[peer](tests/a.rs) and `b.rs`"), ["b.rs", "tests/a.rs"]);
}

#[test]
fn a_path_begins_where_no_longer_one_goes_on() {
    assert!(starts_path("cd /srv/x", "/srv/") && !starts_path("docs/srv/x", "/srv/"));
}
