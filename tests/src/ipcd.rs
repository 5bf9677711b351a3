//! The runtime as a program that supervises what a node file lists.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard},
};

use ipc::{Config, Node};
use kernel_services::process::Process;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{LONG, proc, wait_until};

/// An `ipcd --config` of its own; it and all its services are killed when this is dropped.
#[derive(Debug)]
pub struct Ipcd {
    child: Child,
    directory: PathBuf,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Ipcd {
    /// Writes the node file, starts `program` with it, and waits until it is ready. The directory
    /// is the runtime's, too.
    pub fn start(program: &str, directory: &Path, node: &str) -> Ipcd {
        write(directory, node);
        Ipcd::again(program, directory)
    }

    /// Starts it with the node file that is there.
    pub fn again(program: &str, directory: &Path) -> Ipcd {
        Ipcd::by(&[program], directory)
    }

    /// Starts it by a command, to which its arguments are added.
    pub fn by(command: &[&str], directory: &Path) -> Ipcd {
        let ipcd = Ipcd::unready(command, directory);
        ipcd.hear("ready: ");
        ipcd
    }

    /// The same, for one that may not come so far.
    pub fn unready(command: &[&str], directory: &Path) -> Ipcd {
        let mut child = Command::new(command[0])
            .args(&command[1..])
            .arg("--runtime-dir")
            .arg(directory)
            .arg("--config")
            .arg(file(directory))
            .stderr(Stdio::piped())
            .spawn()
            .expect("a process");
        let output = child.stderr.take().expect("piped");
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let tell = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                lock(&tell).push(line);
            }
        });
        Ipcd { child, directory: directory.to_owned(), lines }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to stderr so far.
    pub fn said(&self) -> Vec<String> {
        lock(&self.lines).clone()
    }

    /// Waits for a line that has this in it.
    pub fn hear(&self, part: &str) {
        wait_until(&format!("it says {part:?}"), || {
            lock(&self.lines).iter().any(|line| line.contains(part))
        });
    }

    /// Which line has this in it, and is the first.
    pub fn when(&self, part: &str) -> usize {
        let lines = lock(&self.lines);
        let found = lines.iter().position(|line| line.contains(part));
        found.unwrap_or_else(|| panic!("no {part:?} in {lines:#?}"))
    }

    /// Gives it a command, and returns its answer.
    pub fn ask(&self, command: &Value) -> Value {
        self.ask_text(&command.to_string())
    }

    /// Gives it what may be no command.
    pub fn ask_text(&self, text: &str) -> Value {
        let config = Config { runtime_dir: Some(self.directory.clone()), ..Config::default() };
        let node = Node::connect(&config).expect("a node");
        let answer = node.command(text, Some(LONG)).expect("an answer");
        serde_json::from_str(&answer).expect("JSON")
    }

    /// Starts, stops or restarts something; gives the error, if there is one.
    pub fn act(&self, what: &str, name: &str) -> Option<String> {
        let answer = self.ask(&json!({ "do": what, "name": name }));
        answer["error"].as_str().map(str::to_owned)
    }

    /// What it tells of a unit.
    pub fn unit(&self, name: &str) -> Value {
        let status = self.ask(&json!({ "do": "status" }));
        let units = status["units"].as_array().expect("a list");
        let found = units.iter().find(|unit| unit["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {status:#}")).clone()
    }

    /// The number of a unit's process.
    pub fn pid_of(&self, name: &str) -> u32 {
        let unit = self.unit(name);
        let pid = unit["pid"].as_u64().unwrap_or_else(|| panic!("no process: {unit:#}"));
        pid.try_into().expect("a small number")
    }

    /// Waits until a unit is in a state, and tells about it.
    pub fn wait(&self, name: &str, state: &str) -> Value {
        let mut unit = Value::Null;
        crate::wait_for(&format!("{name} is so"), &state.to_owned(), || {
            unit = self.unit(name);
            unit["state"].as_str().expect("a state").to_owned()
        });
        unit
    }

    /// Waits until a unit is ready with another process than this; gives that.
    pub fn wait_replaced(&self, name: &str, pid: u32) -> u32 {
        let mut now = pid;
        wait_until(&format!("{name} has another process"), || {
            let unit = self.unit(name);
            now = unit["pid"].as_u64().map_or(pid, |it| it as u32);
            now != pid && unit["state"] == "ready"
        });
        now
    }

    /// Sends it a signal.
    pub fn signal(&self, which: Signal) {
        signal(self.pid(), which);
    }

    /// Has it read another node file.
    pub fn reload(&self, node: &str) {
        write(&self.directory, node);
        self.signal(Signal::SIGHUP);
    }

    /// Kills it, without a chance to clean up: its services go on.
    pub fn kill(self) {
        self.signal(Signal::SIGKILL);
        self.leave();
    }

    /// Waits until it was killed: its services go on.
    pub fn wait_for_death(mut self) {
        let mut status = None;
        wait_until("it is killed", || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        let signal = status.and_then(|it| it.signal());
        assert_eq!(signal, Some(libc::SIGKILL), "{status:?} {:#?}", self.said());
        self.leave();
    }

    /// Waits for its end after it was told to stop; gives the status and what it said.
    pub fn stop(mut self) -> (ExitStatus, Vec<String>) {
        self.signal(Signal::SIGTERM);
        let mut status = None;
        wait_until("it has ended", || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        (status.expect("it ended"), self.said())
    }

    /// Waits for its end, and leaves its services alone.
    fn leave(mut self) {
        self.child.wait().expect("a child");
        self.directory = PathBuf::new();
    }
}

impl Drop for Ipcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        kill_recorded(&self.directory);
    }
}

/// Kills the services that no runtime has, for one that left them alone.
pub fn kill_recorded(directory: &Path) {
    for (pid, start_time) in recorded(directory) {
        if let Some(process) = Process::adopt(pid, start_time) {
            let _ = process.kill();
        }
    }
}

/// A rule that lets this user's processes talk to every service.
pub fn open_to_all() -> String {
    let user = nix::unistd::geteuid();
    format!("[[rule]]\nfrom = \"user:{user}\"\nto = \"any\"\nallow = [\"call\", \"send\"]\n")
}

/// Processes that it wrote down, and when they started.
pub fn recorded(directory: &Path) -> Vec<(u32, u64)> {
    let text = fs::read_to_string(directory.join("units")).unwrap_or_default();
    let contents: Value = serde_json::from_str(&text).unwrap_or_default();
    let units = contents["units"].as_array().into_iter().flatten();
    let of = |unit: &Value| Some((unit["pid"].as_u64()? as u32, unit["start_time"].as_u64()?));
    units.filter_map(of).collect()
}

/// The children of a process, also those that ended and were not waited for.
pub fn children(pid: u32) -> usize {
    let each = |thread| fs::read_to_string(format!("/proc/{pid}/task/{thread}/children"));
    let lists = proc::threads(pid).into_iter().filter_map(|thread| each(thread).ok());
    lists.map(|list| list.split_whitespace().count()).sum()
}

/// Sends a signal to a process that is known to be there.
pub fn signal(pid: u32, which: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), which).expect("it is there");
}

/// Writes the node file in one piece.
pub fn write(directory: &Path, node: &str) {
    let fresh = directory.join("node.new");
    fs::write(&fresh, node).and_then(|()| fs::rename(&fresh, file(directory))).expect("written");
}

fn file(directory: &Path) -> PathBuf {
    directory.join("node.toml")
}

fn lock(lines: &Mutex<Vec<String>>) -> MutexGuard<'_, Vec<String>> {
    lines.lock().expect("nobody panics with it")
}
