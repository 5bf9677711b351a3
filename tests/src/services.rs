//! Services as a node file would describe them, launched one by one.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use kernel_services::{
    node::{
        Backoff, Grants, Limits, Log, LogFormat, Quota, Readiness, Ready, Restart, Sandbox, Service,
    },
    process::{Exit, Launch, LaunchError, Process, launch},
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use crate::wait_until;

/// A place to launch services from: each writes to one log.
#[derive(Debug)]
pub struct Nursery {
    directory: tempfile::TempDir,
}

impl Nursery {
    /// Makes an empty one, which other users can reach.
    pub fn new() -> Nursery {
        let directory = tempfile::tempdir().expect("a directory");
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).expect("ours");
        Nursery { directory }
    }

    /// Where it stands.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Describes a service of this executable and these arguments, with the default sandbox.
    pub fn service(&self, executable: &str, arguments: &[&str]) -> Service {
        Service {
            name: "probe".to_owned(),
            executable: PathBuf::from(executable),
            arguments: arguments.iter().map(|&one| one.to_owned()).collect(),
            environment: [].into(),
            directory: self.path().to_owned(),
            provides: vec!["probe".to_owned()],
            depends_on: vec![],
            replicas: 1,
            restart: Restart::Temporary,
            backoff: Backoff {
                first: Duration::from_millis(100),
                most: Duration::from_secs(10),
                factor: 2.0,
                jitter: 0.0,
                forget_after: Duration::from_mins(1),
            },
            readiness: Readiness { when: Ready::Runs, within: Duration::from_secs(10) },
            watchdog: None,
            stop_within: Duration::from_secs(5),
            user: None,
            cpus: None,
            numa_node: None,
            limits: Limits::default(),
            quota: Quota::default(),
            sandbox: Sandbox::On(Grants::default()),
            log: Log { format: LogFormat::Text, rotate_at: 1 << 20, keep: 3 },
        }
    }

    /// Launches it; its runtime is that of this directory.
    pub fn launch(&self, service: &Service) -> Result<Process, LaunchError> {
        self.launch_beside(service, self.path())
    }

    /// Launches it beside the runtime of another directory.
    pub fn launch_beside(&self, service: &Service, world: &Path) -> Result<Process, LaunchError> {
        self.launch_so(service, world, |_, _| Ok(()))
    }

    /// Launches it; `record` is called before it does anything.
    pub fn launch_recording(
        &self,
        service: &Service,
        record: impl FnOnce(u32, u64) -> io::Result<()>,
    ) -> Result<Process, LaunchError> {
        self.launch_so(service, self.path(), record)
    }

    fn launch_so(
        &self,
        service: &Service,
        world: &Path,
        record: impl FnOnce(u32, u64) -> io::Result<()>,
    ) -> Result<Process, LaunchError> {
        let (control, _theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .expect("a pair");
        let log = self.log();
        launch(
            Launch { service, replica: 0, runtime_dir: world, control, log, key_file: None },
            record,
        )
    }

    /// Launches it, waits for its end, and gives that and what it wrote.
    pub fn run(&self, service: &Service) -> (Exit, String) {
        let mut process = self.launch(service).expect("launched");
        let exit = end_of(&mut process);
        (exit, self.output())
    }

    /// All that was written so far.
    pub fn output(&self) -> String {
        let mut text = String::new();
        File::open(self.path().join("log"))
            .expect("a log")
            .read_to_string(&mut text)
            .expect("read");
        text
    }

    /// Where a service of this nursery writes.
    pub fn log(&self) -> OwnedFd {
        let mut options = OpenOptions::new();
        let options = options.append(true).create(true).mode(0o600);
        options.open(self.path().join("log")).expect("a log").into()
    }
}

impl Default for Nursery {
    fn default() -> Nursery {
        Nursery::new()
    }
}

/// Waits for the end of a process.
pub fn end_of(process: &mut Process) -> Exit {
    let mut exit = None;
    wait_until("the process has ended", || {
        exit = process.try_wait();
        exit.is_some()
    });
    exit.expect("it ended")
}

/// What a line says that begins with this word.
pub fn said<'a>(output: &'a str, word: &str) -> &'a str {
    let line = output.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {word:?} in {output}"))
}

/// Makes system calls of this thread, and of its children, unknown.
pub fn deny(calls: &[i64]) {
    let filter = SeccompFilter::new(
        calls.iter().map(|call| (*call, vec![])).collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        std::env::consts::ARCH.try_into().expect("an architecture with filters"),
    );
    let program: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter");
    apply_filter(&program).expect("any process may deny itself something");
}
