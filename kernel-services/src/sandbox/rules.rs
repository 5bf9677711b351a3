//! Landlock's rules: which files and ports a sandboxed process reaches.
//!
//! Every right that the crate knows is *handled*, that is, refused where no rule gives it; on an
//! older kernel what it does not know is left out ([`super::Unenforced`] says what that means).

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, Scope,
};

use super::{SandboxError, image};
use crate::node::Grants;

/// The newest that this list of rights was written for.
const NEWEST: ABI = ABI::V9;

/// Where a loader looks for shared libraries. They are read, never executed by name.
const LIBRARIES: &[&str] =
    &["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"];

/// What libraries read at their start: nothing that differs from one user to another. Of `/proc`
/// nothing is among it, as `/proc/self/mem` and `/proc/self/fd` lead around other defences.
const MACHINE: &[&str] = &[
    "/dev/null",
    "/dev/zero",
    "/dev/urandom",
    "/etc/localtime",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
];

/// Makes the rules; `None` where there is no landlock.
pub(super) fn ruleset(
    executable: &Path,
    libraries: &[PathBuf],
    runtime_dir: &Path,
    key_file: Option<&Path>,
    grants: &Grants,
) -> Result<Option<OwnedFd>, SandboxError> {
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let execute = AccessFs::Execute | AccessFs::ReadFile;
    let write = AccessFs::from_all(NEWEST) & !(AccessFs::Execute | AccessFs::ResolveUnix);
    let mut rules = Rules(
        Ruleset::default()
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?
            .create()?,
    );
    for path in image::executed_with(executable) {
        rules.give_if_there(&path, execute)?;
    }
    for path in LIBRARIES.iter().chain(MACHINE).map(Path::new) {
        rules.give_if_there(path, read)?;
    }
    for path in libraries {
        rules.give_if_there(path, read)?;
    }
    rules.give_if_there(Path::new("/dev/null"), AccessFs::WriteFile.into())?;
    // The way back to the runtime after it was restarted; older kernels do not ask.
    rules.give_if_there(runtime_dir, AccessFs::ResolveUnix.into())?;
    if let Some(path) = key_file {
        rules.give(path, AccessFs::ReadFile.into())?;
    }
    for path in &grants.read {
        rules.give(path, read)?;
    }
    for path in &grants.write {
        rules.give(path, write)?;
    }
    for path in &grants.execute {
        rules.give(path, execute | AccessFs::ReadDir)?;
        for needed in image::executed_with(path).iter().skip(1) {
            rules.give_if_there(needed, execute)?;
        }
    }
    rules.open_ports(&grants.connect_tcp, AccessNet::ConnectTcp)?;
    rules.open_ports(&grants.bind_tcp, AccessNet::BindTcp)?;
    Ok(rules.0.into())
}

struct Rules(RulesetCreated);

impl Rules {
    fn give(&mut self, path: &Path, rights: BitFlags<AccessFs>) -> Result<(), SandboxError> {
        let opened = PathFd::new(path).map_err(|error| SandboxError::Path {
            path: path.to_owned(),
            reason: std::error::Error::source(&error)
                .map_or_else(|| error.to_string(), ToString::to_string),
        })?;
        // Of a file that is no directory the rights of directories are left out.
        let rule = PathBeneath::new(opened, rights);
        (&mut self.0).add_rule(rule)?;
        Ok(())
    }

    fn give_if_there(
        &mut self,
        path: &Path,
        rights: BitFlags<AccessFs>,
    ) -> Result<(), SandboxError> {
        match self.give(path, rights) {
            Err(SandboxError::Path { .. }) => Ok(()),
            given => given,
        }
    }

    fn open_ports(&mut self, ports: &[u16], right: AccessNet) -> Result<(), SandboxError> {
        for port in ports {
            (&mut self.0).add_rule(NetPort::new(*port, right))?;
        }
        Ok(())
    }
}
