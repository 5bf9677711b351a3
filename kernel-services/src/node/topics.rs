//! The topics of a node file: their numbers, how much of them is kept, and for whom.

use super::{
    Topic,
    fields::{Field, Reading, Span, Table},
    quantity::quoted,
};
use crate::events::{EVENTS, number_of};

/// How subscribers are served that do not say how.
const MODES: &[(&str, bool)] = &[("lossy", false), ("reliable", true)];
/// As many events of the usual size as the largest ring holds.
const MOST_EVENTS: u64 = (1 << 28) / ipc::bus::SLOT;

/// Reads all `[[topic]]`s.
pub(super) fn topics(reading: &mut Reading, root: &mut Table<'_>) -> Vec<Topic> {
    let mut topics: Vec<Topic> = Vec::new();
    for (topic, at) in root.list(reading, "topic", topic) {
        let number = topic.number();
        if let Some(other) = topics.iter().find(|it| it.number() == number) {
            let what = if other.name == topic.name {
                format!("the topic {} is here twice", quoted(&topic.name))
            } else {
                let (name, other) = (quoted(&topic.name), quoted(&other.name));
                format!("the topics {name} and {other} are both number {number}")
            };
            reading.fault(at, what, "give one of them another id");
            continue;
        }
        topics.push(topic);
    }
    topics
}

fn topic(reading: &mut Reading, field: Field<'_>) -> Option<Topic> {
    let at = field.span();
    let mut table = Table::open(reading, field, "[[topic]]".to_owned())?;
    let name = table.read(reading, "name", name);
    let id = table.read(reading, "id", |it, field| it.number(field, (1, u64::from(u32::MAX))));
    let events =
        table.read(reading, "event_bus_size", |it, field| it.number(field, (64, MOST_EVENTS)));
    let retained = table.read(reading, "retained", |it, field| {
        it.choice(field, &[("publisher", false), ("always", true)])
    });
    let reliable = table.read(reading, "mode", |it, field| it.choice(field, MODES));
    if !table.has("name") {
        reading.fault(at, "the topic has no name".to_owned(), "write name = \"NAME\"");
    }
    table.close(reading);
    Some(Topic {
        name: name?,
        id: id.map(|id| id as u32),
        event_bus_size: events.unwrap_or(EVENTS),
        retained: retained.unwrap_or(false),
        reliable: reliable.unwrap_or(false),
    })
}

fn name(reading: &mut Reading, field: Field<'_>) -> Option<String> {
    let name = reading.string(field)?;
    let at: Span = field.span();
    if let Err(reason) = ipc::control::check_name(&name) {
        let what = format!("{} cannot name a topic: {reason}", quoted(&name));
        reading.fault(at, what, "choose another name");
        return None;
    }
    if name.starts_with("event/") && number_of(&name) >> 31 == 0 {
        let what = format!("{} is how a topic without a name is called", quoted(&name));
        reading.fault(at, what, "choose another name, and write id = NUMBER");
        return None;
    }
    Some(name)
}
