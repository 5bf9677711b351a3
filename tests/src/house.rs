//! Two nodes of one process, over a real runtime.

use std::path::Path;

use ipc::{CallError, Config, Node, Request};
use kernel_services::Kernel;

/// A runtime, a node that serves "echo" in threads, and a node that calls it.
#[derive(Debug)]
pub struct House {
    /// Calls.
    pub client: Node,
    /// Serves.
    pub server: Node,
    threads: Vec<std::thread::JoinHandle<()>>,
    _kernel: Kernel,
    directory: tempfile::TempDir,
}

impl House {
    /// Serves with so many threads.
    pub fn with(config: &Config, threads: usize, handler: fn(Request<'_>)) -> House {
        House::of(config, config, threads, handler)
    }

    /// Serves with one thread.
    pub fn serving(
        config: &Config,
        handler: impl Fn(Request<'_>) + Clone + Send + 'static,
    ) -> House {
        House::of(config, config, 1, handler)
    }

    /// Serves what comes.
    pub fn echo(config: &Config) -> House {
        House::with(config, 1, |request| request.reply(request.payload()).expect("replied"))
    }

    /// Gives the client and the server configurations of their own.
    pub fn of(
        client: &Config,
        server: &Config,
        threads: usize,
        handler: impl Fn(Request<'_>) + Clone + Send + 'static,
    ) -> House {
        let directory = tempfile::tempdir().expect("a directory");
        let kernel = Kernel::embedded(directory.path()).expect("a runtime");
        let here = Some(directory.path().to_owned());
        let connect = |config: &Config| {
            Node::connect(&Config { runtime_dir: here.clone(), ..config.clone() }).expect("a node")
        };
        let (server, client) = (connect(server), connect(client));
        let port = server.server().expect("a server");
        port.register("echo", 0).expect("registered");
        let threads = (0..threads)
            .map(|_| {
                let (port, handler) = (port.clone(), handler.clone());
                std::thread::spawn(move || {
                    assert!(matches!(port.run(handler), Err(CallError::Canceled)));
                })
            })
            .collect();
        House { client, server, threads, _kernel: kernel, directory }
    }

    /// The runtime directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Opens the client's channel to "echo".
    pub fn client(&self) -> ipc::Client {
        let id = self.client.discover("echo").expect("served");
        self.client.client(id).expect("a channel")
    }

    /// Opens a channel of its own to "echo", as another node.
    pub fn other_client(&self) -> ipc::Client {
        let config = Config { runtime_dir: Some(self.directory().to_owned()), ..Config::default() };
        let node = Node::connect(&config).expect("a node");
        node.client(node.discover("echo").expect("served")).expect("a channel")
    }

    /// How many serving threads have not ended.
    pub fn running(&self) -> usize {
        self.threads.iter().filter(|thread| !thread.is_finished()).count()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            self.server.interrupter().fire();
            std::thread::yield_now();
        }
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}
