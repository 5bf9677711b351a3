//! What else the kernel executes in order to execute a file: the dynamic loader of an ELF image,
//! the interpreter of a script.

use std::{
    ffi::OsStr,
    fs::File,
    io::Read,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
};

/// Scripts whose interpreter is a script, and so on; the kernel's own bound.
const DEPTH: usize = 4;

/// Lists a file and what it needs in order to be executed. What cannot be read is left out: the
/// kernel will say by itself what is wrong with it.
pub(super) fn executed_with(executable: &Path) -> Vec<PathBuf> {
    let mut all = vec![executable.to_owned()];
    while all.len() <= DEPTH {
        let last = &all[all.len() - 1];
        match interpreter(last) {
            Some(next) if !all.contains(&next) => all.push(next),
            Some(_) | None => break,
        }
    }
    all
}

fn interpreter(path: &Path) -> Option<PathBuf> {
    let file = File::open(path).ok()?;
    let mut head = Vec::new();
    (&file).take(256).read_to_end(&mut head).ok()?;
    match head.strip_prefix(b"#!") {
        Some(line) => {
            let mut words = line.split(|byte| b" \t\n".contains(byte)).filter(|w| !w.is_empty());
            Some(path_of(words.next()?))
        }
        None => loader(&file, &head),
    }
}

/// Finds the segment `PT_INTERP` of a 64-bit ELF image of this machine's byte order.
fn loader(file: &File, head: &[u8]) -> Option<PathBuf> {
    const PT_INTERP: u32 = 3;
    const SEGMENT: usize = 56;
    if !head.starts_with(b"\x7fELF\x02") {
        return None;
    }
    let table = u64::from_ne_bytes(head.get(32..40)?.try_into().ok()?);
    let count = u16::from_ne_bytes(head.get(56..58)?.try_into().ok()?);
    for number in 0..u64::from(count) {
        let mut segment = [0; SEGMENT];
        file.read_exact_at(&mut segment, table.checked_add(number * SEGMENT as u64)?).ok()?;
        let word = |at: usize| Some(u64::from_ne_bytes(segment.get(at..at + 8)?.try_into().ok()?));
        let kind = u32::from_ne_bytes(segment[..4].try_into().ok()?);
        if kind == PT_INTERP {
            let (offset, length) = (word(8)?, usize::try_from(word(32)?).ok()?);
            let mut name = vec![0; length.min(libc::PATH_MAX as usize)];
            file.read_exact_at(&mut name, offset).ok()?;
            return Some(path_of(name.strip_suffix(b"\0").unwrap_or(&name)));
        }
    }
    None
}

fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_program_brings_its_loader() {
        let us = std::env::current_exe().expect("a path");
        let all = executed_with(&us);
        assert_eq!(all[0], us);
        assert!(all[1].to_string_lossy().contains("ld-"), "{all:?}");
        assert_eq!(all.len(), 2, "a loader has none: {all:?}");
    }

    #[test]
    fn a_script_brings_its_interpreter_and_that_its_loader() {
        let directory = tempfile::tempdir().expect("a directory");
        let script = directory.path().join("script");
        fs::write(&script, "#! /bin/sh -e\necho hello\n").expect("written");
        let all = executed_with(&script);
        assert_eq!(all[1], Path::new("/bin/sh"));
        assert_eq!(all.len(), 3, "{all:?}");
        fs::write(&script, format!("#!{}\n", script.display())).expect("written");
        assert_eq!(executed_with(&script).len(), 1, "its own interpreter");
        assert_eq!(executed_with(&directory.path().join("missing")).len(), 1);
    }
}
