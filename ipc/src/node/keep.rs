//! Memory that the runtime keeps: a supervised process hands it over, and its successor gets it.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, PoisonError},
};

use super::{Core, Node, PATIENCE, refused};
use crate::{
    control::{self, Reply, Request},
    error::NodeError,
};

/// Most that one look may find: more than any runtime keeps for one unit.
const MOST: usize = 64 * 1024;

impl Core {
    /// Hands over what is kept to a runtime that knows nothing of it. Nobody waits for the answers:
    /// what it refuses is as safe as it was without a runtime.
    pub(super) fn tell_kept(&self) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (name, memory) in kept {
            let _ = self.post(self.next_sequence(), &Request::Keep { name }, &[memory.as_fd()]);
        }
    }
}

impl Node {
    /// Has the runtime keep a duplicate of memory by a name, in place of an older by that name. The
    /// next process of this supervised unit gets it by [`kept`](Node::kept), if this one dies. A
    /// runtime that restarts is given it again. It is charged to the service.
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `ACCESS` in a process that nobody supervises, `INVALID` for what
    /// is no memfd sealed `SHRINK|GROW|FUTURE_WRITE|SEAL`, wholly allocated, `QUOTA`;
    /// [`NodeError::NoRuntime`]: it is handed over when there is one again.
    pub fn keep(&self, name: &str, memory: &Arc<OwnedFd>) -> Result<(), NodeError> {
        control::check_name(name).map_err(NodeError::Name)?;
        let core = &self.shared.core;
        let mine = Arc::clone(memory);
        core.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), mine);
        let request = Request::Keep { name: name.to_owned() };
        let outcome = core.request(&request, &[memory.as_fd()], Some(PATIENCE));
        match outcome.map(|(reply, _)| reply) {
            Ok(Reply::Done) => Ok(()),
            Ok(reply) => {
                core.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
                Err(refused(&reply))
            }
            Err(error) => Err(error),
        }
    }

    /// Has the runtime let go of what it keeps by a name.
    ///
    /// # Errors
    /// Those of a lost runtime, which lets go of everything anyway.
    pub fn let_go(&self, name: &str) -> Result<(), NodeError> {
        control::check_name(name).map_err(NodeError::Name)?;
        let core = &self.shared.core;
        core.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        core.post(core.next_sequence(), &Request::Keep { name: name.to_owned() }, &[])
    }

    /// Gives what this unit's predecessors had kept, by name, and goes on having it kept.
    ///
    /// ```no_run
    /// # fn of(node: &ipc::Node) -> Result<(), ipc::NodeError> {
    /// for (name, memory) in node.kept()? {
    ///     println!("{name}: {memory:?}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `ACCESS` in a process that nobody supervises; those of a lost
    /// runtime.
    pub fn kept(&self) -> Result<Vec<(String, Arc<OwnedFd>)>, NodeError> {
        let core = &self.shared.core;
        let mut found = Vec::new();
        let mut after = 0;
        for _ in 0..MOST {
            let request = Request::Kept { after };
            let (reply, fds) = core.request(&request, &[], Some(PATIENCE))?;
            let (Reply::Kept { next, name }, fd) = (&reply, fds.into_iter().next()) else {
                return if reply == Reply::Done { Ok(found) } else { Err(refused(&reply)) };
            };
            let memory = fd.ok_or(NodeError::Malformed("kept memory without a descriptor"))?;
            let memory = Arc::new(memory.vouched());
            let mut kept = core.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.insert(name.clone(), Arc::clone(&memory));
            found.push((name.clone(), memory));
            after = *next;
        }
        Ok(found)
    }
}
