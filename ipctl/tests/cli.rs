//! The program as a shell sees it, where no runtime is.

use std::{
    io::pipe,
    process::{Command, Output, Stdio},
};

fn ipctl(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ipctl"));
    let nowhere = concat!(env!("CARGO_TARGET_TMPDIR"), "/no-runtime-here");
    command.args(arguments).env("IPC_RUNTIME_DIR", nowhere).stdin(Stdio::null());
    command
}

fn outcome(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        ipctl(arguments).output().expect("the program was built");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn without_a_runtime_one_line_says_so_and_the_exit_status_is_3() {
    for command in [
        "ping",
        "ls",
        "ping echo",
        "call echo hello",
        "bench echo",
        "status",
        "stop api",
        "reload",
        "tree",
        "logs api",
        "top",
        "top --once",
        "profile api",
        "trace api",
    ] {
        let arguments: Vec<&str> = command.split(' ').collect();
        let (code, stdout, stderr) = outcome(&arguments);
        assert_eq!((code, stdout.as_str()), (Some(3), ""), "{command}");
        assert!(stderr.starts_with("ipctl: no runtime at "), "{command}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{command}: {stderr}");
    }
}

#[test]
fn with_json_a_failure_is_an_object_on_stdout() {
    let (code, stdout, stderr) = outcome(&["--json", "ls"]);
    assert_eq!((code, stderr.as_str()), (Some(3), ""));
    let answer: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(answer["error"]["name"], "IPC_ENORUNTIME");
    assert_eq!(answer["error"]["code"], -14);
    assert!(answer["error"]["message"].as_str().is_some_and(|text| text.starts_with("no runtime")));
}

#[test]
fn without_a_runtime_the_doctor_still_reports() {
    let (code, stdout, stderr) = outcome(&["doctor"]);
    assert_eq!((code, stderr.as_str()), (Some(3), ""), "{stdout}");
    for line in ["CHECK", "membarrier", "start one with `ipcd --runtime-dir"] {
        assert!(stdout.contains(line), "{line}: {stdout}");
    }
    let (code, stdout, _) = outcome(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((code, &report["verdict"]), (Some(3), &"absent".into()));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let (code, _, stderr) = outcome(&["call", "echo", "--file", "/no/such/file"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("/no/such/file"), "{stderr}");
}

#[test]
fn wrong_command_lines_explain_themselves() {
    let (code, _, stderr) = outcome(&["call", "echo", "--hex", "abc"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("one digit only"), "{stderr}");
}

#[test]
fn help_lists_the_exit_statuses() {
    let (code, stdout, _) = outcome(&["--help"]);
    assert_eq!(code, Some(0));
    for line in [
        "Exit status:",
        "3  no runtime",
        "4  nobody serves",
        "5  no answer in time",
        "6  `ipctl status`",
    ] {
        assert!(stdout.contains(line), "{line}");
    }
}

#[test]
fn every_shell_gets_its_script() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let (code, stdout, _) = outcome(&["completions", shell]);
        assert_eq!(code, Some(0), "{shell}");
        for word in ["bench", "doctor", "runtime-dir", "restart", "follow"] {
            assert!(stdout.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    let child = ipctl(&["completions", "bash"]).stdout(writer).stderr(Stdio::piped()).spawn();
    let output = child.and_then(std::process::Child::wait_with_output).expect("the program runs");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
