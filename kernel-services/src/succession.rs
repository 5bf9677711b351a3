//! Who runs the runtime when the process that ran it is gone.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ipc::Heir;

use crate::{Kernel, KernelError};

/// Runs the runtime of a directory in this process whenever nobody else does: at once, or later,
/// when the process that ran it has ended.
///
/// ```no_run
/// use ipc::{Config, Node};
/// use kernel_services::Succession;
///
/// let directory = ipc::runtime_dir();
/// let succession = Succession::new(&directory);
/// succession.step_in()?;
/// let heir = Some(succession.heir());
/// let node = Node::connect(&Config { runtime_dir: Some(directory), heir, ..Config::default() })?;
/// # drop(node);
/// succession.end();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Succession(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    reign: Mutex<Reign>,
}

#[derive(Debug)]
enum Reign {
    /// Somebody else's, as far as is known.
    Elsewhere,
    Ours(#[allow(dead_code, reason = "runs as long as it is kept")] Box<Kernel>),
    /// This process will not step in any more.
    Over,
}

impl Succession {
    /// Starts nothing yet.
    pub fn new(runtime_dir: &Path) -> Succession {
        let (directory, reign) = (runtime_dir.to_owned(), Mutex::new(Reign::Elsewhere));
        Succession(Arc::new(Inner { directory, reign }))
    }

    /// Starts the runtime, unless one runs. Returns whether it runs in this process.
    ///
    /// # Errors
    /// Those of [`Kernel::embedded`], but for [`KernelError::Running`].
    pub fn step_in(&self) -> Result<bool, KernelError> {
        let mut reign = self.0.reign.lock().unwrap_or_else(PoisonError::into_inner);
        if let Reign::Elsewhere = *reign {
            match Kernel::embedded(&self.0.directory) {
                Ok(kernel) => *reign = Reign::Ours(Box::new(kernel)),
                Err(KernelError::Running { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(matches!(*reign, Reign::Ours(_)))
    }

    /// Has a node step in whenever it misses the runtime: for [`ipc::Config::heir`].
    pub fn heir(&self) -> Heir {
        let succession = self.clone();
        // What keeps it from stepping in now may not do so at the next attempt.
        Heir::new(move || drop(succession.step_in()))
    }

    /// Ends the runtime, if it runs here; this process does not step in again.
    pub fn end(&self) {
        *self.0.reign.lock().unwrap_or_else(PoisonError::into_inner) = Reign::Over;
    }
}
