//! What a node can be told to do.

use std::{
    collections::{BTreeMap, HashMap},
    io::BufRead,
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
    time::Duration,
};

use ipc::control::SERVICE_IDEMPOTENT;
use ipc::{
    CallOptions, Client, Config, Listening, Loan, Node, NodeError, Pending, Registration, Server,
    View,
};
use tests::{LONG, pattern};

use crate::{
    alone,
    crowd::{Crowd, Torrent},
    events::Events,
    famine::Famine,
    fork,
    handler::{self, outcome},
    once, raw,
    regions::Regions,
    say,
    tasks::Tasks,
};

/// Warm-up of a trace, so that nothing is done for the first time in it.
const WARM: u32 = 2000;

/// A node and what was made with it.
pub(crate) struct Stage {
    pub(crate) config: Config,
    pub(crate) node: Node,
    pub(crate) server: Option<Server>,
    pub(crate) registrations: Vec<Registration>,
    pub(crate) clients: HashMap<String, Client>,
    pub(crate) pending: Vec<Pending>,
    /// An answer and a loan in bulk memory, made before a fork.
    pub(crate) lent: Option<(View, Loan)>,
    /// Numbered one-way messages so far, by name.
    numbered: HashMap<String, u64>,
    crowd: Crowd,
    torrent: Option<Torrent>,
    tasks: Option<Tasks>,
    famine: Option<Famine>,
    /// Memory of no use.
    fat: Vec<u8>,
    regions: Regions,
    events: Events,
    listening: Vec<Listening>,
}

/// Does what stdin says until it ends, or says `quit`: then everything is closed in order.
pub(crate) fn obey(config: &Config) {
    let node = Node::connect(config).expect("a node");
    let mut stage = Stage {
        config: config.clone(),
        node,
        server: None,
        registrations: Vec::new(),
        clients: HashMap::new(),
        pending: Vec::new(),
        lent: None,
        numbered: HashMap::new(),
        crowd: Crowd::default(),
        torrent: None,
        tasks: None,
        famine: None,
        fat: Vec::new(),
        regions: Regions::default(),
        events: Events::default(),
        listening: Vec::new(),
    };
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        if line == "quit" {
            return;
        }
        stage.act(&line);
    }
    // Whoever gave the orders is gone.
    std::process::exit(1);
}

