//! A hostile process: it speaks the control protocol and writes lanes by hand, as the documents
//! have them, and does with them what it is told, a line at a time.
//!
//! ```text
//! hostile DIRECTORY
//! ```
//!
//! It ends when stdin does, or with the process that started it.

mod bulk;
mod bus;
mod descriptors;
mod end;
mod fuse;
mod lies;
mod memory;
mod noise;
mod slow;
mod wire;

use std::{io::BufRead, os::fd::AsRawFd, os::unix::process::CommandExt, path::Path};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        prctl,
        signal::Signal,
        socket::{Shutdown, shutdown},
    },
};
use tests::wait_until;

use crate::{
    end::{CELLS, Cell, ERROR, End, ORDINARY, REQUEST, RESPONSE, URGENT, at},
    lies::Role,
    memory::{READ, WRITE},
    wire::{Wire, verb},
};

fn main() {
    prctl::set_pdeathsig(Signal::SIGKILL).expect("a valid signal");
    say(&format!("pid {}", std::process::id()));
    let directory = std::env::args().nth(1).expect("a runtime directory");
    let mut villain = Villain {
        wire: Wire::new(Path::new(&directory)),
        directory,
        ends: Vec::new(),
        id: 0,
        noise: noise::Noise::default(),
        hoard: Vec::new(),
        slow: slow::Slow::default(),
        rings: Vec::new(),
    };
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        if line == "quit" {
            return;
        }
        let (command, rest) = line.split_once(' ').unwrap_or((&line, ""));
        villain.act(command, rest);
    }
}

/// Writes one line to stdout, in one piece and without a lock.
fn say(line: &str) {
    let line = format!("{line}\n");
    nix::unistd::write(std::io::stdout(), line.as_bytes()).expect("somebody listens");
}

struct Villain {
    directory: String,
    wire: Wire,
    /// Open channels; the last one is in use.
    ends: Vec<End>,
    /// Of the request that waits on it, or of the last call.
    id: u32,
    noise: noise::Noise,
    /// Loans of the other end that were not given back.
    hoard: Vec<bulk::Place>,
    /// What is slow to close.
    slow: slow::Slow,
    /// Of events.
    rings: Vec<bus::FalseRing>,
}

