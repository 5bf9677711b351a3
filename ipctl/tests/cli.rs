//! The program as a shell sees it, where no runtime is.

use std::{
    fs,
    io::pipe,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use kernel_services::audit::{Keep, Kind, Log, Record};

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
        "events",
        "events watch prices",
        "policy check service:api name:store call",
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

/// An empty directory of this test's own.
fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).expect("ours");
    path
}

#[test]
fn the_audit_log_is_verified_without_a_runtime() {
    let directory = directory("audit");
    let mut log = Log::open(&directory, Keep::default(), 1).expect("a log");
    for subject in ["first", "second", "third"] {
        log.record(&Record::new(Kind::Denial, subject), 2);
    }
    log.flush(3).expect("written");
    let path = directory.to_str().expect("plain");
    let (code, stdout, stderr) = outcome(&["audit", "verify", path]);
    let head = format!("4 records hold\nhead {}\n", log.head());
    assert_eq!((code, stdout, stderr.as_str()), (Some(0), head, ""));
    let known = log.head().to_string();
    assert_eq!(outcome(&["audit", "verify", path, "--head", &known]).0, Some(0));
    let (code, stdout, _) = outcome(&["audit", "verify", path, "--head", &"0".repeat(64)]);
    assert_eq!(code, Some(6), "{stdout}");
    let file = directory.join("audit.log");
    let text = fs::read_to_string(&file).expect("a log");
    fs::write(&file, text.replace("second", "nobody")).expect("ours");
    let (code, stdout, _) = outcome(&["audit", "verify", path]);
    assert_eq!(code, Some(6));
    assert!(stdout.starts_with(&format!("{}, line 3: ", file.display())), "{stdout}");
    let (code, stdout, _) = outcome(&["audit", "verify", path, "--json"]);
    let verdict: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((code, &verdict["holds"], &verdict["line"]), (Some(6), &false.into(), &3.into()));
    let (code, _, stderr) = outcome(&["audit", "verify", "/no/such/directory"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("/no/such/directory"), "{stderr}");
}

#[test]
fn the_policy_of_a_node_file_is_checked_without_a_runtime() {
    let file = directory("policy").join("node.toml");
    let node = "[service.api]\nexecutable = \"/bin/true\"\n\
                [service.store]\nexecutable = \"/bin/true\"\n\
                [[rule]]\nfrom = \"service:api\"\nto = \"name:store\"\nallow = \"call\"\n";
    fs::write(&file, node).expect("ours");
    let config = file.to_str().expect("plain");
    let check = |subject: &str, operation: &str, more: &[&str]| {
        let words = ["policy", "check", subject, "name:store", operation, "--config", config];
        outcome(&[&words, more].concat())
    };
    let (code, stdout, stderr) = check("service:api", "call", &[]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    for part in [
        "call is allowed\n  by rule 1, line 5: service:api → name:store: allow call\n",
        "  between supervised services: denied\n",
        "  among other processes of one user: allowed\n",
    ] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    let (code, stdout, _) = check("service:store", "send", &[]);
    // Its own name.
    assert_eq!(code, Some(0), "{stdout}");
    let (code, stdout, _) = check("user:4711", "call", &["--json"]);
    let ruling: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((code, &ruling["allowed"]), (Some(6), &false.into()));
    assert!(ruling["hint"].as_str().is_some_and(|it| it.contains("user:4711")), "{ruling}");
    let (code, _, stderr) = check("nobody", "call", &[]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("write service:NAME"), "{stderr}");
}