impl Stage {
    /// - `serve NAME THREADS`, `unserve`; `replica NAME`: with one thread, as one whose answers
    ///   may be repeated; `once NAME FILE`, `again NAME FILE`: as one whose effects are lines of
    ///   a file, and happen once, or may be repeated
    /// - `fatten MIB`: takes up that much memory
    /// - `find NAME`, `await NAME`: ask the runtime
    /// - `open NAME`: waits for the name, opens a channel, says the peer's instance and process
    /// - `by NAME`: the same, and says by what the channel goes
    /// - `leave NAME`: drops the channel
    /// - `ask NAME TIMEOUT_MS TEXT`: calls, and says what came of it
    /// - `calls NAME THREADS COUNT SIZE,SIZE..`: calls that must come back as they were
    /// - `number NAME COUNT TIMEOUT_MS`: numbered one-way messages, until one fails; `-` waits
    ///   for room for ever
    /// - `long NAME SIZE TIMEOUT_MS`: a one-way message of that size
    /// - `start NAME COUNT TEXT`: sends requests; `collect` waits for all of them
    /// - `requests NAME CALLER COUNT`: the same, each for an effect of its own of that caller
    /// - `pump NAME COUNT SIZE WINDOW`: calls, WINDOW of them outstanding
    /// - `crowd NAME COUNT`: so many more nodes of this process, each with a channel to NAME
    /// - `crowd-calls COUNT SIZE THREADS`: so many calls from each of them, by so many threads
    /// - `disband`: they all go
    /// - `torrent NAME`: one-way messages from a thread, until told to `ebb`, which says how many
    /// - `tasks-serve NAME`, `tasks-call NAME COUNT SIZE`: the same in tasks of a tokio runtime,
    ///   all calls at once
    /// - `starve`: not one more descriptor is to be had, until told to `feed`
    /// - `event-...`: see [`Events::act`]
    /// - `release`: answers held requests
    /// - `trace NAME COUNT SIZE`: calls between two marks that a trace shows
    /// - `fork NAME`: tries everything in a child
    /// - `dump DIRECTORY`: dies, and leaves all of its memory there that the kernel dumps
    /// - `exec`: becomes another program
    /// - `listen PATH`: serves by a socket, too
    /// - `region …`: see [`Regions::act`]; `id` says this node's
    fn act(&mut self, line: &str) {
        let mut words = line.splitn(5, ' ');
        let command = words.next().unwrap_or_default();
        let words: Vec<&str> = words.collect();
        if self.events.act(&self.node, command, &words) {
            return;
        }
        match (command, &words[..]) {
            ("serve" | "replica" | "once" | "again" | "alone" | "unserve" | "listen", words) => {
                self.act_as_server(command, words);
            }
            ("fatten", [mib]) => self.fatten(number(mib)),
            ("find", [name]) => say(&match self.node.discover(name) {
                Ok(id) => format!("found {id}"),
                Err(error) => format!("found {}", error.status().name()),
            }),
            ("await", [name]) => {
                let id = self.node.wait_service(name, None).expect("it comes");
                say(&format!("found {id}"));
            }
            ("region", words) => {
                let words: Vec<&str> = words.iter().flat_map(|it| it.split(' ')).collect();
                self.regions.act(&self.node, &words);
            }
            ("id", []) => say(&format!("id {}", self.node.id())),
            ("open", [name]) => {
                let peer = self.client(name).peer();
                say(&format!("opened {} {}", peer.id, peer.pid));
            }
            ("by", [name]) => {
                let transport = self.try_client(name).map(|it| it.transport());
                say(&match transport {
                    Ok(transport) => format!("goes by {transport}"),
                    Err(error) => format!("goes not: {}", error.status().name()),
                });
            }
            ("leave", [name]) => {
                self.clients.remove(*name);
                say("left");
            }
            ("ask", [name, timeout, text @ ..]) => {
                let text = text.join(" ");
                say(&match self.try_client(name) {
                    Ok(client) => outcome(client.call(text.as_bytes(), options(timeout))),
                    Err(error) => format!("failed {}", error.status().name()),
                });
            }
            ("calls", [name, threads, count, sizes]) => {
                let sizes: Vec<usize> = sizes.split(',').map(number).collect();
                calls(&self.client(name), number(threads), number(count), &sizes);
            }
            ("number", [name, count, timeout]) => self.number(name, number(count), timeout),
            ("long", [name, size, timeout]) => {
                let sent = self.client(name).send(&pattern(number(size)), options(timeout));
                say(&match sent {
                    Ok(_) => "sent".to_owned(),
                    Err(error) => format!("failed {}", error.status().name()),
                });
            }
            ("start", [name, count, text @ ..]) => {
                let (client, text) = (self.client(name), text.join(" "));
                for _ in 0..number::<u32>(count) {
                    self.pending.push(client.start(text.as_bytes(), LONG).expect("sent"));
                }
                say("started");
            }
            ("requests", [name, caller, count]) => self.request(name, caller, number(count)),
            ("collect", []) => self.collect(),
            ("pump", [name, count, size, window]) => {
                pump(&self.client(name), number(count), number(size), number(window));
            }
            ("crowd", [name, count]) => self.crowd.gather(&self.config, name, number(count)),
            ("crowd-calls", [count, size, threads]) => {
                self.crowd.call(number(count), number(size), number(threads));
            }
            ("disband", []) => self.crowd.disband(),
            ("torrent", [name]) => self.torrent = Some(Torrent::begin(self.client(name))),
            ("ebb", []) => self.torrent.take().expect("it flows").end(),
            ("tasks-serve", [name]) => {
                let registered = self.tasks().server.register(name, 0).expect("registered");
                say(&format!("serving {} {}", registered.instance, registered.name));
            }
            ("tasks-call", [name, count, size]) => {
                let client = self.client(name);
                self.tasks().call(&client, number(count), number(size));
            }
            ("starve", []) => self.famine = Some(Famine::begin()),
            ("feed", []) => self.famine.take().expect("it starves").end(),
            ("release", []) => handler::release(),
            ("trace", [name, count, size]) => {
                trace(&self.client(name), number(count), number(size));
            }
            ("fork", [name]) => self.fork(name),
            ("dump", [directory]) => dump(directory),
            ("exec", []) => {
                let program = std::env::current_exe().expect("this program");
                panic!("{}", Command::new(program).arg("idle").exec());
            }
            _ => panic!("no such command: {line}"),
        }
    }

