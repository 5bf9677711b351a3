//! A real process that does what it is told, a line at a time. See `src/bin/actor`.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{proc, wait_until, watchdog::LIMIT};

/// A process, killed when this is dropped.
#[derive(Debug)]
pub struct Actor {
    child: Child,
    pid: u32,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    unheard: Vec<String>,
}

impl Actor {
    /// Starts a program that says its process id first.
    pub(crate) fn start(command: &[&str]) -> Actor {
        let mut child = Command::new(command[0])
            .args(&command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let input = child.stdin.take();
        let output = child.stdout.take().expect("piped");
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        let mut actor = Actor { child, pid: 0, input, lines, unheard: Vec::new() };
        actor.pid = actor.hear("pid").parse().expect("a number");
        actor
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Tells it to do something.
    pub fn tell(&mut self, command: &str) {
        let input = self.input.as_mut().expect("open until it ends");
        // In one piece: it may act on the first half.
        input.write_all(format!("{command}\n").as_bytes()).expect("it listens");
    }

    /// Waits for the next line that begins with `word`; gives the rest of it. Other lines wait.
    pub fn hear(&mut self, word: &str) -> String {
        self.hear_or_end(word).unwrap_or_else(|| {
            panic!("waited for {word:?} from {}, heard {:?}, and its end", self.pid, self.unheard)
        })
    }

    /// The same, of one that may die before it says that: nothing then.
    pub fn hear_or_end(&mut self, word: &str) -> Option<String> {
        let rest_of = |line: &str| {
            let rest = line.strip_prefix(word)?;
            (rest.is_empty() || rest.starts_with(' ')).then(|| rest.trim_start().to_owned())
        };
        let known = self.unheard.iter().position(|line| rest_of(line).is_some());
        if let Some(index) = known {
            return rest_of(&self.unheard.remove(index));
        }
        loop {
            let line = match self.lines.recv_timeout(LIMIT * 3 / 4) {
                Ok(line) => line,
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("waited for {word:?} from {}, heard {:?}", self.pid, self.unheard)
                }
            };
            if let Some(rest) = rest_of(&line) {
                return Some(rest);
            }
            self.unheard.push(line);
        }
    }

    /// Takes the lines that begin with `word` and came before the last one that was waited for.
    pub fn heard(&mut self, word: &str) -> Vec<String> {
        let (of_word, others) =
            self.unheard.drain(..).partition(|line| line.split(' ').next() == Some(word));
        self.unheard = others;
        of_word
    }

    /// Tells it to do something, and waits for the line that begins with `word`.
    pub fn ask(&mut self, command: &str, word: &str) -> String {
        self.tell(command);
        self.hear(word)
    }

    /// The same, of one that may die meanwhile, or is dead: nothing then.
    pub fn ask_or_end(&mut self, command: &str, word: &str) -> Option<String> {
        let input = self.input.as_mut().expect("open until it ends");
        input.write_all(format!("{command}\n").as_bytes()).ok()?;
        self.hear_or_end(word)
    }

    /// Stops it, every thread of it.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        wait_until("it is stopped", || proc::is_stopped(self.pid));
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Kills it, without a chance to clean up, and waits for its end.
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("it was not waited for");
    }

    /// Has it die as of a fault of its own, with whatever core dump this machine makes, and waits
    /// for its end.
    pub fn abort(mut self) {
        self.signal(Signal::SIGABRT);
        self.child.wait().expect("it was not waited for");
    }

    /// Tells it to end in order, and waits for its end.
    pub fn quit(mut self) {
        self.tell("quit");
        let status = self.child.wait().expect("it was not waited for");
        assert!(status.success(), "{status}");
    }

    /// Tells it to end in order, if it lives, and waits for its end. Returns whether it was killed.
    pub fn finish(mut self) -> bool {
        let input = self.input.as_mut().expect("open until it ends");
        // Who is dead hears nothing.
        let _ = input.write_all(b"quit\n");
        let status = self.child.wait().expect("it was not waited for");
        assert!(status.success() || status.signal() == Some(Signal::SIGKILL as i32), "{status}");
        !status.success()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> ExitStatus {
        self.child.wait().expect("it was not waited for")
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid.try_into().expect("process ids are small"));
        kill(pid, signal).expect("it exists until it is waited for");
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // Who was waited for is not there any more, which is no failure.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
