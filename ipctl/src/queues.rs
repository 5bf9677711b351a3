//! `ipctl queues`: what do the reliable queues hold, and what is to become of it?

use std::{fmt, thread, time::Duration};

use clap::{Args, Subcommand};
use ipc::{
    Config, Node,
    queue::{Account, Delivery, QueueAdmin, QueueError, SERVICE},
};
use serde::Serialize;

use crate::{
    failure::Failure,
    output::Output,
    payload::{hex, printable},
    table::{Align, Table},
    units,
};

/// Show the reliable queues, look at their messages, redrive dead letters, purge
#[derive(Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Arguments {
    /// The name that ipc-queue serves
    #[arg(long, default_value = SERVICE, value_name = "NAME")]
    service: String,
    /// Count for so long what is put in and taken out
    #[arg(long, default_value = "500ms", value_parser = units::duration, value_name = "TIME")]
    interval: Duration,
    #[command(subcommand)]
    act: Option<Act>,
}

#[derive(Subcommand)]
enum Act {
    /// Look at messages; nobody gets them by that
    Peek {
        /// The queue
        queue: String,
        /// Look at dead letters instead
        #[arg(long)]
        dead: bool,
        /// So many at most
        #[arg(short = 'n', long, default_value_t = 10)]
        most: u16,
        /// Begin behind this id
        #[arg(long, default_value_t = 0, value_name = "ID")]
        above: u64,
    },
    /// Have dead letters given out again
    Redrive {
        /// The queue
        queue: String,
        /// So many at most
        #[arg(short = 'n', long, default_value_t = u32::MAX)]
        most: u32,
    },
    /// Throw away what no consumer has
    Purge {
        /// The queue
        queue: String,
        /// Throw away dead letters only
        #[arg(long)]
        dead: bool,
    },
}

const HELP: &str = "\
Columns:
  READY    can be taken now
  DELAYED  waits for its time
  LEASED   is in a consumer's hands
  DEAD     dead letters: tried as often as the queue allows
  BYTES    of all payloads
  WAITING  consumers that wait for messages, and producers that wait for room
  PUT/S    messages stored a second, and ACKED/S acknowledged
  KEPT     memory: until the machine ends; journal: on the disk

Examples:
  ipctl queues
  ipctl queues peek orders --dead
  ipctl queues redrive orders
  ipctl queues --json | jq -r '.[] | select(.dead > 0) | .name'";

/// For each question.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn run(arguments: &Arguments, config: &Config, output: Output) -> Result<(), Failure> {
    let node = Node::connect(config)?;
    let service = node.discover(&arguments.service);
    service.map_err(|error| match error {
        ipc::NodeError::Refused(ipc::Status::NOT_FOUND) => {
            Failure::NoQueues(arguments.service.clone())
        }
        other => other.into(),
    })?;
    let admin = QueueAdmin::new(&node, &arguments.service);
    match &arguments.act {
        None => {
            let before = admin.list(PATIENCE).map_err(failed(""))?;
            thread::sleep(arguments.interval);
            let after = admin.list(PATIENCE).map_err(failed(""))?;
            if after.is_empty() {
                output.remark("no queues: none is declared, and none was made");
            }
            output.show(&List::new(&before, &after, arguments.interval))
        }
        Some(Act::Peek { queue, dead, most, above }) => {
            let messages = admin.peek(queue, *dead, *above, *most, PATIENCE);
            let messages = messages.map_err(failed(queue))?;
            output.show(&Messages(messages.iter().map(Message::new).collect()))
        }
        Some(Act::Redrive { queue, most }) => {
            let count = admin.redrive(queue, *most, PATIENCE).map_err(failed(queue))?;
            output.show(&Count { count, what: "dead letters are messages again" })
        }
        Some(Act::Purge { queue, dead }) => {
            let count = admin.purge(queue, *dead, PATIENCE).map_err(failed(queue))?;
            output.show(&Count { count, what: "messages are thrown away" })
        }
    }
}

