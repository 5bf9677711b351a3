//! All that a new process needs, prepared before it is born: after that nothing may be allocated,
//! looked up or locked, since a thread that no longer exists may have held the lock.

use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr, c_char},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr,
};

use nix::{
    fcntl::{OFlag, open},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, socketpair},
        stat::Mode,
    },
    unistd::{User, geteuid, getgrouplist},
};

use super::{Launch, LaunchError, out_of_the_way};
use crate::{
    cgroup::{self, Groups, Hierarchy},
    node::{Sandbox, Service},
    numa,
    sandbox::{self, Filter, Jail, Unenforced},
};

/// Where programs are looked for, by those that look.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A new process, on paper.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) executable: CString,
    pub(super) arguments: Strings,
    pub(super) environment: Strings,
    pub(super) directory: CString,
    pub(super) null: OwnedFd,
    pub(super) log: OwnedFd,
    pub(super) control: OwnedFd,
    /// Our end of the report, and the new process's, which must be closed here once it is born.
    pub(super) reports: OwnedFd,
    pub(super) report: Option<OwnedFd>,
    pub(super) groups: Groups,
    /// Their numbers, where the new process finds them.
    pub(super) doors: Vec<RawFd>,
    pub(super) limits: Vec<Limit>,
    /// Those it may run on, for people; and for the kernel, empty for all.
    pub(super) cpus: Vec<usize>,
    pub(super) cpu_mask: Vec<u64>,
    /// The node whose memory it uses, empty for all.
    pub(super) node_mask: Vec<u64>,
    pub(super) user_name: String,
    pub(super) user: Option<Identity>,
    pub(super) jail: Option<Confinement>,
    pub(super) unenforced: Vec<Unenforced>,
}

#[derive(Debug)]
pub(super) struct Limit {
    pub(super) name: &'static str,
    pub(super) resource: u32,
    pub(super) value: libc::rlimit64,
}

#[derive(Debug)]
pub(super) struct Identity {
    pub(super) uid: libc::uid_t,
    pub(super) gid: libc::gid_t,
    pub(super) groups: Vec<libc::gid_t>,
}

/// A sandbox, as far as the new process puts it on.
#[derive(Debug)]
pub(super) struct Confinement {
    pub(super) ruleset: Option<OwnedFd>,
    pub(super) one_exec: bool,
    pub(super) filters: Vec<Filter>,
}

/// Strings as `execve` takes them: an array of pointers that ends with NULL.
#[derive(Debug)]
pub(super) struct Strings {
    // The heap memory that the pointers lead to; it does not move with this.
    _owned: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Strings {
    fn of(owned: Vec<CString>) -> Strings {
        let mut pointers: Vec<_> = owned.iter().map(|one| one.as_ptr()).collect();
        pointers.push(ptr::null());
        Strings { _owned: owned, pointers }
    }

    pub(super) fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

impl Plan {
    pub(super) fn of(launch: Launch<'_>) -> Result<Plan, LaunchError> {
        let Launch { service, replica, runtime_dir, control, log, key_file } = launch;
        let failed = |errno| LaunchError::system("prepare a process", errno);
        let lifted = |fd| out_of_the_way(fd).map_err(|error| failed(errno_of(&error)));
        let (user_name, user) = identity(service)?;
        let (cpus, node_mask) = place(service)?;
        let cpu_mask = if cpus.is_empty() { Vec::new() } else { numa::mask(&cpus) };
        let (jail, mut unenforced) = confinement(service, runtime_dir, key_file)?;

        let flags = SockFlag::SOCK_CLOEXEC;
        let (reports, report) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).map_err(failed)?;
        let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty());
        let mut arguments = vec![service.executable.as_os_str()];
        arguments.extend(service.arguments.iter().map(OsStr::new));
        let arguments: Result<_, _> =
            arguments.into_iter().map(|text| c_string(text, "an argument")).collect();
        let mut plan = Plan {
            executable: c_string(service.executable.as_os_str(), "the executable")?,
            arguments: Strings::of(arguments?),
            environment: environment(service, runtime_dir, key_file)?,
            directory: c_string(service.directory.as_os_str(), "the directory")?,
            null: lifted(null.map_err(failed)?)?,
            log: lifted(log)?,
            control: lifted(control)?,
            reports: lifted(reports)?,
            report: Some(lifted(report)?),
            groups: Groups::default(),
            doors: Vec::new(),
            limits: limits(service),
            cpus,
            cpu_mask,
            node_mask,
            user_name,
            user,
            jail,
            unenforced: Vec::new(),
        };
        // Last, so that nothing that is refused above leaves a group behind.
        let limited = service.limits.memory.is_some() || service.limits.cpu_percent.is_some();
        if limited {
            let name = cgroup::name(&service.name, replica, runtime_dir);
            let (groups, lacking) = Hierarchy::of("self").make(&name, &service.limits);
            plan.doors = groups.doors.iter().map(AsRawFd::as_raw_fd).collect();
            plan.groups = groups;
            unenforced.extend(
                lacking
                    .into_iter()
                    .map(|(limit, error)| Unenforced::Limit { limit, reason: error.to_string() }),
            );
        }
        plan.unenforced = unenforced;
        Ok(plan)
    }
}

