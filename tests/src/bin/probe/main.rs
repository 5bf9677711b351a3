//! A service under test: it tells what it was given, tries what it must not, or serves.
//!
//! ```text
//! probe facts                  what it was given: a line each
//! probe attack PID UID         tries to break out: a line for each attack
//! probe ask                    the same, after joining the runtime and growing threads
//! probe duet NAME OTHER        serves NAME, and calls OTHER without pause: "count" tells how often
//! probe serve NAME             serves NAME with three threads; "panic" and "abort" do that
//! probe orderly NAME           serves NAME until a signal, and lingers until the next
//! probe squat PATH             listens on PATH, and takes whoever comes
//! probe dial PATH              opens a channel to PATH, and tells what came of it
//! probe relay NAME             serves NAME, and does with others what it is told
//! probe exit N | sleep | abort | crash
//! ```

mod attacks;
mod facts;
mod relay;

use std::{
    env,
    os::fd::AsRawFd,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use ipc::{Config, Node, Request, StopSignals};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept, bind, listen, socket,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["facts", ..] => facts::tell(),
        ["attack", pid, directory] => attacks::tell(pid.parse().expect("a number"), directory),
        ["dumpable"] => {
            let before = nix::sys::prctl::get_dumpable();
            let _node = Node::connect(&Config::default()).expect("a node");
            println!("dumpable {before:?} {:?}", nix::sys::prctl::get_dumpable());
        }
        ["duet", name, other] => duet(name, other),
        ["serve", name] => serve(name),
        ["orderly", name] => orderly(name),
        ["relay", name] => relay::serve(name),
        ["squat", path] => squat(path),
        ["dial", path] => dial(path),
        ["exit", code] => return ExitCode::from(code.parse::<u8>().expect("a number")),
        ["say", text] => println!("{text}"),
        ["sleep"] => {
            println!("asleep");
            loop {
                std::thread::park();
            }
        }
        ["abort"] => std::process::abort(),
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}

/// Serves a name, and calls another at full speed. One channel, for as long as it lives: a call
/// that fails is counted, and said.
fn duet(name: &str, other: &str) {
    static CALLED: AtomicU64 = AtomicU64::new(0);
    static FAILED: AtomicU64 = AtomicU64::new(0);
    let node = Node::connect(&Config::default()).expect("a node");
    let server = node.server().expect("a server");
    server.register(name, 0).expect("registered");
    let other = other.to_owned();
    std::thread::spawn(move || {
        let other = node.wait_service(&other, None).expect("it comes");
        let client = node.client(other).expect("a channel");
        loop {
            match client.call(b"hello", Duration::from_secs(30)) {
                Ok(answer) if &*answer == b"hello" => CALLED.fetch_add(1, Ordering::Relaxed),
                failed => {
                    println!("a call failed: {failed:?}");
                    FAILED.fetch_add(1, Ordering::Relaxed)
                }
            };
        }
    });
    let _ = server.run(|request| {
        let told = match request.payload() {
            b"count" => {
                let [called, failed] = [&CALLED, &FAILED].map(|it| it.load(Ordering::Relaxed));
                request.reply(format!("{called} {failed}").as_bytes())
            }
            payload => request.reply(payload),
        };
        told.expect("replied");
    });
}

/// Serves until it is killed, or told to end in one of its ways.
fn serve(name: &str) {
    let node = Node::connect(&Config::default()).expect("a node");
    let server = node.server().expect("a server");
    server.register(name, 0).expect("registered");
    println!("serving");
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let server = server.clone();
            std::thread::spawn(move || server.run(|request| answer(&request)))
        })
        .collect();
    for thread in threads {
        let _ = thread.join();
    }
}

/// Serves until the first signal to stop, in order; then lingers until the second.
fn orderly(name: &str) {
    let signals = StopSignals::block().expect("signals");
    let node = Node::connect(&Config::default()).expect("a node");
    signals.forward(node.interrupter()).expect("a thread");
    let server = node.server().expect("a server");
    server.register(name, 0).expect("registered");
    println!("serving");
    let ended = server.run(|request| answer(&request));
    println!("{}", matches!(ended, Err(ipc::CallError::Canceled)));
    loop {
        std::thread::park();
    }
}

/// Listens on a path as a service would, for whoever may connect, and takes all that comes.
fn squat(path: &str) {
    let kind = SockType::SeqPacket;
    let door = socket(AddressFamily::Unix, kind, SockFlag::empty(), None).expect("a socket");
    bind(door.as_raw_fd(), &UnixAddr::new(path).expect("short")).expect("nobody has it");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(path, open).expect("ours");
    listen(&door, Backlog::MAXCONN).expect("a socket");
    println!("listening");
    while let Ok(taken) = accept(door.as_raw_fd()) {
        println!("taken {taken}");
    }
}

/// Opens a channel to whoever listens on a path, without a runtime; tells what came of it.
fn dial(path: &str) {
    let node = Node::unattached(&Config::default()).expect("it needs none");
    let id = node.discover(&format!("unix://{path}"));
    let client = id.and_then(|id| node.client(id));
    println!("{}", client.map_or_else(|error| error.status(), |_| ipc::Status::OK).name());
}

fn answer(request: &Request<'_>) {
    match request.payload() {
        b"abort" => std::process::abort(),
        b"exit 7" => std::process::exit(7),
        b"panic" => {
            let panicked = std::thread::spawn(|| panic!("as told")).join().is_err();
            request.reply(if panicked { b"panicked" } else { b"survived" }).expect("replied");
        }
        payload => request.reply(payload).expect("replied"),
    }
}
