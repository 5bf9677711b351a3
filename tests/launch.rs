//! Processes of services: what they are given, why they do not start, how they end, and that
//! nothing stays behind.

use std::{
    fs,
    os::{
        fd::AsRawFd,
        unix::{fs::PermissionsExt, net::UnixDatagram},
    },
    path::{Path, PathBuf},
};

use kernel_services::{
    node::{Limits, Sandbox, Service},
    process::{Exit, Launch, LaunchError, NumaError, Process, SandboxError, Unenforced},
};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    sys::signal::{SigSet, Signal},
    unistd::geteuid,
};
use tests::{
    Watchdog, proc,
    services::{Nursery, deny, end_of, said},
    wait_until,
};

const PROBE: &str = env!("CARGO_BIN_EXE_probe");

/// What needs no sandbox has none, so that it can look at itself.
fn bare(nursery: &Nursery, arguments: &[&str]) -> Service {
    Service { sandbox: Sandbox::Off, ..nursery.service(PROBE, arguments) }
}

fn is_root(what: &str) -> bool {
    if !geteuid().is_root() {
        eprintln!("skipped: {what} needs root");
    }
    geteuid().is_root()
}

#[test]
fn a_service_is_given_exactly_what_is_listed() {
    let _watchdog = Watchdog::start();
    let nursery = Nursery::new();
    // Open across exec, as a careless library would leave it.
    let null = fs::File::open("/dev/null").expect("opened");
    let leak = fcntl(&null, FcntlArg::F_DUPFD(100)).expect("duplicated");
    let mut service = bare(&nursery, &["facts", "two words"]);
    service.environment = [("LANG".to_owned(), "C".to_owned())].into();
    let (exit, output) = nursery.run(&service);
    assert_eq!(exit, Exit::Code(0), "{output}");
    assert_eq!(said(&output, "descriptors"), "[0, 1, 2, 3]", "and not {leak}");
    assert_eq!(said(&output, "input"), "/dev/null");
    let arguments = [PROBE, "facts", "two words"];
    assert_eq!(said(&output, "arguments"), format!("{arguments:?}"));
    let here = nursery.path().display();
    let environment = [
        format!("IPC_RUNTIME_DIR={here}"),
        "IPC_SERVICE=probe".to_owned(),
        "LANG=C".to_owned(),
        "PATH=/usr/local/bin:/usr/bin:/bin".to_owned(),
    ];
    assert_eq!(said(&output, "environment"), format!("{environment:?}"));
    assert_eq!(said(&output, "directory"), here.to_string());
    assert_eq!(said(&output, "umask"), "77");
    assert_eq!(said(&output, "leader"), "true");
    assert_eq!(said(&output, "core"), "(0, 0)");
}

/// Runs a test that is ignored otherwise, in a process of its own, where nobody else opens and
/// closes anything meanwhile.
fn alone(test: &str) {
    let output = std::process::Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "--ignored", "--nocapture", test])
        .output()
        .expect("run");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("1 passed"), "{told}");
}

#[test]
fn whatever_numbers_are_free_a_service_is_given_the_same() {
    let _watchdog = Watchdog::start();
    alone("launch_where_low_numbers_are_free");
}

#[test]
#[ignore = "run by `whatever_numbers_are_free_a_service_is_given_the_same`"]
fn launch_where_low_numbers_are_free() {
    for free in 1..8 {
        let mut filled: Vec<_> =
            (0..8).map(|_| fs::File::open("/dev/null").expect("opened")).collect();
        assert_eq!(filled[0].as_raw_fd(), 3);
        let nursery = Nursery::new();
        let service = bare(&nursery, &["facts"]);
        let (control, _theirs) = UnixDatagram::pair().expect("a pair");
        let log = nursery.log();
        // Numbers are given from the lowest on: what the launch makes gets these.
        drop(filled.drain(..free));
        let control = control.into();
        let runtime_dir = nursery.path();
        let key_file = None;
        let launch = Launch { service: &service, replica: 0, runtime_dir, key_file, control, log };
        let mut process =
            kernel_services::process::launch(launch, |_, _| Ok(())).expect("launched");
        assert_eq!(end_of(&mut process), Exit::Code(0));
        assert_eq!(said(&nursery.output(), "descriptors"), "[0, 1, 2, 3]", "{free} were free");
    }
}

#[test]
fn our_own_signals_are_not_handed_on() {
    let _watchdog = Watchdog::start();
    let nursery = Nursery::new();
    // Rust ignores SIGPIPE, and this thread blocks one more; grep does neither by itself.
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGUSR1);
    blocked.thread_block().expect("blocked");
    let mut service = bare(&nursery, &["^Sig", "/proc/self/status"]);
    service.executable = "/bin/grep".into();
    let (_, output) = nursery.run(&service);
    for word in ["SigBlk:\t", "SigIgn:\t"] {
        assert!(output.contains(&format!("{word}0000000000000000\n")), "{output}");
    }
    assert!(SigSet::thread_get_mask().expect("a mask").contains(Signal::SIGUSR1), "ours stays");
}

