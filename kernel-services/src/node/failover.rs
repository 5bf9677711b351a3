//! The names of a node file whose service fails over otherwise than by default: to whom, and when.

use ipc::{FailoverStrategy, HealthCheck};

use super::{
    Failover,
    fields::{Field, Reading, Span, Table},
    parse::Draft,
    quantity::quoted,
};

const STRATEGIES: &[(&str, FailoverStrategy)] = &[
    ("hot_standby", FailoverStrategy::HotStandby),
    ("priority", FailoverStrategy::Priority),
    ("round_robin", FailoverStrategy::RoundRobin),
    ("least_loaded", FailoverStrategy::LeastLoaded),
    ("manual", FailoverStrategy::Manual),
];
/// The most milliseconds of an interval or timeout, and of a handler's time.
const LONGEST_MS: u64 = 60_000;
const LONGEST_BUSY_MS: u64 = 3_600_000;

/// Where the parts of a failover stand.
#[derive(Default)]
pub(super) struct FailoverPlaces {
    order: Vec<Span>,
}

/// Reads a `[failover.NAME]`.
pub(super) fn failover(
    reading: &mut Reading,
    at: Span,
    field: Field<'_>,
    name: &str,
) -> (Failover, FailoverPlaces) {
    let title = format!("[failover.{name}]");
    if let Err(reason) = ipc::control::check_name(name) {
        let what = format!("{} cannot be served: {reason}", quoted(name));
        reading.fault(at, what, "write the name of a service as its callers know it");
    }
    let mut failover = Failover { name: name.to_owned(), ..Failover::default() };
    let mut places = FailoverPlaces::default();
    let Some(mut table) = Table::open(reading, field, title) else { return (failover, places) };
    let order = table.list(reading, "order", Reading::string);
    (failover.order, places.order) = order.into_iter().unzip();
    let strategy = table.read(reading, "strategy", |it, field| it.choice(field, STRATEGIES));
    failover.strategy = strategy.unwrap_or_default();
    failover.health = table.read(reading, "health_check", health).unwrap_or_default();
    table.close(reading);
    (failover, places)
}

fn health(reading: &mut Reading, field: Field<'_>) -> Option<HealthCheck> {
    let otherwise = HealthCheck::default();
    let mut table = Table::open(reading, field, "health_check".to_owned())?;
    let interval = table.read(reading, "interval", |it, field| ms(it, field, LONGEST_MS));
    let timeout = table.read(reading, "timeout", |it, field| ms(it, field, LONGEST_MS));
    let threshold = table.read(reading, "threshold", |it, field| it.number(field, (1, 100)));
    let busy = table.read(reading, "busy", |it, field| ms(it, field, LONGEST_BUSY_MS));
    table.close(reading);
    Some(HealthCheck {
        interval_ms: interval.unwrap_or(otherwise.interval_ms),
        timeout_ms: timeout.unwrap_or(otherwise.timeout_ms),
        threshold: threshold.map_or(otherwise.threshold, |number| number as u32),
        busy_ms: busy.unwrap_or(otherwise.busy_ms),
    })
}

/// Reads a time in whole milliseconds.
fn ms(reading: &mut Reading, field: Field<'_>, most: u64) -> Option<u32> {
    let time = reading.duration(field)?;
    let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    if (1..=most).contains(&ms) {
        return Some(ms as u32);
    }
    let what = format!("{} is {}ms", field.key, ms);
    reading.fault(field.span(), what, format!("it takes 1ms to {most}ms"));
    None
}

/// Checks that each name is one that a service provides, and that those in its order provide it.
pub(super) fn check(reading: &mut Reading, draft: &Draft) {
    for (failover, places) in draft.node.failovers.iter().zip(&draft.failovers) {
        let name = &failover.name;
        let services = draft.node.services.iter().filter(|it| it.provides.contains(name));
        let providers: Vec<&str> = services.map(|it| it.name.as_str()).collect();
        for (index, (service, at)) in failover.order.iter().zip(&places.order).enumerate() {
            if failover.order[..index].contains(service) {
                let what = format!("{} is in the order twice", quoted(service));
                reading.fault(at.clone(), what, "leave one of them out");
            } else if !providers.contains(&service.as_str()) {
                let what = format!("{} does not provide {}", quoted(service), quoted(name));
                let hint = if providers.is_empty() {
                    "no service does: processes that are not supervised stand behind each other \
                     as they come"
                        .to_owned()
                } else {
                    format!("services that do are {}", providers.join(", "))
                };
                reading.fault(at.clone(), what, hint);
            }
        }
    }
}
