//! The new process, from its birth to its program: one system call after another.
//!
//! It has one thread, and copies of memory in which other threads of ipcd may have held locks. So
//! nothing here allocates, locks, or calls anything of the C library that does: `setuid` there, for
//! one, would wait for threads that are not. Everything goes through `syscall`, which sets `errno`
//! and no more. What is needed was prepared in the [`Plan`].

#![allow(unsafe_code)] // raw system calls, with pointers into the plan

use std::{mem, os::fd::AsRawFd, ptr};

use super::plan::{Confinement, Identity, Plan};

/// The last descriptor that a service has: 0 nothing, 1 and 2 its log, 3 its runtime.
pub(super) const LAST_FD: i32 = 3;

/// What it was about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Step {
    Session = 1,
    Cgroup,
    Cpus,
    Memory,
    Limit,
    Descriptors,
    User,
    Capabilities,
    Directory,
    Privileges,
    Landlock,
    Listener,
    Seccomp,
    Exec,
}

impl Step {
    const ALL: [Step; 14] = [
        Step::Session,
        Step::Cgroup,
        Step::Cpus,
        Step::Memory,
        Step::Limit,
        Step::Descriptors,
        Step::User,
        Step::Capabilities,
        Step::Directory,
        Step::Privileges,
        Step::Landlock,
        Step::Listener,
        Step::Seccomp,
        Step::Exec,
    ];

    pub(super) fn of(number: u32) -> Option<Step> {
        Step::ALL.into_iter().find(|step| *step as u32 == number)
    }
}

/// What the new process sends: with [`Step::Listener`] a descriptor, or why there is none; with any
/// other, what failed, and then it ends.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) step: u32,
    /// Which of several.
    pub(super) detail: u32,
    pub(super) errno: i32,
}

impl Report {
    pub(super) const SIZE: usize = 12;

    fn to_bytes(&self) -> [u8; Report::SIZE] {
        let words = [self.step, self.detail, self.errno.cast_unsigned()].map(u32::to_ne_bytes);
        let mut bytes = [0; Report::SIZE];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word);
        }
        bytes
    }

    pub(super) fn from_bytes(bytes: [u8; Report::SIZE]) -> Report {
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Report { step: word(0), detail: word(4), errno: word(8).cast_signed() }
    }
}

/// A step that failed: which, which of several, and why.
type Stopped = (Step, usize, i32);

/// Becomes the service of the plan, or reports why not, and ends.
///
/// # Safety
/// 1. This is a process just made, with one thread. 2. All signals are blocked in it. 3. The plan's
///    descriptors are all above [`LAST_FD`], and its pointers lead to what they say.
pub(super) unsafe fn become_service(plan: &mut Plan) -> ! {
    let report = plan.report.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: what this function asks for is what those do.
    let Err((step, detail, errno)) = unsafe {
        let prepared = prepare(plan, report);
        wait_to_be_written_down(plan.reports.as_raw_fd(), report);
        prepared.and_then(|()| finish(plan, report))
    };
    let bytes = Report { step: step as u32, detail: detail as u32, errno }.to_bytes();
    // SAFETY: writes from memory of ours, and ends the process without running anything.
    unsafe {
        libc::syscall(libc::SYS_write, report, bytes.as_ptr(), bytes.len());
        libc::syscall(libc::SYS_exit_group, 127);
    }
    // Nothing is left that could run; `abort` and `exit` take locks.
    loop {
        std::hint::spin_loop();
    }
}

/// Makes a system call of up to six arguments; gives what failed of which step.
macro_rules! call {
    ($step:expr, $number:ident $(, $argument:expr)*) => {
        match libc::syscall(libc::$number $(, $argument)*) {
            -1 => Err(($step, 0, *libc::__errno_location())),
            result => Ok(result),
        }
    };
}

