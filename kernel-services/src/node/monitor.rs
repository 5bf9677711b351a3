//! What a node file lets be seen of the node while it runs: `[monitor]`.

use ipc::trace::{Collector, NoCollector};

use super::{
    Monitor, Object,
    fields::{Field, Reading, Table},
    quantity::quoted,
    rules,
};

/// Reads `[monitor]`.
pub(super) fn monitor(reading: &mut Reading, field: Field<'_>) -> Option<Monitor> {
    let mut table = Table::open(reading, field, "[monitor]".to_owned())?;
    let payloads = table.read(reading, "payloads", |reading, field| {
        if field.value.get_ref().is_array() {
            return Some(reading.list(field, name));
        }
        let hint = "write payloads = [\"name:NAME\"]";
        reading.mistyped(field, "a list", hint);
        None
    });
    let otlp = table.read(reading, "otlp", collector);
    table.close(reading);
    let payloads = payloads.unwrap_or_default().into_iter().map(|(name, _)| name).collect();
    Some(Monitor { payloads, otlp })
}

fn collector(reading: &mut Reading, field: Field<'_>) -> Option<Collector> {
    let (at, text) = (field.span(), reading.text(field)?);
    match text.parse() {
        Ok(collector) => Some(collector),
        Err(error @ NoCollector::Encrypted) => {
            reading.fault(at, error.to_string(), NoCollector::HINT);
            None
        }
        Err(NoCollector::Form) => {
            let what = format!("spans cannot be sent to {}", quoted(text));
            reading.fault(at, what, NoCollector::HINT);
            None
        }
    }
}

fn name(reading: &mut Reading, field: Field<'_>) -> Option<Object> {
    let at = field.span();
    let object = rules::object(reading, field)?;
    if object == Object::Runtime {
        let what = "the runtime itself has no payloads".to_owned();
        reading.fault(at, what, "write \"name:NAME\", \"name:PREFIX*\" or \"any\"");
        return None;
    }
    Some(object)
}