    fn fatten(&mut self, mib: usize) {
        // Touched, so that the kernel has it to tear down.
        self.fat = vec![1; mib << 20];
        say("fat");
    }

    fn act_as_server(&mut self, command: &str, words: &[&str]) {
        match (command, words) {
            ("serve", [name, threads]) => self.serve(name, number(threads)),
            ("replica", [name]) => self.serve_as(name, 1, SERVICE_IDEMPOTENT),
            ("once", [name, file]) => {
                let server =
                    self.server.get_or_insert_with(|| self.node.server().expect("a server"));
                once::serve(&self.node, server, name, file);
            }
            ("alone", [name, file]) => {
                let server =
                    self.server.get_or_insert_with(|| self.node.server().expect("a server"));
                alone::serve(server, name, file);
            }
            ("again", [name, file]) => {
                let server =
                    self.server.get_or_insert_with(|| self.node.server().expect("a server"));
                once::serve_again(server, name, file);
            }
            ("unserve", []) => self.unserve(),
            ("listen", [path]) => {
                let server = self.server.as_ref().expect("it serves");
                let listening = server.listen(Path::new(path));
                say(&match listening {
                    Ok(listening) => {
                        self.listening.push(listening);
                        "listening IPC_OK".to_owned()
                    }
                    Err(error) => format!("listening {}", error.status().name()),
                });
            }
            _ => panic!("no such command: {command} {words:?}"),
        }
    }

    /// Tries everything in a child, with something of each kind under way.
    fn fork(&mut self, name: &str) {
        let client = self.client(name);
        self.pending.push(client.start(b"before the fork", LONG).expect("sent"));
        let view = client.call_view(&pattern(50_000), LONG).expect("answered");
        self.lent = Some((view, client.loan(50_000).expect("lent")));
        let status = raw::in_child(|| fork::child(self, name));
        let (view, loan) = self.lent.take().expect("it is this process's");
        assert!(view.to_vec() == pattern(50_000) && loan.len() == 50_000);
        client.call_loaned(loan, LONG).expect("answered");
        say(&format!("forked {status:?}"));
    }

    fn serve(&mut self, name: &str, threads: u32) {
        self.serve_as(name, threads, 0);
    }

    fn serve_as(&mut self, name: &str, threads: u32, flags: u32) {
        let server = self.server.get_or_insert_with(|| self.node.server().expect("a server"));
        let registration = server.register(name, flags).expect("registered");
        self.registrations.push(registration);
        for _ in 0..threads {
            let (server, node) = (server.clone(), self.node.clone());
            std::thread::spawn(move || server.run(|request| handler::handle(&node, request)));
        }
        say(&format!("serving {} {}", registration.instance, registration.name));
    }

    fn unserve(&mut self) {
        let registration = self.registrations.pop().expect("something is served");
        let server = self.server.as_ref().expect("it is served by a server");
        server.unregister(registration.instance).expect("it was registered");
        say("unserved");
    }

    fn tasks(&mut self) -> &Tasks {
        self.tasks.get_or_insert_with(|| Tasks::begin(&self.node))
    }

    fn client(&mut self, name: &str) -> Client {
        self.try_client(name).expect("a channel")
    }

    fn try_client(&mut self, name: &str) -> Result<Client, NodeError> {
        if let Some(client) = self.clients.get(name) {
            return Ok(client.clone());
        }
        let client = self.node.client(self.node.wait_service(name, None)?)?;
        self.clients.insert(name.to_owned(), client.clone());
        Ok(client)
    }