/// What needs ipcd's rights and descriptors.
///
/// # Safety
/// As [`become_service`].
unsafe fn prepare(plan: &Plan, report: i32) -> Result<(), Stopped> {
    // SAFETY: every call takes integers, or pointers to the plan's memory, which outlives it.
    unsafe {
        // A session of its own: no terminal's Ctrl-C, and no signal to ipcd's group, reaches it.
        // There is no parent-death signal: services outlive ipcd.
        call!(Step::Session, SYS_setsid)?;
        reset_signals();
        // While there are still the rights to: into the cgroups, so that what comes is charged.
        for door in &plan.doors {
            call!(Step::Cgroup, SYS_write, *door, c"0".as_ptr(), 1)?;
        }
        if !plan.cpu_mask.is_empty() {
            let mask = &plan.cpu_mask;
            call!(Step::Cpus, SYS_sched_setaffinity, 0, mask.len() * 8, mask.as_ptr())?;
        }
        // Exec keeps this; libc has no name for it.
        if !plan.node_mask.is_empty() {
            let mask = &plan.node_mask;
            let bits = mask.len() * 64 + 1;
            call!(Step::Memory, SYS_set_mempolicy, libc::MPOL_BIND, mask.as_ptr(), bits)?;
        }
        for (number, limit) in plan.limits.iter().enumerate() {
            let old = ptr::null_mut::<libc::rlimit64>();
            call!(Step::Limit, SYS_prlimit64, 0, limit.resource, &raw const limit.value, old)
                .map_err(|(step, _, errno)| (step, number, errno))?;
        }
        // 0, 1, 2 and 3 are made anew, open across exec. Everything else is closed at once, but for
        // what closes there: ipcd's connections must end with ipcd, whatever holds this process up.
        let (null, log) = (plan.null.as_raw_fd(), plan.log.as_raw_fd());
        for (from, to) in [(null, 0), (log, 1), (log, 2), (plan.control.as_raw_fd(), LAST_FD)] {
            call!(Step::Descriptors, SYS_dup3, from, to, 0)?;
        }
        let ruleset = plan.jail.as_ref().and_then(|jail| jail.ruleset.as_ref());
        let ruleset = ruleset.map_or(report, AsRawFd::as_raw_fd);
        close_all_but(report.min(ruleset), report.max(ruleset))
    }
}

/// Gives up the rights, and runs the program.
///
/// # Safety
/// As [`become_service`].
unsafe fn finish(plan: &mut Plan, report: i32) -> Result<std::convert::Infallible, Stopped> {
    // SAFETY: as above.
    unsafe {
        call!(Step::Session, SYS_umask, 0o077)?;
        if let Some(user) = &plan.user {
            switch(user)?;
        }
        // As the service's user, whose directory it may be alone.
        call!(Step::Directory, SYS_chdir, plan.directory.as_ptr())?;
        unblock_signals();
        if let Some(jail) = &mut plan.jail {
            confine(jail, report)?;
        }
        let (arguments, environment) = (plan.arguments.as_ptr(), plan.environment.as_ptr());
        call!(Step::Exec, SYS_execve, plan.executable.as_ptr(), arguments, environment)?;
    }
    Err((Step::Exec, 0, libc::EPROTO))
}

/// Forgets ipcd's handlers, and what it ignores, which exec would keep (SIGPIPE, in Rust).
///
/// # Safety
/// Only in a process just made: handlers are the whole process's.
unsafe fn reset_signals() {
    // As the kernel has it; what the C library has in its place is larger.
    #[repr(C)]
    struct Action {
        handler: usize,
        flags: libc::c_ulong,
        restorer: usize,
        mask: u64,
    }
    let default = Action { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };
    let before = ptr::null_mut::<Action>();
    // Of SIGKILL, SIGSTOP and numbers that there are none of it fails, which is as good.
    for signal in 1..=64 {
        // SAFETY: reads a structure of the kernel's own layout, with a set of 64 signals.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, before, 8) };
    }
}

/// # Safety
/// Only once the handlers of ipcd are forgotten.
unsafe fn unblock_signals() {
    let none: u64 = 0;
    let before = ptr::null_mut::<u64>();
    let how = libc::SIG_SETMASK;
    // SAFETY: reads a set of 64 signals. It cannot fail.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const none, before, 8) };
}

/// Waits until ipcd has written this process down. An ipcd that is killed before it has hangs up,
/// and there is nobody who would ever know of this process: it ends.
///
/// # Safety
/// As [`become_service`]; the descriptors are ipcd's end of the report, and this process's.
unsafe fn wait_to_be_written_down(reports: i32, report: i32) {
    let mut word = 0_u8;
    // SAFETY: closes this process's copy of ipcd's end, without which ipcd could not hang up; reads
    // into memory of ours; ends the process without running anything.
    unsafe {
        libc::syscall(libc::SYS_close, reports);
        if libc::syscall(libc::SYS_read, report, &raw mut word, 1) != 1 {
            libc::syscall(libc::SYS_exit_group, 127);
        }
    }
}