/// What a failure means to who called a queue by that name.
fn failed(queue: &str) -> impl Fn(QueueError) -> Failure {
    let queue = queue.to_owned();
    move |error| match error {
        QueueError::NoQueue => Failure::NoQueue(queue.clone()),
        QueueError::Call(error) => error.into(),
        other => Failure::Queue(other),
    }
}

#[derive(Serialize)]
struct List(Vec<Row>);

#[derive(Serialize)]
struct Row {
    name: String,
    journalled: bool,
    put_per_s: f64,
    acked_per_s: f64,
    #[serde(flatten)]
    figures: std::collections::BTreeMap<&'static str, u64>,
}

impl List {
    fn new(before: &[Account], after: &[Account], interval: Duration) -> List {
        let row = |account: &Account| {
            let old = before.iter().find(|it| it.name == account.name);
            let rate = |figure| {
                let count = |of: &Account| of.figure(figure).unwrap_or(0);
                let done = count(account).saturating_sub(old.map_or(count(account), count));
                done as f64 / interval.as_secs_f64().max(1e-3)
            };
            Row {
                name: account.name.clone(),
                journalled: account.is_journalled,
                put_per_s: rate("stored"),
                acked_per_s: rate("acked"),
                figures: Account::FIGURES.into_iter().zip(account.figures).collect(),
            }
        };
        List(after.iter().map(row).collect())
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            ("NAME", Align::Left),
            ("READY", Align::Right),
            ("DELAYED", Align::Right),
            ("LEASED", Align::Right),
            ("DEAD", Align::Right),
            ("BYTES", Align::Right),
            ("WAITING", Align::Right),
            ("PUT/S", Align::Right),
            ("ACKED/S", Align::Right),
            ("KEPT", Align::Left),
        ]);
        for row in &self.0 {
            let figure = |name| row.figures.get(name).copied().unwrap_or(0);
            table.row([
                row.name.clone(),
                figure("ready").to_string(),
                figure("delayed").to_string(),
                figure("leased").to_string(),
                figure("dead").to_string(),
                figure("bytes").to_string(),
                format!("{}+{}", figure("takers"), figure("putters")),
                format!("{:.0}", row.put_per_s),
                format!("{:.0}", row.acked_per_s),
                if row.journalled { "journal" } else { "memory" }.to_owned(),
            ]);
        }
        table.fmt(f)
    }
}

#[derive(Serialize)]
struct Messages(Vec<Message>);

#[derive(Serialize)]
struct Message {
    id: u64,
    attempts: u32,
    priority: u8,
    producer: u64,
    sequence: u64,
    size: usize,
    /// If it is one.
    text: Option<String>,
    hex: String,
}

impl Message {
    fn new(of: &Delivery) -> Message {
        Message {
            id: of.id(),
            attempts: of.attempt(),
            priority: of.priority(),
            producer: of.producer(),
            sequence: of.sequence(),
            size: of.payload().len(),
            text: printable(of.payload()).map(str::to_owned),
            hex: hex(of.payload()),
        }
    }
}

impl fmt::Display for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for it in &self.0 {
            let text = it.text.as_deref().unwrap_or(&it.hex);
            writeln!(f, "{} (attempts {}, {} bytes): {text}", it.id, it.attempts, it.size)?;
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Count {
    count: u64,
    #[serde(skip)]
    what: &'static str,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.count, self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_a_line_with_its_rates() {
        let before = Account { name: "orders".to_owned(), ..Account::default() };
        let mut after = before.clone();
        after.figures = [3, 0, 1, 2, 640, 4, 0, 1, 50, 0, 20, 0, 0, 0, 0];
        let list = List::new(&[before], &[after], Duration::from_millis(500));
        let lines = [
            "NAME    READY  DELAYED  LEASED  DEAD  BYTES  WAITING  PUT/S  ACKED/S  KEPT",
            "orders      3        0       1     2    640      4+0    100       40  memory",
            "",
        ];
        assert_eq!(list.to_string(), lines.join("\n"));
        let json = serde_json::to_value(&list).expect("plain data");
        assert_eq!((&json[0]["dead"], &json[0]["acked"]), (&2.into(), &20.into()));
    }
}
