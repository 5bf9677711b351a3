//! Pins a thread to a CPU.

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::Failure;

/// Lets the calling thread run on that CPU only.
pub(crate) fn this_thread(cpu: usize) -> Result<(), Failure> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|errno| Failure::System { what: "pin to the CPU of --cpu", errno })
}