/// Closes every descriptor above [`LAST_FD`] but these two, which close at exec.
///
/// # Safety
/// Only in a process just made. `low` is not above `high`, and both are above [`LAST_FD`].
unsafe fn close_all_but(low: i32, high: i32) -> Result<(), Stopped> {
    let ranges = [(LAST_FD + 1, low - 1), (low + 1, high - 1), (high + 1, i32::MAX)];
    for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
        // SAFETY: takes integers.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == -1 {
            // SAFETY: the same as this function's.
            return unsafe { close_each_but(low, high) };
        }
    }
    Ok(())
}

/// As before Linux 5.9: one by one, those that the kernel lists; and where there is no `/proc`,
/// each that the limit leaves room for.
///
/// # Safety
/// As [`close_all_but`].
unsafe fn close_each_but(low: i32, high: i32) -> Result<(), Stopped> {
    let closes = |fd: i32| fd > LAST_FD && fd != low && fd != high;
    // Room for a hundred entries or so at a time, aligned as they are.
    let mut entries = [0_u64; 512];
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the path ends with a zero; the buffer's size is given; the rest are integers.
    unsafe {
        let path = c"/proc/self/fd".as_ptr();
        let Ok(list) = call!(Step::Descriptors, SYS_openat, libc::AT_FDCWD, path, flags) else {
            let mut limit = mem::zeroed::<libc::rlimit64>();
            let new = ptr::null::<libc::rlimit64>();
            let what = libc::RLIMIT_NOFILE;
            call!(Step::Descriptors, SYS_prlimit64, 0, what, new, &raw mut limit)?;
            let most = i32::try_from(limit.rlim_cur).unwrap_or(i32::MAX);
            for fd in (LAST_FD + 1..most).filter(|fd| closes(*fd)) {
                libc::syscall(libc::SYS_close, fd);
            }
            return Ok(());
        };
        loop {
            let (buffer, size) = (entries.as_mut_ptr().cast::<u8>(), mem::size_of_val(&entries));
            let filled = call!(Step::Descriptors, SYS_getdents64, list, buffer, size)?;
            if filled == 0 {
                libc::syscall(libc::SYS_close, list);
                return Ok(());
            }
            let mut at = 0;
            while at < filled as usize {
                // An entry: 8 bytes of inode, 8 of offset, 2 of length, 1 of kind, then the name.
                let entry = buffer.add(at);
                let length = entry.add(16).cast::<u16>().read_unaligned();
                let fd = number(entry.add(19)).filter(|fd| closes(*fd));
                if let Some(fd) = fd.filter(|fd| libc::c_long::from(*fd) != list) {
                    libc::syscall(libc::SYS_close, fd);
                }
                at += usize::from(length);
            }
        }
    }
}

/// Reads a decimal number that ends with a zero byte.
///
/// # Safety
/// A zero byte ends the text.
unsafe fn number(text: *const u8) -> Option<i32> {
    let mut value: i32 = 0;
    let mut at = text;
    loop {
        // SAFETY: no byte before this one was zero.
        let byte = unsafe { at.read() };
        match byte {
            0 => return (at != text).then_some(value),
            b'0'..=b'9' => value = value.checked_mul(10)?.checked_add(i32::from(byte - b'0'))?,
            _ => return None,
        }
        // SAFETY: that byte was not the last.
        at = unsafe { at.add(1) };
    }
}

/// Becomes the user: its groups first, as its user may not any more, and itself last. Real,
/// effective and saved, so that there is no way back.
///
/// # Safety
/// Only in a process just made, of one thread.
unsafe fn switch(user: &Identity) -> Result<(), Stopped> {
    let (uid, gid) = (user.uid, user.gid);
    // SAFETY: the groups and their number are the plan's; the rest are integers.
    unsafe {
        call!(Step::User, SYS_setgroups, user.groups.len(), user.groups.as_ptr())?;
        call!(Step::User, SYS_setresgid, gid, gid, gid)?;
        call!(Step::User, SYS_setresuid, uid, uid, uid)?;
    }
    Ok(())
}

