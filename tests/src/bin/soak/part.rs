//! One process of the run: how it is started and told what to do, and what it does.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use ipc::{Config, Node};
use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use crate::{Trouble, bus, call, cast::LONG, notary, post, serve};

/// A process, killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) pid: u32,
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    unheard: Vec<String>,
}

impl Part {
    /// Starts this program in a role; what it writes to stderr goes to a log of this name.
    pub(crate) fn start(base: &Path, name: &str, role: &[&str]) -> Result<Part, Trouble> {
        let log = File::options().create(true).append(true).open(log(base, name))?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["part", role[0]])
            .arg(base)
            .args(&role[1..])
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let output = child.stdout.take().ok_or("no output")?;
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        let (pid, input) = (child.id(), child.stdin.take());
        Ok(Part { name: name.to_owned(), pid, child, input, lines, unheard: Vec::new() })
    }

    /// Tells it to do something.
    pub(crate) fn tell(&mut self, command: &str) -> Result<(), Trouble> {
        let input = self.input.as_mut().ok_or("it was told to end")?;
        input
            .write_all(format!("{command}\n").as_bytes())
            .map_err(|error| format!("{} does not hear {command:?}: {error}", self.name).into())
    }

    /// Waits for the next line that begins with `word`; gives the rest of it. Other lines wait.
    pub(crate) fn hear(&mut self, word: &str) -> Result<String, Trouble> {
        let until = Instant::now() + LONG;
        loop {
            let rest_of = |line: &String| {
                let rest = line.strip_prefix(word)?;
                (rest.is_empty() || rest.starts_with(' ')).then(|| rest.trim_start().to_owned())
            };
            let known = self.unheard.iter().position(|line| rest_of(line).is_some());
            if let Some(rest) = known.and_then(|at| rest_of(&self.unheard.remove(at))) {
                return Ok(rest);
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.unheard.push(line),
                Err(error) => {
                    let name = &self.name;
                    return Err(
                        format!("{name} ({}) never said {word:?}: {error}", self.pid).into()
                    );
                }
            }
        }
    }

    /// Tells it something, and waits for the line that begins with `word`.
    pub(crate) fn ask(&mut self, command: &str, word: &str) -> Result<String, Trouble> {
        self.tell(command)?;
        self.hear(word)
    }

    /// Takes what it has said so far of this kind, and waits for nothing.
    pub(crate) fn heard(&mut self, word: &str) -> Vec<String> {
        self.unheard.extend(self.lines.try_iter());
        let is_meant = |line: &String| line.split(' ').next() == Some(word);
        let (meant, others) = self.unheard.drain(..).partition(is_meant);
        self.unheard = others;
        meant
    }

    /// Sends a signal. One that has ended by itself is told of by whoever waits for it.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid.cast_signed()), signal);
    }

    /// Waits for its end, which it was brought to.
    pub(crate) fn reap(mut self) {
        let _ = self.child.wait();
    }

    /// Tells it to end in order, and says if it did not.
    pub(crate) fn quit(&mut self) -> Result<(), Trouble> {
        drop(self.input.take());
        let until = Instant::now() + LONG;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("{} ended with {status}", self.name).into()),
                None if Instant::now() > until => {
                    return Err(format!("{} ({}) does not end", self.name, self.pid).into());
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Whether it has ended by itself, and how.
    pub(crate) fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(format!("{} ({}) ended by itself: {status}", self.name, self.pid))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Who was waited for is not there any more, which is no failure.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a process of this name writes.
pub(crate) fn log(base: &Path, name: &str) -> std::path::PathBuf {
    base.join("log").join(format!("{name}.log"))
}

/// Plays a part, in a process that was started for it.
pub(crate) fn play(words: &[&str]) -> Result<(), Trouble> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let [role, base, rest @ ..] = words else { return Err("a role and a directory".into()) };
    let base = Path::new(base);
    match (*role, rest) {
        ("notary", []) => notary::play(base),
        ("serve", [group, mib]) => serve::play(base, group.parse()?, mib.parse()?),
        ("steady", []) => serve::steady(base),
        ("call", [index]) => call::play(base, index.parse()?),
        ("publish", []) => bus::publish(base),
        ("listen", []) => bus::listen(base),
        ("produce", []) => post::produce(base),
        ("consume", []) => post::consume(base),
        ("hog", []) => {
            hog();
            Ok(())
        }
        _ => Err("no such part".into()),
    }
}

/// Takes a CPU for itself.
fn hog() {
    std::thread::spawn(|| {
        loop {
            std::hint::spin_loop();
        }
    });
    obey(|_| ());
}

/// Does what stdin says, a line at a time, until that ends; `exec` makes it another program.
pub(crate) fn obey(mut act: impl FnMut(&[&str])) {
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        if words == ["exec"] {
            let error = Command::new("/bin/sleep").arg("1000000").exec();
            say(&format!("failed {error}"));
        } else {
            act(&words);
        }
    }
}

/// Writes one line to stdout, in one piece: any thread.
pub(crate) fn say(line: &str) {
    // Who listened may have ended, and this process is about to.
    let _ = nix::unistd::write(std::io::stdout(), format!("{line}\n").as_bytes());
}

/// Connects, though the runtime may be away for a moment.
pub(crate) fn connect(config: &Config) -> Result<Node, Trouble> {
    patiently(|| Node::connect(config))
}

/// Tries again what the runtime refuses while it is away, or does not know yet who serves what.
pub(crate) fn patiently<T, E: std::error::Error + 'static>(
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, Trouble> {
    let until = Instant::now() + LONG;
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > until => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}
