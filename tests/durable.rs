//! `ipcd` may die at any time: what runs goes on, and the next one takes it over.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::Command,
};

use ipc::Spin;
use nix::unistd::{User, geteuid};
use tests::{
    Ipcd, LONG, World,
    duet::{Duet, Programs},
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
