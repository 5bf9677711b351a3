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
//! and then, in a program, `ipc::include_proto! { mod greet = "greet"; }`, by the name of the
//! package. The crate needs `ipc` with its feature `rpc`, and with `tokio` for [`Builder::tokio`].
//!
//! Of a service `Greeter` come the trait `Greeter`, `GreeterClient` and `GreeterServer`; for tasks
//! `AsyncGreeter`, `AsyncGreeterClient` and `AsyncGreeterServer`. Comments become documentation. A
//! method's option `idempotency_level` says whether it may be repeated: `IDEMPOTENT` and
//! `NO_SIDE_EFFECTS` may. A message with the option `(ipc.topic)`, of a file that imports
//! `ipc/event.proto`, is an `ipc::bus::TypedEvent`. Messages of other crates' packages, Google's own
//! included, need `prost-types` beside.

#![deny(missing_docs)]

mod docs;
mod events;
mod methods;
mod service;

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
};

use prost_build::Module;

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
    /// A message's option `(ipc.topic)` is no name of a topic.
    #[error("{message}: {topic:?} is no topic: give 1 to 255 bytes without control characters")]
    Topic {
        /// The message.
        message: String,
        /// What its option says.
        topic: String,
    },
    /// There is no place for it.
    #[error("OUT_DIR is not set: call this in a build script, or give a directory")]
    Nowhere,
    /// What was made could not be written.
    #[error("the code cannot be written: {0}")]
    Write(#[from] std::io::Error),
}

/// Imported by the file that declares the option of events.
const DESCRIPTOR: &str = "google/protobuf/descriptor.proto";

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
        let mut compiler = events::compiler(includes);
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
        events::mark(&compiler, &mut config)?;
        config.prost_path("::ipc::rpc::prost");
        config.service_generator(Box::new(service::Generator { tokio: self.tokio }));
        let directory = self.directory.or_else(|| Some(env::var_os("OUT_DIR")?.into()));
        let directory = directory.ok_or(BuildError::Nowhere)?;
        let module = |package: &str| Module::from_protobuf_package_name(package);
        // They declare options, of which nothing is made.
        set.file.retain(|file| !matches!(file.name(), events::FILE | DESCRIPTOR));
        let files = set.file.into_iter().map(|file| (module(file.package()), file)).collect();
        for (module, code) in config.generate(files)? {
            fs::write(
                directory.join(module.to_file_name_or("_")),
                events::implement(&polish(&code)),
            )?;
        }
        Ok(())
    }
}

/// Gives the functions of enumerations that prost writes what pedantic lints want of them.
fn polish(code: &str) -> String {
    ["pub fn as_str_name(&self)", "pub fn from_str_name(value: &str)"]
        .iter()
        .fold(code.to_owned(), |code, function| {
            code.replace(function, &format!("#[must_use]\n    {function}"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is made of a file with these services, or why not.
    fn made(services: &str) -> Result<String, BuildError> {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("a.proto");
        let text = format!("syntax = \"proto3\"; package a; message M {{}}\n\n{services}");
        fs::write(&file, text).expect("written");
        Builder::new()
            .tokio(true)
            .out_dir(directory.path())
            .compile(&[&file], &[directory.path()])?;
        Ok(fs::read_to_string(directory.path().join("a.rs")).expect("one file for each package"))
    }

    #[test]
    fn methods_of_the_same_id_are_refused_at_build() {
        let (one, other) = colliding();
        let both = format!("service S {{ rpc {one}(M) returns (M); rpc {other}(M) returns (M); }}");
        let refused = made(&both).expect_err("refused").to_string();
        let paths = [format!("/a.S/{one}"), format!("/a.S/{other}")];
        assert!(paths.iter().all(|path| refused.contains(path)), "{refused}");
        assert!(refused.contains("rename"), "{refused}");
        let alone = format!("service S {{ rpc {one}(M) returns (M); }}");
        assert!(made(&alone).is_ok());
    }

    fn colliding() -> (String, String) {
        let mut known = std::collections::HashMap::new();
        (0..)
            .map(|number| format!("M{number}"))
            .find_map(|name| {
                Some((known.insert(method_id(&format!("/a.S/{name}")), name.clone())?, name))
            })
            .expect("32 bits are few")
    }

    #[test]
    fn a_stream_of_requests_is_refused() {
        let refused = made("service S { rpc Up(stream M) returns (M); }").expect_err("refused");
        assert!(matches!(&refused, BuildError::ClientStream(path) if path == "/a.S/Up"));
    }

    #[test]
    fn what_is_wrong_in_a_file_is_said() {
        let refused = made("service S { rpc Up(Nothing) returns (M); }").expect_err("refused");
        assert!(refused.to_string().contains("Nothing"), "{refused}");
    }

    #[test]
    fn methods_named_as_what_clients_have_get_a_mark() {
        let code = made("service S { rpc New(M) returns (M); rpc WithRetry(M) returns (M); }");
        let code = code.expect("made");
        for name in ["new", "with_retry"] {
            assert_eq!(code.matches(&format!("fn {name}_(")).count(), 2, "of each client");
            assert!(code.contains(&format!("self.0.{name}(context")), "the service's own is free");
        }
    }

    #[test]
    fn comments_become_documentation_and_what_has_none_gets_some() {
        let code = made(
            "// Says hello <now> and `<then>`.\nservice S {\n// Up we go.\n rpc Up(M) returns (M); \
                         rpc Down(M) returns (stream M); }",
        )
        .expect("made");
        for name in ["S", "AsyncS"] {
            let text = format!("/// Says hello \\<now> and `<then>`.\npub trait {name}:");
            assert!(code.contains(&text), "{code}");
        }
        assert_eq!(code.matches("/// Calls the method `Down`.").count(), 4);
        assert!(code.contains("/// The message `M`."));
    }

    #[test]
    fn a_message_with_the_option_is_an_event_and_what_lies_in_it_is_none() {
        let code = made(
            "import \"ipc/event.proto\";
message HTTPPrice {
    option (ipc.topic) = \"prices \\\"now\\\"\";
    message Part { uint64 cents = 1; }
    message News { option (ipc.topic) = \"news\"; }
    enum Kind { ODD = 0; }
    oneof either { Part part = 1; uint64 number = 2; }
}
message Empty { option (ipc.topic) = \"empty\"; }
message Other { HTTPPrice price = 1; }",
        );
        let code = code.expect("made");
        let of = |name: &str| format!("impl ::ipc::bus::TypedEvent for {name} {{");
        let topic = |name: &str| {
            let (_, rest) = code.split_once(&of(name)).unwrap_or_else(|| panic!("{name}: {code}"));
            rest.split('\n').nth(1).expect("a constant").trim().to_owned()
        };
        let expected = |topic: &str| format!("const TOPIC: &'static str = {topic:?};");
        assert_eq!(topic("HttpPrice"), expected("prices \"now\""));
        assert_eq!((topic("News"), topic("Empty")), (expected("news"), expected("empty")));
        assert_eq!(code.matches("TypedEvent for").count(), 3, "{code}");
        assert!(!code.contains("ipc_topic"), "{code}");
    }

    #[test]
    fn a_topic_without_a_name_is_refused() {
        let file = "import \"ipc/event.proto\"; message E { option (ipc.topic) = \"\"; }";
        let refused = made(file).expect_err("refused");
        assert!(matches!(&refused, BuildError::Topic { message, .. } if message == "a.E"));
    }
}