#[test]
fn limits_and_cpus_are_set() {
    let _watchdog = Watchdog::start();
    let nursery = Nursery::new();
    let mut service = bare(&nursery, &["facts"]);
    service.cpus = Some(vec![0]);
    service.numa_node = Some(0);
    service.limits = Limits {
        open_files: Some(64),
        address_space: Some(8 << 30),
        core: 0,
        processes: Some(100),
        ..Limits::default()
    };
    let (exit, output) = nursery.run(&service);
    assert_eq!(exit, Exit::Code(0), "{output}");
    assert_eq!(said(&output, "cpus"), "[0]");
    assert_eq!(said(&output, "open_files"), "(64, 64)");
    assert_eq!(said(&output, "address_space"), "(8589934592, 8589934592)");
    assert_eq!(said(&output, "processes"), "(100, 100)");
}

#[test]
fn another_user_has_its_own_groups_and_no_way_back() {
    let _watchdog = Watchdog::start();
    if !is_root("another user") {
        return;
    }
    let nursery = Nursery::new();
    let probe = reachable(&nursery);
    let mut service = bare(&nursery, &["facts"]);
    service.executable = probe.into();
    service.user = Some("nobody".to_owned());
    let (exit, output) = nursery.run(&service);
    assert_eq!(exit, Exit::Code(0), "{output}");
    let nobody = nix::unistd::User::from_name("nobody").expect("asked").expect("everywhere");
    let (uid, gid) = (nobody.uid, nobody.gid);
    assert_eq!(said(&output, "user"), format!("{uid} {uid} {uid}"));
    assert_eq!(said(&output, "group"), format!("{gid} {gid} {gid}"));
    assert_eq!(said(&output, "groups"), format!("[{gid}]"));
    assert_eq!(said(&output, "CapEff"), "0000000000000000");
}

/// A copy of the probe where any user can execute it.
fn reachable(nursery: &Nursery) -> String {
    let copy = nursery.path().join("probe");
    // By another process: while a child of ours has the copy open for writing, if only until its
    // exec, nobody can execute it.
    let copied = std::process::Command::new("cp").arg(PROBE).arg(&copy).status();
    assert!(copied.expect("run").success());
    copy.to_str().expect("plain").to_owned()
}

#[test]
fn a_limit_of_memory_is_kept_by_a_group_or_said_to_be_missing() {
    let _watchdog = Watchdog::start();
    let nursery = Nursery::new();
    let mut service = bare(&nursery, &["facts"]);
    service.limits.memory = Some(256 << 20);
    let mut process = nursery.launch(&service).expect("launched");
    let lacks = process
        .unenforced()
        .iter()
        .any(|one| matches!(one, Unenforced::Limit { limit, .. } if *limit == "limits.memory"));
    assert_eq!(end_of(&mut process), Exit::Code(0));
    let output = nursery.output();
    assert_ne!(said(&output, "cgroups").contains("/ipc-probe-0-"), lacks, "{output}");
    if lacks {
        eprintln!("no cgroup can be made here: {:?}", process.unenforced());
    }
}

