//! A service for tests of traces: it works on each request within a span of its own, asks another
//! service meanwhile if it is to, and says where each span stood when that closes.
//!
//! ```text
//! relay DIRECTORY NAME [ASKS]
//! ```
//!
//! It ends with the process that started it.

use std::{path::PathBuf, time::Duration};

use ipc::{
    Config, Node,
    trace::{Contexts, Placed},
};
use nix::sys::{prctl, signal::Signal};
use tracing::{Id, Subscriber, info_span};
use tracing_subscriber::{Layer, layer, prelude::*, registry::LookupSpan};

const LONG: Duration = Duration::from_secs(20);

/// Says each span.
struct Say;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Say {
    fn on_close(&self, id: Id, context: layer::Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        if let Some(Placed { context, parent }) = span.extensions().get::<Placed>() {
            let (name, pid) = (span.name(), std::process::id());
            println!(
                "span {pid} {name} {:032x} {:016x} {parent:016x}",
                context.trace, context.span
            );
        }
    }
}

fn main() {
    prctl::set_pdeathsig(Signal::SIGKILL).expect("a valid signal");
    println!("pid {}", std::process::id());
    tracing_subscriber::registry().with(Contexts::new()).with(Say).init();
    let mut arguments = std::env::args().skip(1);
    let runtime_dir = arguments.next().map(PathBuf::from);
    let name = arguments.next().expect("a name");
    let node = Node::connect(&Config { runtime_dir, ..Config::default() }).expect("a runtime");
    let client = arguments.next().map(|asks| {
        let id = node.wait_service(&asks, None).expect("served");
        node.client(id).expect("a channel")
    });
    let server = node.server().expect("a server");
    server.register(&name, 0).expect("registered");
    println!("serving");
    let answer = |request: ipc::Request<'_>| {
        let _work = info_span!("work").entered();
        let answer = match &client {
            Some(client) => client.call(request.payload(), LONG).expect("an answer"),
            None => request.payload().to_vec(),
        };
        // A caller that was killed takes none.
        let _ = request.reply(&answer);
    };
    server.run(answer).expect("it serves until it is killed");
}
