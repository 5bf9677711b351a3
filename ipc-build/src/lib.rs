//! Makes Rust of `.proto` files, in a build script: messages by `prost`, and of each `service` a
//! trait, a client and a server, which run on `ipc::rpc`. No `protoc` is needed.
//!
//! ```no_run
//! // build.rs
//! fn main() -> Result<(), ipc_build::BuildError> {
//!     ipc_build::compile(&["proto/greet.proto"], &["proto"])
//! }
//! ```
//!
//! and then, in a module, `ipc::include_proto!("greet")`, by the name of the package. The crate
//! needs `ipc` with its feature `rpc`, and with `tokio` for [`Builder::tokio`].
//!
//! Of a service `Greeter` come the trait `Greeter`, `GreeterClient` and `GreeterServer`; for tasks
//! `AsyncGreeter`, `AsyncGreeterClient` and `AsyncGreeterServer`. Comments become documentation. A
//! method's option `idempotency_level` says whether it may be repeated: `IDEMPOTENT` and
//! `NO_SIDE_EFFECTS` may. Messages of other crates' packages, Google's own included, need
//! `prost-types` beside.

#![deny(missing_docs)]

mod docs;
mod methods;
mod service;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

pub use methods::{Collision, method_id};

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A `.proto` file cannot be read, or is wrong.
    #[error("{0}")]
    Proto(#[from] protox::Error),
    /// Two methods have the same id.
    #[error(transparent)]
    Collision(#[from] Collision),
    /// A method takes a stream of requests.
    #[error(
        "{0} takes a stream of requests: only answers can be streams; let it be called many \
         times, or take a message with a `repeated` field"
    )]
    ClientStream(String),
    /// What was made could not be written.
    #[error("the code cannot be written: {0}")]
    Write(#[from] std::io::Error),
}

/// Makes Rust of these files, whose imports lie in these directories, for threads.
///
/// # Errors
/// [`BuildError`], which says what to change.
pub fn compile(
    files: &[impl AsRef<Path>],
    includes: &[impl AsRef<Path>],
) -> Result<(), BuildError> {
    Builder::default().compile(files, includes)
}

/// Makes Rust of `.proto` files, with options.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    tokio: bool,
    directory: Option<PathBuf>,
}

impl Builder {
    /// Makes what is for threads only, in `OUT_DIR`.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// Makes traits, clients and servers for tasks of tokio, too.
    #[must_use]
    pub fn tokio(self, tokio: bool) -> Builder {
        Builder { tokio, ..self }
    }

    /// Writes the code there instead of to `OUT_DIR`.
    #[must_use]
    pub fn out_dir(self, directory: impl Into<PathBuf>) -> Builder {
        Builder { directory: Some(directory.into()), ..self }
    }

    /// Makes Rust of these files, whose imports lie in these directories: one file for each
    /// package.
    ///
    /// # Errors
    /// [`BuildError`], which says what to change.
    pub fn compile(
        self,
        files: &[impl AsRef<Path>],
        includes: &[impl AsRef<Path>],
    ) -> Result<(), BuildError> {
        let mut compiler = protox::Compiler::new(includes)?;
        compiler.include_source_info(true).include_imports(true).open_files(files)?;
        let read: BTreeSet<PathBuf> =
            compiler.files().filter_map(|file| file.path().map(Path::to_owned)).collect();
        for path in read {
            println!("cargo::rerun-if-changed={}", path.display());
        }
        let mut set = compiler.file_descriptor_set();
        methods::check(&set)?;
        docs::fill(&mut set);
        let mut config = prost_build::Config::new();
        config.prost_path("::ipc::rpc::prost");
        config.type_attribute(".", service::ALLOW.trim_end());
        config.service_generator(Box::new(service::Generator { tokio: self.tokio }));
        if let Some(directory) = self.directory {
            config.out_dir(directory);
        }
        Ok(config.compile_fds(set)?)
    }
}
