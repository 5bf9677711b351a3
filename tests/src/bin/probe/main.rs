//! A service under test: it tells what it was given, tries what it must not, or serves.
//!
//! ```text
//! probe facts                  what it was given: a line each
//! probe attack PID UID         tries to break out: a line for each attack
//! probe ask                    the same, after joining the runtime and growing threads
//! probe serve NAME             serves NAME with three threads; "panic" and "abort" do that
//! probe relay NAME             serves NAME, and does with others what it is told
//! probe exit N | sleep | abort | crash
//! ```

mod attacks;
mod facts;
mod relay;

use std::{env, process::ExitCode};

use ipc::{Config, Node, Request};

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
        ["serve", name] => serve(name),
        ["relay", name] => relay::serve(name),
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

fn answer(request: &Request<'_>) {
    match request.payload() {
        b"abort" => std::process::abort(),
        b"panic" => {
            let panicked = std::thread::spawn(|| panic!("as told")).join().is_err();
            request.reply(if panicked { b"panicked" } else { b"survived" }).expect("replied");
        }
        payload => request.reply(payload).expect("replied"),
    }
}
