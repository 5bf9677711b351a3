//! A service that does with others what it is told, and answers what came of it.

use std::{collections::HashMap, time::Duration};

use ipc::{CallError, Client, Config, Node, NodeError, Request, Status};

const LONG: Duration = Duration::from_mins(1);

/// Serves a name until it is killed.
pub(crate) fn serve(name: &str) {
    let node = Node::connect(&Config::default()).expect("a node");
    let server = node.server().expect("a server");
    server.register(name, 0).expect("registered");
    let mut kept = HashMap::new();
    let _ = server.run(|request| answer(&node, &mut kept, &request));
}

/// Answers with a status' name, or with a count.
fn answer(node: &Node, kept: &mut HashMap<String, Client>, request: &Request<'_>) {
    let text = String::from_utf8(request.payload().to_vec()).expect("text");
    let words: Vec<&str> = text.split(' ').collect();
    let result = match words[..] {
        ["call", dest] => call(node, kept, dest).name().to_owned(),
        ["serve", name] => {
            let server = node.server().expect("a server");
            let registered = server.register(name, 0);
            registered.map_or_else(|error| error.status(), |_| Status::OK).name().to_owned()
        }
        ["open", dest, most] => open(dest, most.parse().expect("a number")),
        ["spam", count] => {
            let refused = (0..count.parse().expect("a number"))
                .filter(|_| matches!(node.state(), Err(NodeError::Refused(Status::QUOTA))));
            refused.count().to_string()
        }
        _ => panic!("no such thing to do: {text}"),
    };
    request.reply(result.as_bytes()).expect("replied");
}

/// Calls through the channel that was opened first, for as long as it is open.
fn call(node: &Node, kept: &mut HashMap<String, Client>, dest: &str) -> Status {
    let opened = match kept.get(dest) {
        Some(client) => Ok(client.clone()),
        None => node.discover(dest).and_then(|id| node.client(id)),
    };
    match opened.map(|client| (client.call(b"hello", LONG), client)) {
        Ok((Ok(_), client)) => {
            kept.insert(dest.to_owned(), client);
            Status::OK
        }
        Ok((Err(error), _)) => {
            kept.remove(dest);
            CallError::status(&error)
        }
        Err(error) => error.status(),
    }
}

/// Opens channels, each through a connection of its own, until one is refused or that many are
/// open; closes them all, and says how many there were and what ended it.
fn open(dest: &str, most: usize) -> String {
    let mut open = Vec::new();
    while open.len() < most {
        let opened = Node::connect(&Config::default()).and_then(|node| {
            let client = node.client(node.discover(dest)?)?;
            Ok((node, client))
        });
        match opened {
            Ok(opened) => open.push(opened),
            Err(error) => return format!("{} {}", open.len(), error.status().name()),
        }
    }
    format!("{most} IPC_OK")
}
