//! Produces or consumes messages of the queue `load`, and keeps a ledger of what it was promised:
//!
//!     courier DIR LEDGER produce ID MOST     as producer ID, until MOST are stored
//!     courier DIR LEDGER consume MS          until nothing came for so long; 0 for ever
//!     courier DIR LEDGER hold                takes one, and waits to be killed
//!
//! A line of the ledger is numbers: `0 PRODUCER SEQUENCE` is begun, `1 …` is promised; `2 PRODUCER
//! SEQUENCE ID ATTEMPT AT` came, `3 ID ATTEMPT AT` is acknowledged. It is written at once, so that
//! it outlives a kill, and read again by who comes next.

use std::{
    env,
    error::Error,
    fs::{self, File, OpenOptions},
    io::Write,
    path::Path,
    time::Duration,
};

use ipc::{
    Config, Node,
    queue::{QueueConsumer, QueueError, QueueProducer, SERVICE, SendOptions},
};
use nix::time::{ClockId, clock_gettime};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_mins(2);

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [directory, ledger, rest @ ..] = &words[..] else { return Err("DIR LEDGER ...".into()) };
    let known = fs::read_to_string(ledger).unwrap_or_default();
    let mut ledger = OpenOptions::new().create(true).append(true).open(ledger)?;
    if !known.is_empty() && !known.ends_with('\n') {
        // The line that the predecessor was killed in.
        writeln!(ledger)?;
    }
    let node = connect(Path::new(directory))?;
    match rest {
        ["produce", id, most] => produce(&node, &mut ledger, &known, id.parse()?, most.parse()?),
        ["hold"] => hold(&node, &mut ledger),
        ["consume", ms] => consume(&node, &mut ledger, Duration::from_millis(ms.parse()?)),
        _ => Err("produce ID MOST, consume MS, or hold".into()),
    }
}

/// The runtime may be away for a moment.
fn connect(directory: &Path) -> Result<Node, Box<dyn Error>> {
    let config = Config { runtime_dir: Some(directory.to_owned()), ..Config::default() };
    for _ in 0..2000 {
        if let Ok(node) = Node::connect(&config) {
            return Ok(node);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err("there is no runtime".into())
}

fn write(ledger: &mut File, line: &str) -> std::io::Result<()> {
    ledger.write_all(format!("{line}\n").as_bytes())
}

/// What a message says: which it is, and bytes that depend on that.
fn text(producer: u64, sequence: u64) -> Vec<u8> {
    let mut bytes = format!("{producer} {sequence} ").into_bytes();
    bytes.extend((0..sequence % 97).map(|n| (n * producer + sequence) as u8));
    bytes
}

/// Whose message that is, by what it says; nobody's where it does not.
fn whose(payload: &[u8]) -> u64 {
    let word = payload.split(|byte| *byte == b' ').next().unwrap_or_default();
    str::from_utf8(word).ok().and_then(|it| it.parse().ok()).unwrap_or_default()
}

fn produce(
    node: &Node,
    ledger: &mut File,
    known: &str,
    id: u64,
    most: u64,
) -> Result<(), Box<dyn Error>> {
    // What was begun and not promised is sent again, under its number.
    let promised = known.lines().filter(|line| line.starts_with("1 "));
    let next = promised.count() as u64 + 1;
    let producer = QueueProducer::resume(node, SERVICE, "load", id, next)?;
    let options = SendOptions { timeout: LONG, waits_for_room: true, ..SendOptions::default() };
    for sequence in next..=most {
        write(ledger, &format!("0 {id} {sequence}"))?;
        let receipt = producer.send(&text(id, sequence), &options)?;
        assert_eq!(receipt.sequence, sequence);
        write(ledger, &format!("1 {id} {sequence}"))?;
    }
    Ok(())
}

fn consume(node: &Node, ledger: &mut File, patience: Duration) -> Result<(), Box<dyn Error>> {
    let consumer = QueueConsumer::open(node, "load")?;
    let patience = Some(patience).filter(|it| !it.is_zero());
    while let Some(it) = consumer.receive(patience)? {
        let (producer, sequence) = (whose(it.payload()), it.sequence());
        assert_ne!(it.producer(), producer, "what it calls itself is its secret");
        assert_eq!(it.payload(), text(producer, sequence), "nothing is invented");
        let (id, attempt) = (it.id(), it.attempt());
        write(ledger, &format!("2 {producer} {sequence} {id} {attempt} {}", now()))?;
        match consumer.ack(&it) {
            Ok(()) => write(ledger, &format!("3 {id} {attempt} {}", now()))?,
            // It took too long; somebody else has it.
            Err(QueueError::Lost) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn hold(node: &Node, ledger: &mut File) -> Result<(), Box<dyn Error>> {
    let consumer = QueueConsumer::open(node, "load")?;
    let it = consumer.receive(None)?.ok_or("nothing")?;
    write(
        ledger,
        &format!("2 {} {} {} {} {}", it.producer(), it.sequence(), it.id(), it.attempt(), now()),
    )?;
    loop {
        std::thread::park();
    }
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    now.as_nanos() as u64
}