#[test]
fn each_reason_not_to_start_is_told_apart() {
    let _watchdog = Watchdog::start();
    let nursery = Nursery::new();
    let plain = || nursery.service(PROBE, &["exit", "0"]);
    let refuse = |service: &Service| {
        let error = nursery.launch(service).expect_err("it cannot start");
        assert!(!error.to_string().is_empty());
        error
    };

    let mut service = plain();
    service.executable = "/nowhere/at/all".into();
    let error = refuse(&service);
    assert!(matches!(error, LaunchError::Executable { errno: Errno::ENOENT, .. }), "{error}");
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");

    let text = nursery.path().join("text");
    fs::write(&text, "no program\n").expect("written");
    service.executable = text.clone();
    let error = refuse(&service);
    assert!(matches!(error, LaunchError::Executable { errno: Errno::EACCES, .. }), "{error}");
    fs::set_permissions(&text, fs::Permissions::from_mode(0o755)).expect("ours");
    let error = refuse(&service);
    assert!(matches!(error, LaunchError::Executable { errno: Errno::ENOEXEC, .. }), "{error}");

    let mut service = plain();
    service.directory = "/nowhere".into();
    let error = refuse(&service);
    assert!(matches!(error, LaunchError::Directory { errno: Errno::ENOENT, .. }), "{error}");

    let mut service = plain();
    service.user = Some("no such user".to_owned());
    assert!(matches!(refuse(&service), LaunchError::NoUser { name } if name == "no such user"));
    if !geteuid().is_root() {
        service.user = Some("root".to_owned());
        let error = refuse(&service);
        assert!(matches!(error, LaunchError::User { errno: Errno::EPERM, .. }), "{error}");
    }

    let mut service = plain();
    service.cpus = Some(vec![8000]);
    let error = refuse(&service);
    assert!(matches!(error, LaunchError::Cpus { errno: Errno::EINVAL, .. }), "{error}");
    service.cpus = None;
    service.numa_node = Some(900);
    let error = refuse(&service);
    assert!(matches!(error, LaunchError::Numa(NumaError::NoSuchNode { node: 900, .. })), "{error}");

    let mut service = plain();
    service.limits.open_files = Some(u64::MAX);
    let error = refuse(&service);
    let expected = |error: &LaunchError| {
        matches!(error, LaunchError::Limit { limit: "limits.open_files", errno: Errno::EPERM })
    };
    assert!(expected(&error), "{error}");

    let mut service = plain();
    service.arguments = vec!["a\0b".to_owned()];
    assert!(matches!(refuse(&service), LaunchError::Text { .. }));
    let mut service = plain();
    service.environment = [("A=B".to_owned(), String::new())].into();
    assert!(matches!(refuse(&service), LaunchError::Text { .. }));

    let mut service = plain();
    let Sandbox::On(grants) = &mut service.sandbox else { unreachable!("the default") };
    grants.read = vec!["/nowhere".into()];
    let error = refuse(&service);
    assert!(matches!(error, LaunchError::Sandbox(SandboxError::Path { .. })), "{error}");
    let mut service = plain();
    let Sandbox::On(grants) = &mut service.sandbox else { unreachable!("the default") };
    grants.system_calls = vec!["forc".to_owned()];
    let error = refuse(&service);
    assert!(matches!(error, LaunchError::Sandbox(SandboxError::SystemCall { .. })), "{error}");
}

#[test]
fn a_process_does_nothing_before_it_is_written_down() {
    let _watchdog = Watchdog::start();
    let nursery = Nursery::new();
    let (mut pid, mut runs) = (0, PathBuf::new());
    // Without a sandbox, in which it would wait before its program in any case.
    let error = nursery.launch_recording(&bare(&nursery, &["sleep"]), |child, _| {
        pid = child;
        // With nothing but the report open it sleeps: here, or in its program.
        wait_until("it waits", || {
            proc::holdings(child).descriptors <= 5 && proc::is_asleep(child, child)
        });
        runs = fs::read_link(format!("/proc/{child}/exe")).expect("a process");
        Err(Errno::ENOSPC.into())
    });
    let error = error.expect_err("it was not written down");
    assert!(matches!(error, LaunchError::Unrecorded(_)), "{error}");
    assert_eq!(runs, std::env::current_exe().expect("ours"), "not its program");
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(nursery.output(), "");
}

#[test]
fn a_process_that_is_not_written_down_ends_with_who_launched_it() {
    let _watchdog = Watchdog::start();
    let output = std::process::Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "--ignored", "--nocapture", "launch_and_die"])
        .output()
        .expect("run");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let pid: u32 = said(&told, "born").parse().expect("a pid");
    wait_until("it has ended", || proc::has_ended(pid));
}

#[test]
#[ignore = "run by `a_process_that_is_not_written_down_ends_with_who_launched_it`"]
fn launch_and_die() {
    let nursery = Nursery::new();
    let _ = nursery.launch_recording(&bare(&nursery, &["sleep"]), |pid, _| {
        println!("\nborn {pid}");
        nix::sys::signal::raise(Signal::SIGKILL).expect("we may");
        Ok(())
    });
}

#[test]
fn ends_are_told_as_they_are() {
    let _watchdog = Watchdog::start();
    let nursery = Nursery::new();
    assert_eq!(nursery.run(&nursery.service(PROBE, &["exit", "7"])).0, Exit::Code(7));
    assert_eq!(nursery.run(&nursery.service(PROBE, &["abort"])).0, Exit::Signal(6));
    let mut process = nursery.launch(&nursery.service(PROBE, &["sleep"])).expect("launched");
    assert_eq!(process.try_wait(), None);
    process.signal(Signal::SIGTERM).expect("alive");
    assert_eq!(end_of(&mut process), Exit::Signal(Signal::SIGTERM as i32));
    assert_eq!(process.try_wait(), Some(Exit::Signal(Signal::SIGTERM as i32)), "for ever");
    assert_eq!(process.kill(), Err(Errno::ESRCH));
}

