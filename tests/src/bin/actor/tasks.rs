//! Serving and calling in tasks of a tokio runtime.

use ipc::{Client, Node, Request, Server};
use tests::{LONG, pattern};
use tokio::runtime::{Builder, Runtime};

use crate::{handler, say};

/// A runtime of two threads, with a task that serves and ends calls.
pub(crate) struct Tasks {
    runtime: Runtime,
    pub(crate) server: Server,
}

impl Tasks {
    pub(crate) fn begin(node: &Node) -> Tasks {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_io().build();
        let runtime = runtime.expect("a runtime");
        let server = node.server().expect("a server");
        let (node, port) = (node.clone(), server.clone());
        runtime
            .spawn(async move { ipc::tokio::serve(&port, |request| answer(&node, request)).await });
        Tasks { runtime, server }
    }

    /// Makes so many calls at once.
    pub(crate) fn call(&self, client: &Client, count: u32, size: usize) {
        let calls: Vec<_> = (0..count)
            .map(|_| {
                let (server, client) = (self.server.clone(), client.clone());
                self.runtime.spawn(async move {
                    let payload = pattern(size);
                    let answer = ipc::tokio::call(&server, &client, &payload, LONG).await;
                    assert!(answer.expect("answered") == payload, "it changed");
                })
            })
            .collect();
        for call in calls {
            self.runtime.block_on(call).expect("no panic");
        }
        say("tasks-called");
    }
}

/// An echo is answered by a task of its own; all else where it is.
fn answer(node: &Node, request: Request<'_>) {
    if request.is_one_way() || request.payload().first() == Some(&b'!') {
        return handler::handle(node, request);
    }
    let request = request.retain();
    tokio::spawn(async move {
        tokio::task::yield_now().await;
        // A caller that is gone needs no answer.
        let _ = request.reply(request.payload());
    });
}