fn errno_of(error: &std::io::Error) -> nix::errno::Errno {
    nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

fn c_string(text: &OsStr, what: &str) -> Result<CString, LaunchError> {
    CString::new(text.as_bytes()).map_err(|_| LaunchError::Text { what: what.to_owned() })
}

/// What the node file gives, and four that are ours; `PATH` can be given another value.
fn environment(
    service: &Service,
    runtime_dir: &Path,
    key_file: Option<&Path>,
) -> Result<Strings, LaunchError> {
    let mut all: BTreeMap<&str, &OsStr> = [("PATH", OsStr::new(PATH))].into();
    for (name, value) in &service.environment {
        if name.is_empty() || name.contains('=') {
            return Err(LaunchError::Text { what: format!("the variable {name:?}") });
        }
        all.insert(name, OsStr::new(value));
    }
    all.insert("IPC_RUNTIME_DIR", runtime_dir.as_os_str());
    all.insert("IPC_SERVICE", OsStr::new(&service.name));
    if let Some(key_file) = key_file {
        all.insert("IPC_KEY_FILE", key_file.as_os_str());
    }
    let pairs = all.into_iter().map(|(name, value)| {
        let mut pair = OsStr::new(name).to_owned();
        pair.push("=");
        pair.push(value);
        c_string(&pair, &format!("the variable {name}"))
    });
    Ok(Strings::of(pairs.collect::<Result<_, _>>()?))
}

/// Finds the user, unless it is the one that we are.
fn identity(service: &Service) -> Result<(String, Option<Identity>), LaunchError> {
    let Some(name) = &service.user else { return Ok((String::new(), None)) };
    let failed = |errno| LaunchError::system("look up the user", errno);
    let user = User::from_name(name)
        .map_err(failed)?
        .ok_or_else(|| LaunchError::NoUser { name: name.clone() })?;
    if user.uid == geteuid() && !user.uid.is_root() {
        return Ok((name.clone(), None));
    }
    let c_name = c_string(OsStr::new(name), "the user")?;
    let groups = getgrouplist(&c_name, user.gid).map_err(failed)?;
    let groups = groups.into_iter().map(nix::unistd::Gid::as_raw).collect();
    Ok((name.clone(), Some(Identity { uid: user.uid.as_raw(), gid: user.gid.as_raw(), groups })))
}

/// Decides on which CPUs and of which node's memory it lives; empty where all are fine.
fn place(service: &Service) -> Result<(Vec<usize>, Vec<u64>), LaunchError> {
    let chosen = service.cpus.clone();
    let Some(node) = service.numa_node else { return Ok((chosen.unwrap_or_default(), vec![])) };
    let Some(near) = numa::cpus_of(Path::new(numa::SYSFS), node)? else {
        return Ok((chosen.unwrap_or_default(), vec![]));
    };
    let cpus: Vec<usize> = match &chosen {
        Some(chosen) => near.into_iter().filter(|cpu| chosen.contains(cpu)).collect(),
        None => near,
    };
    if cpus.is_empty() {
        let cpus = chosen.unwrap_or_default();
        return Err(LaunchError::Cpus { cpus, errno: nix::errno::Errno::EINVAL });
    }
    Ok((cpus, numa::mask(&[node as usize])))
}

fn limits(service: &Service) -> Vec<Limit> {
    let limits = &service.limits;
    let all = [
        ("limits.open_files", libc::RLIMIT_NOFILE, limits.open_files),
        ("limits.address_space", libc::RLIMIT_AS, limits.address_space),
        ("limits.core", libc::RLIMIT_CORE, Some(limits.core)),
        ("limits.processes", libc::RLIMIT_NPROC, limits.processes),
    ];
    // Its filter cannot see with what a thread asks for another policy.
    let none = matches!(service.sandbox, Sandbox::On(_)).then_some(0);
    let of_sandbox = [("sandbox", libc::RLIMIT_RTPRIO, none), ("sandbox", libc::RLIMIT_NICE, none)];
    let set = all.into_iter().chain(of_sandbox).filter_map(|(name, resource, value)| {
        let value = value.map(|value| libc::rlimit64 { rlim_cur: value, rlim_max: value })?;
        Some(Limit { name, resource, value })
    });
    set.collect()
}

fn confinement(
    service: &Service,
    runtime_dir: &Path,
    key_file: Option<&Path>,
) -> Result<(Option<Confinement>, Vec<Unenforced>), LaunchError> {
    let Sandbox::On(grants) = &service.sandbox else { return Ok((None, Vec::new())) };
    let (program, variables) = (&service.executable, &service.environment);
    let jail = sandbox::build(program, variables, runtime_dir, key_file, grants)?;
    let Jail { ruleset, one_exec, filters, unenforced } = jail;
    let failed = |error: std::io::Error| LaunchError::system("prepare a process", errno_of(&error));
    let ruleset = ruleset.map(out_of_the_way).transpose().map_err(failed)?;
    Ok((Some(Confinement { ruleset, one_exec, filters }), unenforced))
}