#[test]
fn a_process_of_an_earlier_ipcd_is_found_again() {
    let _watchdog = Watchdog::start();
    let nursery = Nursery::new();
    let mut launched = nursery.launch(&nursery.service(PROBE, &["sleep"])).expect("launched");
    let (pid, start_time) = (launched.pid(), launched.start_time());
    let mut adopted = Process::adopt(pid, start_time).expect("it lives");
    assert!(Process::adopt(pid, start_time + 1).is_none(), "another of its number");
    assert_eq!(adopted.try_wait(), None);
    adopted.kill().expect("alive");
    assert_eq!(end_of(&mut adopted), Exit::Unknown);
    assert_eq!(end_of(&mut launched), Exit::Signal(9));
    assert!(Process::adopt(pid, start_time).is_none(), "it has ended");
}

#[test]
fn services_start_on_kernels_that_lack_what_is_newer() {
    let _watchdog = Watchdog::start();
    // In a thread of its own: its children inherit what it is denied.
    std::thread::spawn(|| {
        deny(&[
            libc::SYS_clone3,
            libc::SYS_close_range,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_send_signal,
        ]);
        let nursery = Nursery::new();
        let null = fs::File::open("/dev/null").expect("opened");
        fcntl(&null, FcntlArg::F_DUPFD(100)).expect("left open across exec");
        let (exit, output) = nursery.run(&bare(&nursery, &["facts"]));
        assert_eq!(exit, Exit::Code(0));
        assert_eq!(said(&output, "descriptors"), "[0, 1, 2, 3]");
        let mut process = nursery.launch(&nursery.service(PROBE, &["sleep"])).expect("launched");
        assert!(process.pidfd().is_none());
        let mut adopted = Process::adopt(process.pid(), process.start_time()).expect("it lives");
        assert_eq!(adopted.try_wait(), None);
        adopted.kill().expect("alive");
        assert_eq!(end_of(&mut adopted), Exit::Unknown);
        assert_eq!(end_of(&mut process), Exit::Signal(9));
        assert_eq!(adopted.signal(Signal::SIGKILL), Err(Errno::ESRCH));
    })
    .join()
    .expect("all was so");
}

#[test]
fn nothing_stays_behind() {
    let _watchdog = Watchdog::start();
    alone("a_thousand_launches");
}

#[test]
#[ignore = "run by `nothing_stays_behind`, in a process of its own"]
fn a_thousand_launches() {
    let nursery = Nursery::new();
    let mut sleeper = nursery.service(PROBE, &["sleep"]);
    sleeper.name = "thousand".to_owned();
    sleeper.limits.memory = Some(256 << 20);
    let missing = nursery.service("/nowhere/at/all", &[]);
    let us = std::process::id();
    let round = || {
        let mut process = nursery.launch(&sleeper).expect("launched");
        process.kill().expect("alive");
        assert!(matches!(end_of(&mut process), Exit::Signal(9)));
        nursery.launch(&missing).expect_err("missing");
    };
    (0..50).for_each(|_| round());
    let (held, resident) = (proc::holdings(us), proc::resident_kib(us));
    (0..1000).for_each(|_| round());
    assert_eq!(proc::holdings(us), held);
    let grown = proc::resident_kib(us).saturating_sub(resident);
    assert!(grown < 1024, "{grown} KiB more");
    let children = fs::read_to_string(format!("/proc/self/task/{us}/children")).ok();
    let mine = children.or_else(|| fs::read_to_string("/proc/thread-self/children").ok());
    assert_eq!(mine.as_deref().map(str::trim), Some(""), "zombies");
    assert_eq!(groups_left(), 0, "cgroups");
}

/// Groups of services below our own: other tests run meanwhile, under another name.
fn groups_left() -> usize {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|line| {
        let (_, path) = line.split_once(":memory:")?;
        Some(Path::new("/sys/fs/cgroup/memory").join(path.trim_start_matches('/')))
    });
    let entries = own.and_then(|own| fs::read_dir(own).ok()).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("ipc-thousand-")).count()
}

#[test]
fn a_service_outlives_who_launched_it() {
    let _watchdog = Watchdog::start();
    let output = std::process::Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "--ignored", "--nocapture", "launch_and_leave"])
        .output()
        .expect("run");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = said(&told, "left").split(' ').map(|one| one.parse::<u64>().expect("one"));
    let (pid, start_time) = (numbers.next().expect("a pid"), numbers.next().expect("a time"));
    let mut orphan = Process::adopt(pid as u32, start_time).expect("it lives");
    orphan.kill().expect("alive");
    assert_eq!(end_of(&mut orphan), Exit::Unknown);
}

#[test]
#[ignore = "run by `a_service_outlives_who_launched_it`, in a process of its own"]
fn launch_and_leave() {
    let nursery = Nursery::new();
    let process = nursery.launch(&nursery.service(PROBE, &["sleep"])).expect("launched");
    wait_until("it runs", || nursery.output().contains("asleep"));
    println!("\nleft {} {}", process.pid(), process.start_time());
}
