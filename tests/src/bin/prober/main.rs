//! Serves the service of `proto/probe.proto`: as "probe" by two threads, as "probe.tasks" in tasks,
//! and as "probe.small" with a low limit on messages. A mortal one dies when it is asked to
//! count by a certain name.

mod machine;

use std::{path::PathBuf, sync::Arc, thread};

use ipc::{
    Client, Config, Node, Spin,
    rpc::{AsyncRouter, Context, Fault, Router, RpcOptions, Stream, TaskStream, stream},
};
use tests::probe::{
    AsyncProbe, AsyncProbeClient, AsyncProbeServer, Counted, Failure, Failures, Item, Number,
    Onward, Probe, ProbeClient, ProbeServer, Range, Seen,
};
use tokio::runtime::Builder;

use machine::{Alive, Machine, alive, fail, look};

fn main() {
    let directory = std::env::args().nth(1).expect("a directory");
    println!("pid {}", std::process::id());
    let config = Config {
        runtime_dir: Some(PathBuf::from(directory)),
        spin: Spin::Learned,
        ..Config::default()
    };
    let machine = Arc::new(Machine::new(std::env::args().nth(2).is_some_and(|it| it == "mortal")));
    let node = Node::connect(&config).expect("a node");
    let tasks = (Node::connect(&config).expect("a node"), Arc::clone(&machine));
    thread::spawn(move || serve_tasks(tasks.0, tasks.1));
    let small = Config { max_payload: 4096, ..config };
    let small = (Node::connect(&small).expect("a node"), Arc::clone(&machine));
    thread::spawn(move || serve_threads("probe.small", small.0, small.1));
    serve_threads("probe", node, machine);
}

fn serve_threads(name: &str, node: Node, machine: Arc<Machine>) {
    let server = node.server().expect("a server");
    let threads = Threads { node, machine };
    let router = Router::new().with(ProbeServer::new(threads)).expect("one service");
    server.register(name, router.flags()).expect("registered");
    println!("serving {name}");
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| server.run(|request| router.handle(&request)));
        }
    });
}

struct Threads {
    node: Node,
    machine: Arc<Machine>,
}

impl Probe for Threads {
    fn echo(&self, _: &Context, request: Item) -> Result<Item, Fault> {
        Ok(request)
    }

    fn count(&self, _: &Context, request: Failures) -> Result<Counted, Fault> {
        self.machine.count(request)
    }

    fn count_safely(&self, _: &Context, request: Failures) -> Result<Counted, Fault> {
        self.machine.count(request)
    }

    fn fail(&self, _: &Context, request: Failure) -> Result<Item, Fault> {
        Err(fail(&request))
    }

    fn numbers(&self, _: &Context, request: Range) -> Result<Stream<Number>, Fault> {
        let alive = Alive::new();
        let numbers = (request.from..request.to).map(move |number| {
            let _ = &alive;
            Ok(Number { number })
        });
        let last = request.failure.map(|failure| Err(fail(&failure)));
        Ok(Box::new(numbers.chain(last)))
    }

    fn look(&self, context: &Context, _: Item) -> Result<Seen, Fault> {
        Ok(look(context))
    }

    fn relay(&self, context: &Context, request: Onward) -> Result<Seen, Fault> {
        let onward = ProbeClient::new(open(&self.node, &request)?);
        Ok(onward.look(&Item::default(), context.options()?)?)
    }

    fn grow(&self, _: &Context, request: Range) -> Result<Item, Fault> {
        Ok(Item { data: vec![0; request.to as usize], ..Item::default() })
    }

    fn undocumented(&self, _: &Context, _: Item) -> Result<Counted, Fault> {
        Ok(Counted { count: alive() })
    }
}

fn open(node: &Node, onward: &Onward) -> Result<Client, Fault> {
    let open = || node.client(node.discover(&onward.service)?);
    open().map_err(|error| Fault::new(error.status(), error.to_string()))
}

fn serve_tasks(node: Node, machine: Arc<Machine>) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let server = node.server().expect("a server");
    let service = Tasks { node, server: server.clone(), machine };
    let router = AsyncRouter::new().with(AsyncProbeServer::new(service)).expect("one service");
    let router = Arc::new(router);
    server.register("probe.tasks", router.flags()).expect("registered");
    println!("serving probe.tasks");
    runtime.block_on(ipc::tokio::serve(&server, |request| router.handle(request))).expect("served");
}

struct Tasks {
    node: Node,
    server: ipc::Server,
    machine: Arc<Machine>,
}

impl AsyncProbe for Tasks {
    async fn echo(&self, _: Context, request: Item) -> Result<Item, Fault> {
        tokio::task::yield_now().await;
        Ok(request)
    }

    async fn count(&self, _: Context, request: Failures) -> Result<Counted, Fault> {
        self.machine.count(request)
    }

    async fn count_safely(&self, _: Context, request: Failures) -> Result<Counted, Fault> {
        self.machine.count(request)
    }

    async fn fail(&self, _: Context, request: Failure) -> Result<Item, Fault> {
        Err(fail(&request))
    }

    async fn numbers(&self, _: Context, request: Range) -> Result<TaskStream<Number>, Fault> {
        let (sender, numbers) = stream(16);
        let alive = Alive::new();
        tokio::spawn(async move {
            let _alive = alive;
            for number in request.from..request.to {
                if !sender.send(Number { number }).await {
                    return;
                }
            }
            if let Some(failure) = &request.failure {
                sender.fail(fail(failure)).await;
            }
        });
        Ok(numbers)
    }

    async fn look(&self, context: Context, _: Item) -> Result<Seen, Fault> {
        Ok(look(&context))
    }

    async fn relay(&self, context: Context, request: Onward) -> Result<Seen, Fault> {
        let node = self.node.clone();
        let client = tokio::task::spawn_blocking(move || open(&node, &request)).await;
        let client = client.expect("it does not panic")?;
        let onward = AsyncProbeClient::new(self.server.clone(), client);
        let options: RpcOptions = context.options()?;
        Ok(onward.look(&Item::default(), options).await?)
    }

    async fn grow(&self, _: Context, request: Range) -> Result<Item, Fault> {
        Ok(Item { data: vec![0; request.to as usize], ..Item::default() })
    }

    async fn undocumented(&self, _: Context, _: Item) -> Result<Counted, Fault> {
        Ok(Counted { count: alive() })
    }
}
