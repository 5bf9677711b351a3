//! Typed calls: what the code runs on that `ipc-build` makes from `.proto` files. Feature `rpc`.
//!
//! For each `service` of a `.proto` file there is a trait to implement, a server that has requests
//! carried out by an implementation, and a client. `docs/rpc.md` has the bytes that travel, for
//! who speaks to such a service from another language.
//!
//! ```ignore
//! // build.rs: ipc_build::compile(&["proto/greet.proto"], &["proto"])?;
//! ipc::include_proto! { mod greet = "greet"; }
//!
//! struct English;
//!
//! impl greet::Greeter for English {
//!     fn greet(&self, _: &Context, request: greet::Request) -> Result<greet::Greeting, Fault> {
//!         Ok(greet::Greeting { text: format!("Hello, {}", request.name) })
//!     }
//! }
//!
//! let router = ipc::rpc::Router::new().with(greet::GreeterServer::new(English))?;
//! server.register("greeter", router.flags())?;
//! server.run(|request| router.handle(&request))?;
//! ```

mod call;
mod context;
mod fault;
mod message_bus;
mod router;
mod streams;
#[cfg(feature = "tokio")]
mod tasks;
#[cfg(feature = "tokio")]
mod under_way;
pub mod wire;

pub use call::{Caller, Items, RpcOptions};
pub use context::Context;
pub use fault::{Fault, RpcError};
pub use message_bus::MessageBus;
pub use prost;
pub use router::{Answer, Dispatch, MethodCollision, Router, Stream, streaming, unary};
#[cfg(feature = "tokio")]
pub use tasks::{
    AsyncCaller, AsyncDispatch, AsyncItems, AsyncRouter, Served, Serving, StreamSender, TaskStream,
    serve_stream, serve_unary, stream,
};
pub use wire::Trace;

use crate::civil::Idempotency;

/// A method of a service, as a `.proto` file declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// By which it is known on the wire.
    pub id: u32,
    /// `/package.Service/Method`.
    pub path: &'static str,
    /// Its option `idempotency_level`.
    pub idempotency: Idempotency,
}

/// Includes what `ipc-build` made of a package of `.proto` files, as a module.
///
/// ```ignore
/// ipc::include_proto! {
///     /// Speaks to shelves.
///     pub mod shelf = "shelf";
/// }
/// ```
///
/// Packages that use each other's messages lie beside each other, in modules of their own names.
#[macro_export]
macro_rules! include_proto {
    ($(#[$attribute:meta])* $visible:vis mod $name:ident = $package:literal;) => {
        $(#[$attribute])*
        // A program may use any part of it; comments may be written for other languages; and
        // messages are passed alike, whether they are small or large.
        #[allow(dead_code, unreachable_pub)]
        #[allow(clippy::doc_markdown, clippy::trivially_copy_pass_by_ref)]
        $visible mod $name {
            include!(concat!(env!("OUT_DIR"), "/", $package, ".rs"));
        }
    };
}
