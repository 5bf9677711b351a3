//! The shortest useful service. Start `ipcd`, then `rust-server`, then `rust-client`.
//!
//!     rust-server [NAME]      serves NAME ("echo" unless given)
//!
//! `server.c` and `asyncio_server.py` are the same in C and Python: any client calls any of them.

use std::{env, process::ExitCode};

use ipc::{CallError, Config, Node};

fn main() -> ExitCode {
    let name = env::args().nth(1).unwrap_or_else(|| "echo".to_owned());
    match serve(&name) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Every error is a sentence that says what to do about it.
            eprintln!("rust-server: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(name: &str) -> Result<(), CallError> {
    // A node is this process's membership in the runtime of $IPC_RUNTIME_DIR.
    let node = Node::connect(&Config::default())?;

    // A server is one loop; it may serve many names. A second process that registers the same
    // name stands by, and takes over when this one dies.
    let server = node.server()?;
    server.register(name, 0)?;
    eprintln!("rust-server: serving {name:?}; try `ipctl call {name} hello`");

    // The payload is this process's private copy: no client can change it under our eyes.
    server.run(|request| {
        if request.is_one_way() {
            println!("told {:?}", String::from_utf8_lossy(request.payload()));
            return;
        }
        // A request that is dropped without an answer gets an error by itself, so that no caller
        // waits for nothing. To answer later, from any thread, keep `request.retain()`.
        if let Err(error) = request.reply(request.payload()) {
            eprintln!("rust-server: the caller is gone: {error}");
        }
    })
}
