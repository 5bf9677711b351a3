//! Runtime directories that are missing, taken, another's, or not to be written.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use kernel_services::{Kernel, KernelError};
use nix::unistd::geteuid;

use crate::peer::{Peer, runtime};

fn refusal(path: &Path) -> KernelError {
    match Kernel::embedded(path) {
        Ok(_) => panic!("started in {}", path.display()),
        Err(error) => error,
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it exists").permissions().mode() & 0o7777
}

#[test]
fn a_missing_directory_is_made_for_the_owner_alone() {
    let parent = tempfile::tempdir().expect("a directory");
    let path = parent.path().join("a/b");
    let kernel = Kernel::embedded(&path).expect("starts");
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(kernel.socket_path()), 0o600);
    assert_eq!(mode(&path.join("ipcd.lock")), 0o600);
    assert_eq!(kernel.socket_path(), path.join("ipcd.sock"));
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let parent = tempfile::tempdir().expect("a directory");
    fs::write(parent.path().join("file"), "").expect("writes");
    let error = refusal(&parent.path().join("file/ipc"));
    assert!(matches!(error, KernelError::Create { .. }), "{error}");
    let error = refusal(&parent.path().join("file"));
    assert!(matches!(error, KernelError::Open { .. }), "{error}");
    symlink("nowhere", parent.path().join("dangling")).expect("links");
    let error = refusal(&parent.path().join("dangling"));
    assert!(matches!(error, KernelError::Create { .. }), "{error}");
}

#[test]
fn a_directory_that_others_may_write_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    for bits in [0o770, 0o707, 0o1777] {
        fs::set_permissions(directory.path(), Permissions::from_mode(bits)).expect("chmod");
        let error = refusal(directory.path());
        assert!(matches!(error, KernelError::Shared { mode, .. } if mode == bits), "{error}");
        assert!(error.to_string().contains("chmod go-w"));
    }
    assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 0);
}

#[test]
fn another_users_directory_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let foreign = if geteuid().is_root() {
        std::os::unix::fs::chown(directory.path(), Some(12_345), None).expect("root may");
        directory.path()
    } else {
        Path::new("/")
    };
    let error = refusal(foreign);
    assert!(matches!(error, KernelError::Owner { .. }), "{error}");
}

/// Root writes wherever the file system lets it; sysfs lets nobody make files.
#[test]
fn a_read_only_directory_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let read_only = if geteuid().is_root() {
        Path::new("/sys/kernel")
    } else {
        fs::set_permissions(directory.path(), Permissions::from_mode(0o500)).expect("chmod");
        directory.path()
    };
    let error = refusal(read_only);
    assert!(matches!(error, KernelError::ReadOnly { .. }), "{error}");
    assert!(error.to_string().contains("writable"));
}

#[test]
fn a_path_that_fits_no_socket_is_refused() {
    let parent = tempfile::tempdir().expect("a directory");
    let path = parent.path().join("x".repeat(100));
    let error = refusal(&path);
    assert!(matches!(error, KernelError::PathTooLong { limit: 107, .. }), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_second_kernel_is_refused_and_the_first_goes_on() {
    let runtime = runtime();
    let node = runtime.node();
    for _ in 0..2 {
        let error = refusal(runtime.directory.path());
        let us = std::process::id();
        assert!(matches!(error, KernelError::Running { pid, .. } if pid == us), "{error}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_ipcd"))
        .arg("--runtime-dir")
        .arg(runtime.directory.path())
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "the lock still excludes others: {said}");
    assert!(said.contains(&format!("(pid {})", std::process::id())), "{said}");
    assert_eq!(node.nodes_and_services(), (1, 0));
    runtime.node();
}

#[test]
fn a_stale_socket_is_replaced_and_ours_is_removed() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("ipcd.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("binds"));
    assert!(socket.exists());
    let kernel = Kernel::embedded(directory.path()).expect("starts");
    Peer::connect(&socket).hello();
    drop(kernel);
    assert!(!socket.exists());
    let kernel = Kernel::embedded(directory.path()).expect("starts again");
    Peer::connect(&socket).hello();
    kernel.stop();
}

#[test]
fn without_its_directory_a_kernel_serves_those_it_has() {
    let runtime = runtime();
    let (service, client) = (runtime.node(), runtime.node());
    fs::remove_dir_all(runtime.directory.path()).expect("removes");
    service.register("echo");
    assert_eq!(client.nodes_and_services(), (2, 1));
    let other = Kernel::embedded(runtime.directory.path()).expect("the place is free");
    drop(runtime.kernel);
    Peer::connect(other.socket_path()).hello();
}

#[test]
fn a_damaged_counter_is_not_guessed() {
    let directory = tempfile::tempdir().expect("a directory");
    let ids = directory.path().join("ids");
    for damaged in ["", "12x", "-1", "99999999999"] {
        fs::write(&ids, damaged).expect("writes");
        let error = refusal(directory.path());
        assert!(matches!(error, KernelError::Ids { .. }), "{error}");
    }
    fs::write(&ids, "5000\n").expect("writes");
    let kernel = Kernel::embedded(directory.path()).expect("starts");
    assert!(Peer::connect(kernel.socket_path()).hello().get() >= 5000);
}