/// Puts on the sandbox.
///
/// # Safety
/// Only in a process just made; `report` is its end of the report.
unsafe fn confine(jail: &mut Confinement, report: i32) -> Result<(), Stopped> {
    // SAFETY: takes integers, and pointers to the jail's memory.
    unsafe {
        drop_capabilities()?;
        // No program gives rights by its mode any more; without this, the rest takes root.
        let set = libc::PR_SET_NO_NEW_PRIVS;
        call!(Step::Privileges, SYS_prctl, set, 1_usize, 0_usize, 0_usize, 0_usize)?;
        if let Some(ruleset) = &jail.ruleset {
            call!(Step::Landlock, SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0)?;
        }
        if jail.one_exec {
            listen_for_exec(report)?;
        }
        // Exec keeps the number of the process: it is the same that the service will have.
        let own_pid = libc::syscall(libc::SYS_getpid) as u32;
        for filter in &mut jail.filters {
            for place in &filter.own_pid_at {
                if let Some(instruction) = filter.program.get_mut(*place) {
                    instruction.k = own_pid;
                }
            }
            install(&filter.program, 0).map_err(|errno| (Step::Seccomp, 0, errno))?;
        }
    }
    Ok(())
}

/// Gives up what root has beside its number: now, and for whatever it executes.
///
/// # Safety
/// Only in a process just made, of one thread.
unsafe fn drop_capabilities() -> Result<(), Stopped> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    // SAFETY: takes integers, and pointers to structures of the kernel's layout.
    unsafe {
        // Who has no right to drop from the bounding set has nothing that it could give either.
        for capability in 0..64_usize {
            let drop = libc::PR_CAPBSET_DROP;
            libc::syscall(libc::SYS_prctl, drop, capability, 0_usize, 0_usize, 0_usize);
        }
        // Two times effective, permitted, inheritable; the ambient set can be no more than these.
        let header = Header { version: VERSION_3, pid: 0 };
        let nothing = [0_u32; 6];
        call!(Step::Capabilities, SYS_capset, &raw const header, nothing.as_ptr())?;
    }
    Ok(())
}

/// Makes each exec wait for the word of ipcd, which gives it once (`report.rs`). Where there is no
/// listener to be had, that is reported, and the process goes on.
///
/// # Safety
/// As [`confine`].
unsafe fn listen_for_exec(report: i32) -> Result<(), Stopped> {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let is = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let give = libc::BPF_RET | libc::BPF_K;
    // Of other architectures the list that comes after lets nothing pass.
    let program = [
        instruction(load, 0, 0, mem::offset_of!(libc::seccomp_data, nr) as u32),
        instruction(is, 2, 0, libc::SYS_execve as u32),
        instruction(is, 1, 0, libc::SYS_execveat as u32),
        instruction(give, 0, 0, libc::SECCOMP_RET_ALLOW),
        instruction(give, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
    ];
    // SAFETY: the program is whole, and the report is sent from memory of ours.
    unsafe {
        let listener = install(&program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
        send_listener(report, listener).map_err(|errno| (Step::Listener, 0, errno))
    }
}

/// # Safety
/// The program is valid; the process has `no_new_privs`.
unsafe fn install(program: &[libc::sock_filter], flags: libc::c_ulong) -> Result<i64, i32> {
    let program =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    let what = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the kernel copies the program, whose length is given.
    unsafe {
        call!(Step::Seccomp, SYS_seccomp, what, flags, &raw const program)
            .map_err(|(_, _, errno)| errno)
    }
}

/// Sends the listener to ipcd, or why there is none.
///
/// # Safety
/// `report` is this process's end of the report.
unsafe fn send_listener(report: i32, listener: Result<i64, i32>) -> Result<(), i32> {
    let errno = listener.err().unwrap_or(0);
    let bytes = Report { step: Step::Listener as u32, detail: 0, errno }.to_bytes();
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // A header and one descriptor, aligned as the header is.
    let mut ancillary = [0_u64; 3];
    // SAFETY: all zero is a value of this structure; the message describes memory of ours.
    unsafe {
        let mut message: libc::msghdr = mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if let Ok(listener) = listener {
            let header = ancillary.as_mut_ptr().cast::<libc::cmsghdr>();
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(header).cast::<i32>().write_unaligned(listener as i32);
            message.msg_control = ancillary.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(4) as _;
        }
        let sent = call!(Step::Listener, SYS_sendmsg, report, &raw const message, 0);
        // While this process held one itself, its exec would wait for ever if ipcd were killed.
        if let Ok(listener) = listener {
            libc::syscall(libc::SYS_close, listener);
        }
        sent.map(drop).map_err(|(_, _, errno)| errno)
    }
}
