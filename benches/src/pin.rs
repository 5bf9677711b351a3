//! Choice of the two CPUs that a benchmark runs on.

use std::fmt;
use std::fs;
use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// How the two CPUs of a [`Placement`] relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Two cores.
    Cores,
    /// Two hardware threads of one core, for want of a second core.
    Siblings,
    /// A single CPU: the processes take turns on it, so whoever polls must yield.
    One,
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cores => "two cores",
            Self::Siblings => "two threads of one core",
            Self::One => "one CPU only: both processes share it, and polling yields",
        })
    }
}

/// The CPU of the measuring process, and that of its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// CPU of the process that measures.
    pub here: usize,
    /// CPU of its peer.
    pub there: usize,
    /// What the two are to each other.
    pub relation: Relation,
}

impl Placement {
    /// Chooses two CPUs among those this process may run on.
    ///
    /// Two cores under one last-level cache are best; then two cores; then two threads of a core.
    ///
    /// # Errors
    /// Those of `sched_getaffinity(2)`.
    pub fn choose() -> io::Result<Self> {
        let cpus: Vec<Cpu> = allowed()?.into_iter().map(Cpu::read).collect();
        choose_among(&cpus).ok_or_else(|| io::Error::other("the affinity mask is empty"))
    }
}

/// Lists the CPUs that this process may run on, ascending.
///
/// # Errors
/// Those of `sched_getaffinity(2)`.
pub fn allowed() -> io::Result<Vec<usize>> {
    let mask = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|&cpu| mask.is_set(cpu).unwrap_or(false)).collect())
}

/// Confines the calling thread, and the processes it starts later, to `cpus`.
///
/// # Errors
/// Those of `sched_setaffinity(2)`; `EINVAL` when a CPU number is beyond the kernel's sets.
pub fn pin_to(cpus: &[usize]) -> io::Result<()> {
    let mut mask = CpuSet::new();
    for &cpu in cpus {
        mask.set(cpu)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(0), &mask)?)
}

/// A CPU and what it shares, each set in the kernel's own notation (`0-3,8`).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cpu {
    id: usize,
    core: String,
    cache: String,
}

impl Cpu {
    /// Reads the topology; what the kernel does not tell is taken as shared with nobody.
    fn read(id: usize) -> Self {
        let read = |file: &str| {
            fs::read_to_string(format!("/sys/devices/system/cpu/cpu{id}/{file}"))
                .map_or_else(|_| id.to_string(), |text| text.trim().to_owned())
        };
        Self {
            id,
            core: read("topology/thread_siblings_list"),
            cache: read("cache/index3/shared_cpu_list"),
        }
    }
}

fn choose_among(cpus: &[Cpu]) -> Option<Placement> {
    let first = cpus.first()?;
    let pairs =
        || cpus.iter().enumerate().flat_map(|(i, a)| cpus[i + 1..].iter().map(move |b| (a, b)));
    let cores = |(a, b): &(&Cpu, &Cpu)| a.core != b.core;

    let (a, b, relation) = pairs()
        .find(|pair| cores(pair) && pair.0.cache == pair.1.cache)
        .or_else(|| pairs().find(cores))
        .map(|(a, b)| (a, b, Relation::Cores))
        .or_else(|| pairs().next().map(|(a, b)| (a, b, Relation::Siblings)))
        .unwrap_or((first, first, Relation::One));
    Some(Placement { here: a.id, there: b.id, relation })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(id: usize, core: &str, cache: &str) -> Cpu {
        Cpu { id, core: core.into(), cache: cache.into() }
    }

    fn chosen(cpus: &[Cpu]) -> (usize, usize, Relation) {
        let placement = choose_among(cpus).expect("there are CPUs");
        (placement.here, placement.there, placement.relation)
    }

    #[test]
    fn two_cores_under_one_cache_come_first() {
        let cpus =
            [cpu(0, "0-1", "0-1"), cpu(1, "0-1", "0-1"), cpu(2, "2", "2-3"), cpu(3, "3", "2-3")];
        assert_eq!(chosen(&cpus), (2, 3, Relation::Cores));
    }

    #[test]
    fn then_two_cores_then_two_threads_then_one() {
        assert_eq!(chosen(&[cpu(0, "0", "0"), cpu(4, "4", "4")]), (0, 4, Relation::Cores));
        assert_eq!(chosen(&[cpu(2, "2-3", "x"), cpu(3, "2-3", "x")]), (2, 3, Relation::Siblings));
        assert_eq!(chosen(&[cpu(5, "5", "5")]), (5, 5, Relation::One));
        assert_eq!(choose_among(&[]), None);
    }

    #[test]
    fn a_pinned_thread_is_where_it_was_put() {
        let here = Placement::choose().expect("a placement").here;
        std::thread::spawn(move || {
            pin_to(&[here]).expect("an allowed CPU");
            assert_eq!(allowed().expect("a mask"), [here]);
        })
        .join()
        .expect("the pinned thread");
    }
}
