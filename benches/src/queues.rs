//! Reliable queues, beside what moves messages without keeping them.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crossbeam::channel::bounded;
use ipc::queue::{QueueConsumer, QueueError, QueueProducer, SendOptions};
use ipc::{Config, Node};
use nix::mqueue::{MQ_OFlag, MqAttr, mq_open, mq_receive, mq_send, mq_unlink};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use crate::floor::Setting;
use crate::measure::{latency, throughput};
use crate::report::{Group, Ruler};
use crate::scale::RUNTIME;

/// Bytes of each message.
const SIZE: usize = 64;
/// Messages of one batch.
const BATCH: usize = 128;
/// Producers that share the syncs of a journal.
const PRODUCERS: usize = 4;
/// For what has to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A runtime that supervises `ipc-queue`. Stopped when dropped.
struct Post {
    ipcd: Child,
    node: Node,
    _directory: tempfile::TempDir,
}

impl Post {
    fn start(setting: &Setting) -> io::Result<Post> {
        let directory = tempfile::tempdir()?;
        let place = directory.path();
        let terms = "messages = 100000\nbytes = 268435456\n";
        fs::write(
            place.join("queues.toml"),
            format!("[queue.memory]\n{terms}[queue.disk]\ndurability = \"journalled\"\n{terms}"),
        )?;
        fs::write(place.join("node.toml"), node_file(place, setting.placement.there)?)?;
        let ipcd = Command::new(std::env::current_exe()?)
            .arg(RUNTIME)
            .arg(place)
            .arg(place.join("node.toml"))
            .arg(setting.placement.there.to_string())
            .spawn()?;
        let config = Config { runtime_dir: Some(place.to_owned()), ..Config::default() };
        let begun = Instant::now();
        let node = loop {
            match Node::connect(&config) {
                Ok(node) => break node,
                Err(error) if begun.elapsed() > PATIENCE => return Err(io::Error::other(error)),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        Ok(Post { ipcd, node, _directory: directory })
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.ipcd.id().cast_signed()), Signal::SIGTERM);
        let _ = self.ipcd.wait();
    }
}