impl Villain {
    /// As either:
    /// - `keyed`: connects anew, with a public key that it does not have the other half of
    ///
    /// As a client:
    /// - `open NAME`, `call`, `close`
    /// - `lie NAME`: a channel and an honest call for each lie, until it is noticed
    /// - `oddities`: what is no lie
    /// - `descriptors NAME`, `strangers NAME`: offers what is no lane
    /// - `break`, `stranger`: tries to get at the other end's lane
    /// - `flip NAME ROUNDS`: changes bytes while they are read
    /// - `half`: half a cell, and half a message
    /// - `deaf COUNT`: calls, asking for a doorbell that it never hears
    /// - `babble`: frames without end, and not one request
    /// - `relay NAME`: has the service send NAME payloads that look like frames
    /// - `peek`: looks for old bytes behind short answers
    /// - `greedy`: takes no answers
    /// - `zombie`: closes, hangs up, and leaves a lie behind
    /// - `lurk`: sleeps on the other end's life word
    /// - `bomb COUNT`: descriptors for the runtime
    /// - `fork`, `exec`: both keep the channel, and say that they live
    ///
    /// As a service:
    /// - `register NAME`, then `admit`: takes a client, and its request; `answer`: honestly;
    ///   `admit-again`: takes its next request
    /// - `count`, `mislead`: an honest answer and a lie for each of so many clients
    /// - `takes-ahead`, `takes-back`: progress that cannot be
    /// - `accept-impostors`, `accept-strangers`: with what is no lane
    /// - `feed`: answers to what was answered, without end; `flutter COUNT`:
    ///   answers to so many requests, that change while they are read
    /// - `nudge COUNT`: wakes for nothing; `displace`: moves sleepers to where nobody wakes them
    ///
    /// With bulk memory: see `bulk.rs`. What is slow to close: see `slow.rs`.
    ///
    /// As either: `flood`, `parcels`: rings without pause, with descriptors; `rest` ends it;
    /// `end`: waits until the channel is cut
    fn act(&mut self, command: &str, rest: &str) {
        match command {
            "keyed" => {
                self.wire = Wire::with_key(Path::new(&self.directory), [9; 32]);
                say("connected");
            }
            "open" => {
                let to = self.wire.find(rest);
                self.ends.push(End::connect(&self.wire, to));
                self.id = 1;
                say("opened");
            }
            "call" => {
                self.id += 1;
                let id = self.id;
                self.end().call(id);
                say("called");
            }
            "close" => {
                let end = self.ends.pop().expect("a channel");
                end.own.word(at::LIFE).store(0, WRITE);
                end.own.wake(at::LIFE);
                say("closed");
            }
            "lie" => self.lie(rest),
            "false-ring" => {
                let number = self.rings.len() as u32 + 1;
                let topic = rest.parse().expect("a number");
                self.rings.push(bus::FalseRing::advertise(&self.wire, topic, number));
                say("advertised");
            }
            "false-event" => {
                let ring = self.rings.last().expect("a ring");
                say(&format!("lied {}", ring.lie(rest.parse().expect("a number"))));
            }
            "pester" => self.rings.last().expect("a ring").pester(),
            "oddities" => {
                let count = lies::oddities(self.end());
                say(&format!("odd {count}"));
            }
            "descriptors" => {
                let to = self.wire.find(rest);
                say(&format!("refused {}", descriptors::offer(&self.wire, to)));
            }
            "strangers" => {
                let to = self.wire.find(rest);
                say(&format!("refused {}", descriptors::offer_strangers(&self.wire, to)));
            }
            "break" => say(&format!("failed {}", descriptors::break_in(self.end()))),
            "stranger" => say(match descriptors::break_in_as_a_stranger(self.end()) {
                Some(()) => "stranger refused",
                None => "stranger impossible",
            }),
            "flip" => {
                let (name, rounds) = rest.split_once(' ').expect("a name, and a number");
                self.flip(name, rounds.parse().expect("a number"));
            }
            "half" => self.half(),
            "deaf" => self.deaf(rest.parse().expect("a number")),
            "babble" => {
                let mut end = self.ends.pop().expect("a channel");
                say("babbling");
                // Withdrawals of what was never asked for: frames, and no work.
                end.feed(&Cell::new(6, 9, 0));
            }
            "relay" => self.relay(rest),
            "peek" => {
                let end = self.end();
                // A marker in each cell of their lane, then answers of a byte over it.
                (0..CELLS).for_each(|id| end.call(id));
                for id in 0..CELLS {
                    end.push_bytes(REQUEST, id, b"x");
                    end.ring();
                    let answer = end.take(ORDINARY);
                    assert_eq!(answer, (RESPONSE, id, [u64::from(b'x'), 0, 0, 0, 0, 0]));
                }
                say("nothing");
            }
            "greedy" => {
                self.end().push_until_cut(1);
                say("cut");
            }
            "zombie" => self.zombie(),
            "lurk" => {
                let (theirs, life) = (self.end().theirs, self.end().theirs.word(at::LIFE));
                say(&format!("lurking {}", nix::unistd::gettid()));
                theirs.sleep(at::LIFE, life.load(READ), tests::LONG * 10);
            }
            "bomb" => self.bomb(rest.parse().expect("a number")),
            "fork" => self.fork(),
            "exec" => {
                for end in &self.ends {
                    for fd in [&end.bell, &end.fd, &end.their_fd] {
                        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).expect("kept");
                    }
                }
                panic!("{}", std::process::Command::new("/bin/cat").exec());
            }
            other => self.serve(other, rest),
        }
    }

    fn serve(&mut self, command: &str, rest: &str) {
        match command {
            "register" => {
                self.wire.register(rest);
                say("serving");
            }
            "admit" => {
                self.admit();
                say("admitted");
            }
            "admit-again" => {
                self.await_request();
                say("admitted");
            }
            "answer" => {
                self.answer();
                say("answered");
            }
            "count" => say(&format!("lies {}", lies::all(Role::Server).len())),
            "mislead" => {
                for lie in lies::all(Role::Server) {
                    self.admit();
                    self.answer();
                    self.await_request();
                    let id = self.id;
                    let end = self.end();
                    (lie.tell)(end, id);
                    end.await_cut(&lie.name);
                    self.ends.pop();
                }
                say("misled");
            }
            "takes-ahead" => {
                let end = self.end();
                end.own.long(at::TAKEN[ORDINARY]).store(1 << 40, WRITE);
                say("lied");
            }
            "takes-all" => {
                let end = self.end();
                let all = rest.parse().expect("a number");
                while end.taken[ORDINARY] < all {
                    end.take(ORDINARY);
                    end.ring();
                }
                say("took");
            }
            "takes-back" => {
                self.end().own.long(at::TAKEN[ORDINARY]).store(3, WRITE);
                say("lied");
            }
            "impostors" => say(&format!("impostors {}", descriptors::count())),
            "accept-impostors" => {
                // The runtime cuts who accepts with no lane; what is a lane in name only is
                // refused, and the service may go on.
                say(&format!("accepted {}", descriptors::accept(&self.wire)));
            }
            "accept-strangers" => {
                say(&format!("accepted {}", descriptors::accept_strangers(&self.wire)));
            }
            "feed" => {
                let id = self.id;
                let mut end = self.ends.pop().expect("a channel");
                say("feeding");
                end.feed(&Cell::new(RESPONSE, id, 8));
                say("fed");
            }
            "flutter" => {
                let mut end = self.ends.pop().expect("a channel");
                let mut ids = vec![self.id];
                for _ in 1..rest.parse().expect("a number") {
                    ids.push(end.take(ORDINARY).1);
                }
                noise::flip(&mut end, RESPONSE, &ids, 500);
                end.own.word(at::LIFE).store(0, WRITE);
                end.ring();
                say("fluttered");
            }
            "nudge" => self.nudge(rest.parse().expect("a number")),
            "displace" => {
                let end = self.end();
                let mut moved = 0;
                wait_until("somebody sleeps", || {
                    moved = end.own.requeue(at::EVENT, 0x400);
                    end.own.requeue(at::LIFE, 0x400);
                    moved > 0
                });
                say(&format!("displaced {moved}"));
            }
            "flood" | "parcels" => {
                let bell = self.end().bell.try_clone().expect("a descriptor");
                let parcels = if command == "parcels" { 200 } else { 0 };
                self.noise.start(bell, parcels);
                say("flooding");
            }
            "end" => {
                self.end().await_cut("what was done");
                self.ends.pop();
                say("cut");
            }
            "rest" => say(&format!("rested {}", self.noise.stop())),
            other => self.be_slow(other, rest),
        }
    }

    fn end(&mut self) -> &mut End {
        self.ends.last_mut().expect("a channel")
    }

    fn lie(&mut self, name: &str) {
        let to = self.wire.find(name);
        let lies = lies::all(Role::Client);
        for lie in &lies {
            let mut end = End::connect(&self.wire, to);
            end.call(1);
            (lie.tell)(&mut end, 2);
            end.await_cut(&lie.name);
        }
        say(&format!("lied {}", lies.len()));
    }

    fn flip(&mut self, name: &str, rounds: u32) {
        let to = self.wire.find(name);
        for _ in 0..rounds {
            let mut end = End::connect(&self.wire, to);
            end.call(1);
            noise::flip(&mut end, REQUEST, &[2, 3, 4, 5], 500);
            end.own.word(at::LIFE).store(0, WRITE);
            end.await_cut("the end");
        }
        say(&format!("flipped {rounds}"));
    }

    fn half(&mut self) {
        let id = self.id + 1;
        let end = self.end();
        end.push(&Cell::new(REQUEST, id, 1000).first(1 << 19));
        end.ring();
        // All of the next cell, but for the word that opens it.
        let base = End::cell(ORDINARY, end.pushed[ORDINARY]);
        for word in 1..8 {
            end.own.long(base + 8 * word).store(u64::MAX, WRITE);
        }
        say("half");
    }

    fn deaf(&mut self, count: u32) {
        let first = self.id + 1;
        let end = self.end();
        let flags = fcntl(&end.bell, FcntlArg::F_GETFL).expect("flags");
        let flags = nix::fcntl::OFlag::from_bits_retain(flags) & !nix::fcntl::OFlag::O_NONBLOCK;
        fcntl(&end.bell, FcntlArg::F_SETFL(flags)).expect("it is ours");
        for id in first..first + count {
            // Each sleep has a number of its own, so each is answered.
            end.park(2);
            end.call(id);
        }
        self.id += count;
        say("deaf");
    }

    /// Payloads of which every word opens a frame, if it is read as the first of a cell: of all the
    /// laps that the ring is in meanwhile. They are relayed through cells and slab of an honest
    /// sender.
    fn relay(&mut self, name: &str) {
        let words = (1_u64..8).flat_map(|lap| [1_u64, 2, 6, 7].map(|kind| lap << 4 | kind));
        // Of eight bytes, on the ordinary ring.
        let stamps: Vec<u8> =
            words.flat_map(|stamp| (stamp | 0x0200_0008 << 32).to_le_bytes()).collect();
        let mut count = 0;
        for round in 0..300 {
            let length = [16, 48, 64, 500, 1000, 4000][round % 6];
            let mut bytes = format!("!relay {name} 30000 ").into_bytes();
            // The service takes a first `!` for a command.
            let begin = if stamps[8 * round % stamps.len()] == b'!' { round + 1 } else { round };
            bytes.extend(stamps.iter().cycle().skip(8 * begin).take(length));
            self.id += 1;
            let id = self.id;
            let end = self.end();
            end.push_bytes(REQUEST, id, &bytes);
            end.ring();
            let (kind, of, words) = end.take(ORDINARY);
            assert_eq!((kind, of), (RESPONSE, id));
            // In the cell, or behind the place.
            let said = words.map(u64::to_le_bytes).concat();
            let text = if length + 7 > 48 { &said[8..15] } else { &said[..7] };
            assert_eq!(text, b"answer ", "{}", String::from_utf8_lossy(&said));
            count += 1;
        }
        say(&format!("relayed {count}"));
    }

    /// Waits until the other end sleeps behind its doorbell. Then a frame that is a lie lies
    /// there, of a channel that is closed.
    fn zombie(&mut self) {
        let end = self.end();
        wait_until("it is armed", || end.theirs.word(at::PARKED).load(READ) & 3 == 2);
        end.write(&Cell::new(0, 5, 8));
        end.own.word(at::LIFE).store(0, WRITE);
        shutdown(end.bell.as_raw_fd(), Shutdown::Both).expect("hung up");
        wait_until("it is cut", || end.is_cut());
        say("undead");
    }

    fn bomb(&self, count: u32) {
        let fd = self.wire.socket.as_raw_fd();
        for round in 0..count {
            let wire = Wire::new(Path::new(&self.directory));
            // As many as the kernel lets through with one packet.
            let fds = vec![fd; 253];
            let (verb, fields) = match round % 3 {
                0 => (verb::PING, vec![]),
                1 => (verb::CONNECT, vec![0; 12]),
                _ => (verb::ACCEPT, vec![0; 12]),
            };
            // The runtime may hang up at any time; it must, in the end.
            while wire.try_send(verb, 9, &fields, &fds).is_ok() {}
            while wire.try_receive().is_some() {}
        }
        say("bombed");
    }

    /// The child holds everything that the parent had, and goes on as if it were it.
    fn fork(&mut self) {
        if !memory::is_child() {
            return say("forked");
        }
        // Should nobody notice it, it must not outlive the tests.
        nix::unistd::alarm::set(120);
        let id = self.id + 1;
        let end = self.end();
        end.own.word(at::LIFE).store(0x8000_0001, WRITE);
        while !end.is_cut() {
            end.pass_over();
            end.push_paced(&Cell::new(REQUEST, id, 8));
        }
        std::process::exit(0);
    }

    fn admit(&mut self) {
        self.ends.push(End::accept(&self.wire));
        self.await_request();
    }

    fn await_request(&mut self) {
        let (kind, id, _) = self.end().take(ORDINARY);
        self.id = id;
        let end = self.end();
        if kind == REQUEST {
            end.first_id = end.first_id.max(1);
        }
        end.ring();
    }

    /// Answers `hello`.
    fn answer(&mut self) {
        let id = self.id;
        let end = self.end();
        let mut answer = Cell::new(RESPONSE, id, 5);
        answer.words = [0; 6];
        answer.words[0] = u64::from_le_bytes(*b"hello\0\0\0");
        end.push(&answer);
        end.ring();
        end.first_id = id;
    }

    /// Wakes a caller in every way, for nothing.
    fn nudge(&mut self, count: u32) {
        let end = self.end();
        for round in 0..count {
            for word in [at::EVENT, at::LIFE, at::TAKEN[0], at::PARKED] {
                end.own.wake(word);
                end.theirs.wake(word);
            }
            if round % 3 == 0 {
                end.own.word(at::EVENT).fetch_add(1, WRITE);
            }
            end.ring_bell();
            // Late answers to what was answered, and to nobody's harm.
            if round % 16 == 0 {
                let old = end.first_id;
                end.push_paced(&Cell::new(RESPONSE, old, 8).urgent());
            }
        }
        let mut failed = Cell::new(ERROR, self.id, 4);
        failed.words[0] = u64::from((-2000_i32).cast_unsigned());
        self.end().push_paced(&failed);
        self.end().ring();
        assert!(self.end().pushed[URGENT] > 0);
        say("nudged");
    }
}
