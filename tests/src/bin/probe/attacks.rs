//! What a compromised service would try. None of it harms anybody where it succeeds: signals are
//! number 0, what is mounted or unshared is this process's own, files are the test's.

#![allow(unsafe_code)] // raw system calls, as an attacker makes them

use std::{
    ffi::{CString, c_long},
    mem, ptr,
};

use nix::errno::Errno;

/// Tries each, and says what came of it: `done`, or the error.
pub(crate) fn tell(victim: usize, directory: &str) {
    println!("descriptors {:?}", super::facts::descriptors());
    for (name, attack) in ATTACKS {
        let outcome = Errno::result(attack(victim, directory));
        println!("{name} {}", outcome.map_or_else(|errno| format!("{errno:?}"), |_| "done".into()));
    }
    // Last: where it succeeds, nothing is left to try, and the other program says so.
    println!("execute {:?}", run("/bin/echo"));
}

type Attack = fn(victim: usize, directory: &str) -> c_long;

const ATTACKS: &[(&str, Attack)] = &[
    ("read_file", |_, directory| open(&format!("{directory}/secret"), libc::O_RDONLY)),
    ("write_file", |_, directory| open(&format!("{directory}/secret"), libc::O_WRONLY)),
    ("create_file", |_, directory| {
        open(&format!("{directory}/created"), libc::O_WRONLY | libc::O_CREAT)
    }),
    ("read_passwords", |_, _| open("/etc/passwd", libc::O_RDONLY)),
    ("own_memory", |_, _| open("/proc/self/mem", libc::O_RDWR)),
    ("others_memory", |victim, _| open(&format!("/proc/{victim}/mem"), libc::O_RDWR)),
    ("others_environment", |victim, _| open(&format!("/proc/{victim}/environ"), libc::O_RDONLY)),
    ("change_mode", |_, directory| {
        let path = c_string(&format!("{directory}/secret"));
        call(libc::SYS_fchmodat, &[HERE, place(path.as_ptr()), 0o600])
    }),
    ("stream_socket", |_, directory| unix(libc::SOCK_STREAM, &format!("{directory}/stream"))),
    ("datagram_socket", |_, directory| unix(libc::SOCK_DGRAM, &format!("{directory}/datagram"))),
    ("datagram_pair", |_, _| {
        let mut pair = [0_i32; 2];
        let (family, kind) = (libc::AF_UNIX as usize, libc::SOCK_DGRAM as usize);
        call(libc::SYS_socketpair, &[family, kind, 0, place(pair.as_mut_ptr())])
    }),
    ("abstract_socket", |victim, _| unix(libc::SOCK_SEQPACKET, &format!("\0ipc-test-{victim}"))),
    ("tcp", |_, _| socket(libc::AF_INET, libc::SOCK_STREAM)),
    ("tcp6", |_, _| socket(libc::AF_INET6, libc::SOCK_STREAM)),
    ("udp", |_, _| socket(libc::AF_INET, libc::SOCK_DGRAM)),
    ("netlink", |_, _| socket(libc::AF_NETLINK, libc::SOCK_RAW)),
    ("trace", |victim, _| {
        let attached = call(libc::SYS_ptrace, &[libc::PTRACE_SEIZE as usize, victim, 0, 0]);
        if attached == 0 {
            // It must be stopped to be let go; our end lets it go anyhow.
            call(libc::SYS_ptrace, &[libc::PTRACE_DETACH as usize, victim, 0, 0]);
        }
        attached
    }),
    ("read_process", |victim, _| {
        let mut byte = 0_u8;
        let ours = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        // Nothing is mapped at 1, which a process that may be read says by EFAULT.
        let theirs = libc::iovec { iov_base: ptr::without_provenance_mut(1), iov_len: 1 };
        let parts = (place(&raw const ours), place(&raw const theirs));
        let read = call(libc::SYS_process_vm_readv, &[victim, parts.0, 1, parts.1, 1, 0]);
        if read < 0 && Errno::last() == Errno::EFAULT { 0 } else { read }
    }),
    ("signal", |victim, _| call(libc::SYS_kill, &[victim, 0])),
    ("signal_all", |_, _| call(libc::SYS_kill, &[usize::MAX, 0])),
    ("signal_thread", |victim, _| call(libc::SYS_tkill, &[victim, 0])),
    ("signal_group_thread", |victim, _| call(libc::SYS_tgkill, &[victim, victim, 0])),
    ("signal_by_descriptor", |_, _| {
        let own = call(libc::SYS_pidfd_open, &[std::process::id() as usize, 0]);
        call(libc::SYS_pidfd_send_signal, &[own as usize, 0, 0, 0])
    }),
    ("open_process", |victim, _| call(libc::SYS_pidfd_open, &[victim, 0])),
    ("own_a_descriptor", |victim, _| call(libc::SYS_fcntl, &[3, libc::F_SETOWN as usize, victim])),
    ("limit_others", |victim, _| call(libc::SYS_prlimit64, &[victim, 0, 0, 0])),
    ("schedule_others", |victim, _| {
        // As before: the ordinary policy, no niceness, slices of any length.
        let attributes = [0_u64; 7];
        call(libc::SYS_sched_setattr, &[victim, place(attributes.as_ptr()), 0])
    }),
    ("io_uring", |_, _| {
        let mut parameters = [0_u8; 120];
        call(libc::SYS_io_uring_setup, &[1, place(parameters.as_mut_ptr())])
    }),
    ("fork", |_, _| in_child(libc::SIGCHLD)),
    ("user_namespace", |_, _| in_child(libc::CLONE_NEWUSER | libc::SIGCHLD)),
    ("mount_namespace", |_, _| in_child(libc::CLONE_NEWNS | libc::SIGCHLD)),
    ("clone3", |_, _| {
        // Flags, five addresses and the signal at the end; the rest is nothing.
        let arguments = [0_u64, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
        born(call(libc::SYS_clone3, &[place(arguments.as_ptr()), mem::size_of_val(&arguments)]))
    }),
    ("unshare", |_, _| call(libc::SYS_unshare, &[libc::CLONE_NEWNS as usize])),
    ("mount", |_, directory| {
        let (kind, point) = (c_string("tmpfs"), c_string(&format!("{directory}/mount")));
        call(libc::SYS_mount, &[0, place(point.as_ptr()), place(kind.as_ptr()), 0, 0])
    }),
    ("bpf", |_, _| {
        // A map of the simplest kind: type array, keys of 4, values of 4, one entry.
        let map = [2_u32, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        call(libc::SYS_bpf, &[0, place(map.as_ptr()), mem::size_of_val(&map)])
    }),
    ("performance", |_, _| {
        // A software event, in a structure of 128 bytes: the CPU's clock.
        let mut what = [0_u32; 32];
        what[..2].copy_from_slice(&[1, 128]);
        let none = usize::MAX;
        call(libc::SYS_perf_event_open, &[place(what.as_ptr()), 0, none, none, 0])
    }),
    ("keys", |_, _| call(libc::SYS_keyctl, &[0, -3_isize as usize, 1])),
    ("page_faults", |_, _| call(libc::SYS_userfaultfd, &[0])),
    ("root_directory", |_, _| call(libc::SYS_chroot, &[place(c"/".as_ptr())])),
    ("be_dumpable", |_, _| call(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as usize, 1, 0, 0, 0])),
];

/// `AT_FDCWD`: a path is relative to the working directory.
const HERE: usize = libc::AT_FDCWD as isize as usize;

/// Makes a system call as an attacker does, whatever it is.
fn call(number: c_long, arguments: &[usize]) -> c_long {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    // SAFETY: addresses among the arguments are of memory that outlives the call, and large
    // enough for what the kernel reads or writes there.
    unsafe { libc::syscall(number, all[0], all[1], all[2], all[3], all[4], all[5]) }
}

fn place<T>(pointer: *const T) -> usize {
    pointer.expose_provenance()
}

/// Becomes another program, which says `executed`; the error where it does not.
fn run(program: &str) -> Errno {
    let (program, said) = (c_string(program), c_string("execute done"));
    let arguments = [program.as_ptr(), said.as_ptr(), ptr::null()];
    // SAFETY: the strings, and the array of them, end as they must.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), ptr::null()) };
    Errno::last()
}

fn c_string(text: &str) -> CString {
    CString::new(text).expect("no zero in it")
}

fn open(path: &str, flags: i32) -> c_long {
    let path = c_string(path);
    call(libc::SYS_openat, &[HERE, place(path.as_ptr()), flags as usize, 0o600])
}

fn socket(family: i32, kind: i32) -> c_long {
    call(libc::SYS_socket, &[family as usize, kind as usize, 0])
}

/// Connects to a Unix socket; a name that begins with a zero is abstract.
fn unix(kind: i32, name: &str) -> c_long {
    let fd = socket(libc::AF_UNIX, kind);
    if fd < 0 {
        return fd;
    }
    let mut address = [0_u8; 110];
    address[..2].copy_from_slice(&(libc::AF_UNIX as u16).to_ne_bytes());
    address[2..2 + name.len()].copy_from_slice(name.as_bytes());
    call(libc::SYS_connect, &[fd as usize, place(address.as_ptr()), 2 + name.len()])
}

fn in_child(flags: i32) -> c_long {
    born(call(libc::SYS_clone, &[flags as usize]))
}

/// Ends the child at once, and waits for it.
fn born(pid: c_long) -> c_long {
    match pid {
        0 => call(libc::SYS_exit_group, &[0]),
        1.. => {
            call(libc::SYS_wait4, &[pid as usize]);
            pid
        }
        _ => pid,
    }
}