    fn number(&mut self, name: &str, count: u64, timeout: &str) {
        let client = self.client(name);
        let next = self.numbered.entry(name.to_owned()).or_default();
        let (mut sent, mut status) = (0, "IPC_OK");
        while sent < count {
            // Sizes that fit a cell, and sizes that do not.
            let mut payload = pattern(8 + (*next % 90) as usize);
            payload[..8].copy_from_slice(&next.to_le_bytes());
            match client.send(&payload, options(timeout)) {
                Ok(_) => (sent, *next) = (sent + 1, *next + 1),
                Err(error) => {
                    status = error.status().name();
                    break;
                }
            }
        }
        say(&format!("numbered {sent} {status}"));
    }

    fn request(&mut self, name: &str, caller: &str, count: usize) {
        let client = self.client(name);
        for number in 1..=count {
            let mut text = format!("{caller} {number}").into_bytes();
            text.resize([9, 60, 3000, 700][number % 4], b' ');
            self.pending.push(client.start(&text, LONG).expect("sent"));
        }
        say("requested");
    }

    fn collect(&mut self) {
        let mut ends = BTreeMap::new();
        for pending in self.pending.drain(..) {
            let end = pending.wait().map_or_else(|error| error.status().name(), |_| "IPC_OK");
            *ends.entry(end).or_insert(0_u32) += 1;
        }
        let ends: Vec<_> = ends.iter().map(|(end, count)| format!("{end}={count}")).collect();
        say(&format!("collected {}", ends.join(" ")));
    }
}

fn calls(client: &Client, threads: u32, count: u32, sizes: &[usize]) {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for &size in sizes {
                    let mut payload = pattern(size);
                    if let Some(last) = payload.last_mut() {
                        *last = thread as u8;
                    }
                    for _ in 0..count {
                        let answer = client.call(&payload, LONG);
                        let answer = answer.unwrap_or_else(|error| panic!("{size} bytes: {error}"));
                        assert!(answer == payload, "{size} bytes came back changed");
                    }
                }
            });
        }
    });
    say("called");
}

fn pump(client: &Client, count: u32, size: usize, window: usize) {
    let payload = pattern(size);
    let mut pending = std::collections::VecDeque::new();
    for _ in 0..count {
        if pending.len() >= window {
            let oldest: Option<Pending> = pending.pop_front();
            assert!(oldest.is_none_or(|it| it.wait().expect("answered") == payload));
        }
        pending.push_back(client.start(&payload, CallOptions::default()).expect("sent"));
    }
    for it in pending {
        assert!(it.wait().expect("answered") == payload);
    }
    say("pumped");
}

/// Makes calls between two marks, of this thread and of the one that serves them: a system call
/// that the library never makes. Says the two threads, and the allocations of each between.
fn trace(client: &Client, count: u32, size: usize) {
    let payload = pattern(size);
    let mut answer = vec![0; size];
    let mut call = |times: u32| {
        for _ in 0..times {
            client.call_into(&payload, &mut answer, LONG).expect("answered");
        }
    };
    call(WARM);
    let served_by = client.call(b"!thread", LONG).expect("answered");
    client.call(b"!mark", LONG).expect("answered");
    let before = raw::allocations();
    let _ = nix::unistd::getppid();
    call(count);
    let _ = nix::unistd::getppid();
    let allocations = raw::allocations() - before;
    let remote = client.call(b"!mark", LONG).expect("answered");
    say(&format!(
        "traced {} {} {allocations} {}",
        nix::unistd::gettid(),
        String::from_utf8_lossy(&served_by),
        String::from_utf8_lossy(&remote)
    ));
}

fn options(timeout_ms: &str) -> CallOptions {
    let timeout = (timeout_ms != "-").then(|| Duration::from_millis(number(timeout_ms)));
    CallOptions::from(timeout)
}

fn number<N: std::str::FromStr>(word: &str) -> N {
    word.parse().unwrap_or_else(|_| panic!("no number: {word}"))
}

/// Dies of what makes the kernel dump a process's memory.
fn dump(directory: &str) -> ! {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    std::env::set_current_dir(directory).expect("it is there");
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE).expect("a limit");
    setrlimit(Resource::RLIMIT_CORE, hard, hard).expect("a soft limit may rise to the hard one");
    std::process::abort()
}
