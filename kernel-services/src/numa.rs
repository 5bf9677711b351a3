//! Which CPUs a NUMA node has, as `/sys/devices/system/node` tells.

use std::{fs, io, path::Path};

/// Where the kernel shows the topology.
pub(crate) const SYSFS: &str = "/sys/devices/system/node";

/// The highest CPU or node number that is believed; the kernel's own bound is lower.
const HIGHEST: usize = 8191;

/// Explains why a service cannot be put on its NUMA node.
#[derive(Debug, thiserror::Error)]
pub enum NumaError {
    /// The machine has no such node, or it is not online.
    #[error("NUMA node {node} is not online here; online are {online:?}: change `numa_node`")]
    NoSuchNode {
        /// The node asked for.
        node: u32,
        /// The nodes that there are.
        online: Vec<usize>,
    },
    /// The node has memory only.
    #[error("NUMA node {node} has no CPUs: choose another `numa_node`")]
    NoCpus {
        /// The node asked for.
        node: u32,
    },
    /// The kernel's files say something else than lists of numbers.
    #[error("cannot read the NUMA topology: {0}")]
    Unreadable(#[from] io::Error),
}

/// Gives the CPUs of a node; `None` where it is the only one, and there is nothing to choose.
///
/// A kernel without NUMA shows no topology at all: that counts as one node, number 0.
pub(crate) fn cpus_of(sysfs: &Path, node: u32) -> Result<Option<Vec<usize>>, NumaError> {
    let online = match fs::read_to_string(sysfs.join("online")) {
        Ok(text) => numbers(&text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => vec![0],
        Err(error) => return Err(error.into()),
    };
    if !online.contains(&(node as usize)) {
        return Err(NumaError::NoSuchNode { node, online });
    }
    if online.len() == 1 {
        return Ok(None);
    }
    let cpus = numbers(&fs::read_to_string(sysfs.join(format!("node{node}/cpulist")))?)?;
    if cpus.is_empty() { Err(NumaError::NoCpus { node }) } else { Ok(Some(cpus)) }
}

/// Reads a list as the kernel writes it: `0-3,8,10-11`.
fn numbers(text: &str) -> io::Result<Vec<usize>> {
    let strange = || io::Error::new(io::ErrorKind::InvalidData, format!("not a list: {text:?}"));
    let number = |text: &str| text.parse().ok().filter(|&n: &usize| n <= HIGHEST);
    let mut all = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first = number(first).ok_or_else(strange)?;
        let last = number(last).ok_or_else(strange)?;
        all.extend(first..=last);
    }
    Ok(all)
}

/// Makes the bit mask that the kernel takes for a set of CPUs or nodes.
pub(crate) fn mask(numbers: &[usize]) -> Vec<u64> {
    let words = numbers.iter().max().map_or(1, |most| most / 64 + 1);
    let mut mask = vec![0; words];
    for number in numbers {
        mask[number / 64] |= 1 << (number % 64);
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(online: &str, nodes: &[(u32, &str)]) -> tempfile::TempDir {
        let sysfs = tempfile::tempdir().expect("a directory");
        fs::write(sysfs.path().join("online"), online).expect("written");
        for (node, cpus) in nodes {
            let directory = sysfs.path().join(format!("node{node}"));
            fs::create_dir(&directory).expect("made");
            fs::write(directory.join("cpulist"), cpus).expect("written");
        }
        sysfs
    }

    #[test]
    fn one_node_leaves_nothing_to_choose() {
        let sysfs = machine("0\n", &[(0, "0-7\n")]);
        assert!(matches!(cpus_of(sysfs.path(), 0), Ok(None)));
        assert!(matches!(cpus_of(&sysfs.path().join("nowhere"), 0), Ok(None)));
    }

    #[test]
    fn a_node_of_several_has_its_own_cpus() {
        let sysfs = machine("0-1,3\n", &[(0, "0-3,8-11\n"), (1, "4-7,12-15\n"), (3, "\n")]);
        assert_eq!(
            cpus_of(sysfs.path(), 1).expect("there").expect("a choice"),
            [4, 5, 6, 7, 12, 13, 14, 15]
        );
        assert!(matches!(cpus_of(sysfs.path(), 3), Err(NumaError::NoCpus { node: 3 })));
        let missing = cpus_of(sysfs.path(), 2);
        let Err(NumaError::NoSuchNode { node: 2, online }) = missing else { panic!("{missing:?}") };
        assert_eq!(online, [0, 1, 3]);
    }

    #[test]
    fn strange_lists_are_refused() {
        for strange in ["x", "0-", "1-x", "0-99999999"] {
            assert!(numbers(strange).is_err(), "{strange}");
        }
    }

    #[test]
    fn masks_have_a_bit_for_each_number() {
        assert_eq!(mask(&[0, 3]), [0b1001]);
        assert_eq!(mask(&[65]), [0, 0b10]);
        assert_eq!(mask(&[]), [0]);
    }
}