fn node_file(place: &Path, cpu: usize) -> io::Result<String> {
    let program: PathBuf = std::env::current_exe()?.with_file_name("ipc-queue");
    if !program.exists() {
        let text = "there is no ipc-queue beside this program: cargo build --release -p ipc-queue";
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    let (program, config) = (program.display(), place.join("queues.toml"));
    let config = config.display();
    Ok(format!(
        "[[rule]]\nfrom = \"any\"\nto = \"any\"\nallow = \"all\"\n\
         [service.queue]\nexecutable = \"{program}\"\nprovides = [\"ipc.queue\"]\n\
         cpus = \"{cpu}\"\n\
         arguments = [\"--config\", \"{config}\"]\nsandbox = false\n"
    ))
}

fn other(error: QueueError) -> io::Error {
    io::Error::other(error)
}

/// Runs the group.
///
/// # Errors
/// Those of the measurements.
pub fn group(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    let post = Post::start(setting)?;
    Group::measure(
        "queue: messages put in, taken, and acknowledged",
        || setting.beside(),
        |ruler| {
            unkept(setting, ruler)?;
            for (queue, kept) in [("memory", "memory"), ("disk", "journalled")] {
                one_by_one(setting, ruler, &post.node, queue, kept)?;
                many(setting, ruler, &post.node, queue, kept, 1)?;
                many(setting, ruler, &post.node, queue, kept, PRODUCERS)?;
            }
            Ok(())
        },
    )
}

/// What forgets a message as soon as it is taken: a channel in a process, a socket, a queue of the
/// kernel. One thread does both, so that nobody has to be woken.
fn unkept(setting: &Setting, ruler: &mut Ruler<'_>) -> io::Result<()> {
    let (clock, plan) = (&setting.clock, setting.plan);
    let message = [7_u8; SIZE];
    let mut buffer = [0_u8; 8192];
    let (put, take) = bounded::<[u8; SIZE]>(BATCH);
    ruler.latency("crossbeam channel, put and take", Some(SIZE), || {
        latency(clock, plan, || {
            put.send(message).map_err(io::Error::other)?;
            take.recv().map(drop).map_err(io::Error::other)
        })
    })?;
    let (mut ours, mut theirs) = UnixStream::pair()?;
    ruler.latency("Unix socket, put and take", Some(SIZE), || {
        latency(clock, plan, || {
            ours.write_all(&message)?;
            theirs.read_exact(&mut buffer[..SIZE])
        })
    })?;
    let name = format!("/ipc-bench-{}", std::process::id());
    let flags = MQ_OFlag::O_CREAT | MQ_OFlag::O_RDWR;
    let attributes = MqAttr::new(0, 10, 8192, 0);
    let queue = mq_open(name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR, Some(&attributes))?;
    mq_unlink(name.as_str())?;
    ruler.latency("POSIX mq, put and take", Some(SIZE), || {
        latency(clock, plan, || {
            mq_send(&queue, &message, 0)?;
            let mut priority = 0;
            mq_receive(&queue, &mut buffer, &mut priority).map(drop).map_err(Into::into)
        })
    })
}

fn one_by_one(
    setting: &Setting,
    ruler: &mut Ruler<'_>,
    node: &Node,
    queue: &str,
    kept: &str,
) -> io::Result<()> {
    let (clock, plan) = (&setting.clock, setting.plan);
    let producer = QueueProducer::open(node, queue).map_err(other)?;
    let consumer = QueueConsumer::open(node, queue).map_err(other)?;
    let options = SendOptions::default();
    ruler.latency(&format!("{kept}: put, take and acknowledge"), Some(SIZE), || {
        latency(clock, plan, || {
            producer.send(&[7; SIZE], &options).map_err(other)?;
            let it = consumer.receive(Some(PATIENCE)).map_err(other)?;
            consumer.ack(&it.ok_or(io::ErrorKind::TimedOut)?).map_err(other)
        })
    })
}

/// Producers put batches in, each with many messages under way; then one consumer takes as many
/// and acknowledges them together.
fn many(
    setting: &Setting,
    ruler: &mut Ruler<'_>,
    node: &Node,
    queue: &str,
    kept: &str,
    count: usize,
) -> io::Result<()> {
    let producers: Vec<QueueProducer> = (0..count)
        .map(|_| QueueProducer::open(node, queue).map_err(other))
        .collect::<io::Result<_>>()?;
    let consumer = QueueConsumer::open(node, queue).map_err(other)?.prefetch(BATCH as u16);
    let name = format!("{kept}: put, taken and acknowledged, {count} x {BATCH} under way");
    ruler.throughput(&name, Some(SIZE), || {
        throughput(&setting.clock, setting.plan, || {
            std::thread::scope(|scope| {
                let each: Vec<_> =
                    producers.iter().map(|it| scope.spawn(move || put_batch(it))).collect();
                each.into_iter().try_for_each(|it| it.join().unwrap_or(Ok(())))
            })?;
            let mut left = count * BATCH;
            while left > 0 {
                let mut taken = Vec::with_capacity(BATCH);
                while taken.len() < left.min(BATCH) {
                    let it = consumer.receive(Some(PATIENCE)).map_err(other)?;
                    taken.push(it.ok_or(io::ErrorKind::TimedOut)?);
                }
                left -= taken.len();
                for told in consumer.ack_all(&taken).map_err(other)? {
                    told.map_err(other)?;
                }
            }
            Ok((count * BATCH) as u64)
        })
    })
}

fn put_batch(producer: &QueueProducer) -> io::Result<()> {
    let payloads = [&[7_u8; SIZE][..]; BATCH];
    let results = producer.send_all(&payloads, &SendOptions::default());
    results.into_iter().try_for_each(|it| it.map(drop).map_err(other))
}
