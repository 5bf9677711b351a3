//! `ipcd` may die at any time: what runs goes on, and the next one takes it over.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Child, Command, Stdio},
};

use ipc::Spin;
use nix::{
    sys::signal::Signal,
    unistd::{User, geteuid},
};
use serde_json::json;
use tests::{
    Ipcd, LONG, World,
    duet::{Duet, Programs},
    ipcd::{open_to_all, signal},
    wait_until,
};

const PROGRAMS: Programs = Programs {
    ipcd: env!("CARGO_BIN_EXE_ipcd-under-test"),
    probe: env!("CARGO_BIN_EXE_probe"),
    actor: env!("CARGO_BIN_EXE_actor"),
};

#[test]
fn not_one_call_fails_while_ipcd_is_killed_twenty_times() {
    let (duet, mut ipcd) = Duet::start(PROGRAMS, &[], &[]);
    for round in 0..20 {
        ipcd.kill();
        duet.flow();
        ipcd = duet.again();
        // Every other one dies before it has seen all come back.
        if round % 2 == 0 {
            duet.assert_as_before(&ipcd);
        }
    }
    duet.assert_as_before(&ipcd);
    assert_eq!(duet.runtimes(), [ipcd.pid()]);
    duet.end(ipcd);
}

/// Starts a process that has this number, which nobody has now; nothing where the kernel does not
/// let it be chosen.
fn with_pid(pid: u32) -> Option<Child> {
    for _ in 0..1000 {
        let last = fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string());
        let mut child = last.ok().and_then(|()| Command::new("sleep").arg("1000").spawn().ok())?;
        if child.id() == pid {
            return Some(child);
        }
        // Somebody else was faster.
        child.kill().and_then(|()| child.wait()).expect("ours");
    }
    None
}

#[test]
fn a_process_that_has_a_dead_service_s_number_is_neither_adopted_nor_killed() {
    let world = World::without_runtime(PROGRAMS.actor);
    let node = format!(
        "[service.echo]\nexecutable = \"{}\"\narguments = [\"serve\", \"echo\"]\n{}",
        PROGRAMS.probe,
        open_to_all()
    );
    let ipcd = Ipcd::start(PROGRAMS.ipcd, world.directory(), &node);
    ipcd.wait("echo", "ready");
    let pid = ipcd.pid_of("echo");
    ipcd.kill();
    signal(pid, Signal::SIGKILL);
    wait_until("it is gone", || !Path::new(&format!("/proc/{pid}")).exists());
    let Some(mut innocent) = with_pid(pid) else {
        eprintln!("skipped: no process can be given a number here");
        return;
    };
    let ipcd = Ipcd::again(PROGRAMS.ipcd, world.directory());
    ipcd.wait("echo", "ready");
    assert_ne!(ipcd.pid_of("echo"), pid, "it was started anew");
    assert_eq!(ipcd.act("restart", "echo"), None);
    assert_eq!(ipcd.stop().0.code(), Some(0));
    assert_eq!(innocent.try_wait().expect("ours"), None, "it lives on");
    innocent.kill().and_then(|()| innocent.wait()).expect("ours");
}

#[test]
fn a_service_whose_program_never_ran_is_started_though_it_is_temporary() {
    let world = World::without_runtime(PROGRAMS.actor);
    // What an ipcd leaves that dies between the birth of a process and its program: here a shell
    // that waits, a fork without an exec.
    let fifo = world.directory().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("run").success());
    let script = format!("(read word < {0}) > /dev/null & echo $!", fifo.display());
    let output = Command::new("bash").args(["-c", &script]).stderr(Stdio::null()).output();
    let output = String::from_utf8(output.expect("run").stdout).expect("text");
    let pid: u32 = output.trim().parse().expect("a number");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("one");
    let unit = json!({
        "service": "once", "replica": 1, "pid": pid,
        "start_time": kernel_services::process::started(pid).expect("it lives"),
    });
    let units = json!({ "version": 1, "boot": boot, "units": [unit] });
    fs::write(world.directory().join("units"), units.to_string()).expect("written");
    let node = format!(
        "[service.once]\nexecutable = \"{}\"\narguments = [\"serve\", \"once\"]\n\
         restart = \"temporary\"\n{}",
        PROGRAMS.probe,
        open_to_all()
    );
    let ipcd = Ipcd::start(PROGRAMS.ipcd, world.directory(), &node);
    ipcd.hear("once: its program did not run yet: it is started anew");
    ipcd.wait("once", "ready");
    assert_ne!(ipcd.pid_of("once"), pid);
    assert_eq!(kernel_services::process::started(pid), None, "nothing is left of it");
}

#[test]
fn a_service_of_another_user_comes_back() {
    if !geteuid().is_root() {
        eprintln!("skipped: another user needs root");
        return;
    }
    let world = World::without_runtime(PROGRAMS.actor);
    let open = tempfile::tempdir().expect("a directory");
    fs::set_permissions(open.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let program = open.path().join("probe");
    // By another process: a child of ours could hold the copy open for writing.
    let copied = Command::new("cp").arg(PROGRAMS.probe).arg(&program).status().expect("run");
    assert!(copied.success());
    let node = format!(
        "[[rule]]\nfrom = \"any\"\nto = \"any\"\nallow = \"all\"\n\
         [service.echo]\nexecutable = \"{}\"\narguments = [\"serve\", \"echo\"]\n\
         user = \"nobody\"\ndirectory = \"/\"\n",
        program.display()
    );
    let mut ipcd = Ipcd::start(PROGRAMS.ipcd, world.directory(), &node);
    ipcd.wait("echo", "ready");
    let pid = ipcd.pid_of("echo");
    for _ in 0..2 {
        ipcd.kill();
        ipcd = Ipcd::again(PROGRAMS.ipcd, world.directory());
        ipcd.wait("echo", "ready");
        assert_eq!(ipcd.pid_of("echo"), pid);
        let (_node, client) = world.client("echo", Spin::Never);
        assert_eq!(client.call(b"x", LONG).expect("answered"), b"x");
        assert!(client.session().is_some(), "channels between users are encrypted");
    }
    let nobody = User::from_name("nobody").expect("asked").expect("everywhere").uid.as_raw();
    let door = world.directory().join(format!("ipcd.{nobody}.sock"));
    let found = fs::metadata(&door).expect("it is there");
    assert_eq!((found.uid(), found.mode() & 0o777), (nobody, 0o600), "and nobody else's");
    for entry in fs::read_dir(world.directory()).expect("ours").flatten() {
        let mode = entry.metadata().expect("it is there").mode();
        let of_others = mode & (libc::S_IRWXG | libc::S_IRWXO);
        let ours = entry.file_name() == "node.toml";
        // Its user finds its key in there, and sees no other.
        let passable = entry.file_name() == "keys" && of_others == 0o11;
        assert!(ours || passable || of_others == 0, "{entry:?} is open to others: {mode:o}");
    }
    // Who was not started here is turned away.
    let stranger = Command::new("setpriv")
        .args(["--reuid=nobody", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .arg("dumpable")
        .env("IPC_RUNTIME_DIR", world.directory())
        .output()
        .expect("run");
    let said = String::from_utf8_lossy(&stranger.stderr);
    assert!(!stranger.status.success() && said.contains("a node: "), "{said}");
    assert_eq!(ipcd.stop().0.code(), Some(0));
    assert!(!door.exists());
    let key = fs::metadata(world.directory().join("keys/echo#1.key")).expect("it was made");
    assert_eq!((key.uid(), key.mode() & 0o7777), (nobody, 0o600), "its user's alone");
}
