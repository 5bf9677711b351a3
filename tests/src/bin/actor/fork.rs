//! What a forked child of a node finds.

use std::time::Duration;

use ipc::{CallError, CallOptions, Node, NodeError};
use tests::LONG;

use crate::{commands::Stage, say};

/// Tries every operation with what the parent opened; says `child OPERATION STATUS` for each, and
/// `anew ANSWER` for a call over a node of its own.
pub(crate) fn child(stage: &mut Stage, name: &str) {
    let node = &stage.node;
    say(&format!("child is_forked {}", node.is_forked()));
    node_said("discover", node.discover(name));
    node_said("wait_service", node.wait_service(name, Some(Duration::from_millis(10))));
    node_said("list", node.list());
    node_said("state", node.state());
    let client = stage.clients[name].clone();
    node_said("client", node.client(client.dest()));
    node_said("server", node.server());
    call_said("call", client.call(b"x", LONG));
    call_said("call_into", client.call_into(b"x", &mut [0; 8], LONG));
    call_said("send", client.send(b"x", CallOptions::timeout(Duration::ZERO)));
    call_said("burst", client.burst(|burst| burst.send(b"x")));
    call_said("start", client.start(b"x", LONG));
    call_said("ping", client.ping(LONG));
    say(&format!("child cancel {}", client.cancel(stage.pending[0].message_id())));
    if let Some(server) = &stage.server {
        node_said("register", server.register("of-a-child", 0));
        node_said("unregister", server.unregister(stage.registrations[0].instance));
        call_said("poll", server.poll(Some(Duration::ZERO), &mut |_| {}));
        call_said("run", server.run(|_| {}));
        call_said("call_async", client.call_async(server, b"x", LONG, |_| {}));
    }
    // Neither is there, and both are let go of in peace.
    let (view, loan) = stage.lent.take().expect("made before");
    let (read, lent) = (view.read_at(0, &mut [0; 8]) + view.to_vec().len(), loan.len());
    drop((view, loan));
    say(&format!("child bulk {}", read + lent));
    for pending in stage.pending.drain(..) {
        call_said("wait", pending.wait());
    }
    drop(client);
    stage.clients.clear();
    stage.server = None;
    // The last handle of the parent's node goes with this.
    stage.node = Node::connect(&stage.config).expect("a node of the child's own");
    let id = stage.node.discover(name).expect("served");
    let client = stage.node.client(id).expect("a channel of the child's own");
    say(&format!("anew {}", crate::handler::outcome(client.call(b"hello", LONG))));
}

fn node_said<T>(operation: &str, result: Result<T, NodeError>) {
    let status = result.map_or_else(|error| error.status().name(), |_| "IPC_OK");
    say(&format!("child {operation} {status}"));
}

fn call_said<T>(operation: &str, result: Result<T, CallError>) {
    let status = result.map_or_else(|error| error.status().name(), |_| "IPC_OK");
    say(&format!("child {operation} {status}"));
}
