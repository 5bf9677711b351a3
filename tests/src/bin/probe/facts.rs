//! What a process was given.

#![allow(unsafe_code)] // asks the kernel of every descriptor, open or not

use std::{env, fs};

use nix::{
    sched::{CpuSet, sched_getaffinity},
    sys::{
        resource::{Resource, getrlimit},
        stat::{Mode, umask},
    },
    unistd::{Pid, getgroups, getpid, getresgid, getresuid, getsid},
};

/// Which descriptors are open, below any limit that a test sets.
pub(crate) fn descriptors() -> Vec<i32> {
    // SAFETY: takes integers, and changes nothing.
    (0..4096).filter(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0).collect()
}

pub(crate) fn tell() {
    println!("descriptors {:?}", descriptors());
    println!("arguments {:?}", env::args().collect::<Vec<_>>());
    let mut environment: Vec<_> =
        env::vars().map(|(name, value)| format!("{name}={value}")).collect();
    environment.sort();
    println!("environment {environment:?}");
    println!("directory {}", env::current_dir().expect("a directory").display());
    println!("umask {:o}", umask(Mode::empty()).bits());
    println!("leader {}", getsid(None) == Ok(getpid()));
    let cpus = sched_getaffinity(Pid::from_raw(0)).expect("a set");
    let cpus: Vec<_> = (0..CpuSet::count()).filter(|&cpu| cpus.is_set(cpu) == Ok(true)).collect();
    println!("cpus {cpus:?}");
    println!("prompt {}", ipc::wake_promptly().is_ok());
    let (user, group) = (getresuid().expect("ids"), getresgid().expect("ids"));
    println!("user {} {} {}", user.real, user.effective, user.saved);
    println!("group {} {} {}", group.real, group.effective, group.saved);
    let groups: Vec<_> = getgroups().expect("groups").iter().map(|one| one.as_raw()).collect();
    println!("groups {groups:?}");
    for (name, resource) in [
        ("open_files", Resource::RLIMIT_NOFILE),
        ("core", Resource::RLIMIT_CORE),
        ("address_space", Resource::RLIMIT_AS),
        ("processes", Resource::RLIMIT_NPROC),
    ] {
        println!("{name} {:?}", getrlimit(resource).expect("a limit"));
    }
    let input = fs::read_link("/proc/self/fd/0").unwrap_or_default();
    println!("input {}", input.display());
    println!("cgroups {:?}", fs::read_to_string("/proc/self/cgroup").unwrap_or_default());
    for line in fs::read_to_string("/proc/self/status").unwrap_or_default().lines() {
        if ["Sig", "Cap", "NoNewPrivs", "Seccomp"].iter().any(|name| line.starts_with(name)) {
            println!("{}", line.replace(':', "").replace('\t', " "));
        }
    }
}
