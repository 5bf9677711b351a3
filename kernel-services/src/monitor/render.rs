//! Services as metrics: `OpenMetrics` 1.0, and the text format that came before it. Pure.

use std::fmt::Write;

use ipc::trace::Exported;

use super::{Service, Sight, Unit};

/// The media types that scrapers ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/openmetrics-text; version=1.0.0`
    OpenMetrics,
    /// `text/plain; version=0.0.4`
    Text,
}

impl Format {
    /// Gives the value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// A family of metrics of one number for each service, or unit.
struct Family<T> {
    /// Without `_total`.
    name: &'static str,
    counts: bool,
    unit: &'static str,
    help: &'static str,
    value: fn(&T) -> Option<Number>,
}

enum Number {
    Whole(u64),
    Real(f64),
}

const FAMILIES: &[Family<Service>] = &[
    Family {
        name: "libipc_messages_sent",
        counts: true,
        unit: "",
        help: "Requests, one-way messages and responses sent.",
        value: |it| Some(Number::Whole(sum(it, |stats| stats.messages_sent))),
    },
    Family {
        name: "libipc_messages_received",
        counts: true,
        unit: "",
        help: "Requests, one-way messages and responses received.",
        value: |it| Some(Number::Whole(sum(it, |stats| stats.messages_received))),
    },
    Family {
        name: "libipc_sent_bytes",
        counts: true,
        unit: "bytes",
        help: "Bytes of the payloads sent.",
        value: |it| Some(Number::Whole(sum(it, |stats| stats.bytes_sent))),
    },
    Family {
        name: "libipc_received_bytes",
        counts: true,
        unit: "bytes",
        help: "Bytes of the payloads received.",
        value: |it| Some(Number::Whole(sum(it, |stats| stats.bytes_received))),
    },
    Family {
        name: "libipc_errors",
        counts: true,
        unit: "",
        help: "Calls that ended with an error, and requests answered with one.",
        value: |it| Some(Number::Whole(sum(it, |stats| stats.errors))),
    },
    Family {
        name: "libipc_drops",
        counts: true,
        unit: "",
        help: "Messages given up: no room in time, expired, over a limit.",
        value: |it| Some(Number::Whole(sum(it, |stats| stats.drops))),
    },
    Family {
        name: "libipc_error_rate",
        counts: false,
        unit: "",
        help: "Errors over all messages that could have ended with one, since the start.",
        value: |it| {
            Some(Number::Real(
                [&it.called, &it.served].into_iter().collect::<ipc::Stats>().error_rate(),
            ))
        },
    },
    Family {
        name: "libipc_active_connections",
        counts: false,
        unit: "",
        help: "Channels that are open.",
        value: |it| Some(Number::Whole(it.connections)),
    },
    Family {
        name: "libipc_queue_depth",
        counts: false,
        unit: "",
        help: "Requests that wait for their turn.",
        value: |it| Some(Number::Whole(it.served.depth)),
    },
    Family {
        name: "process_resident_memory_bytes",
        counts: false,
        unit: "bytes",
        help: "Resident memory of the service's process.",
        value: |it| it.process.map(|process| Number::Whole(process.resident_bytes)),
    },
    Family {
        name: "process_cpu_seconds",
        counts: true,
        unit: "seconds",
        help: "Processor time of the service's process.",
        value: |it| it.process.map(|process| Number::Real(process.cpu_seconds)),
    },
    Family {
        name: "process_open_fds",
        counts: false,
        unit: "",
        help: "Open descriptors of the service's process.",
        value: |it| it.process.and_then(|process| process.open_fds).map(Number::Whole),
    },
];

const UNITS: &[Family<Unit>] = &[
    Family {
        name: "libipc_restarts",
        counts: true,
        unit: "",
        help: "Processes that the supervisor started after a failure.",
        value: |it| Some(Number::Whole(it.restarts)),
    },
    Family {
        name: "libipc_unit_ready",
        counts: false,
        unit: "",
        help: "Whether the unit is up, or has done what it is for: 1 or 0.",
        value: |it| Some(Number::Whole(u64::from(it.is_ready))),
    },
];

/// What is in a family: told from the others by its labels.
trait Labelled {
    fn labels(&self) -> String;
}

impl Labelled for Service {
    fn labels(&self) -> String {
        format!("service=\"{}\",instance=\"{}\"", escaped(&self.name), self.instance)
    }
}

impl Labelled for Unit {
    fn labels(&self) -> String {
        format!("service=\"{}\",unit=\"{}\"", escaped(&self.service), escaped(&self.name))
    }
}

fn sum(service: &Service, of: impl Fn(&ipc::Stats) -> u64) -> u64 {
    of(&service.called).saturating_add(of(&service.served))
}

/// Writes what was found.
pub fn render(sight: &Sight, format: Format) -> String {
    let services = &sight.services;
    let mut out = Page { text: String::new(), format };
    for family in FAMILIES {
        out.family(family, services);
    }
    for family in UNITS {
        out.family(family, &sight.units);
    }
    out.histogram(
        "libipc_request_latency_seconds",
        "How long calls took their callers; fast ones sampled, one in 64.",
        services,
        |it| &it.called.latency,
    );
    out.histogram(
        "libipc_handler_seconds",
        "How long handlers took; those under load sampled, one in 64.",
        services,
        |it| &it.served.latency,
    );
    out.histogram(
        "libipc_queue_wait_seconds",
        "How long requests waited for others of their channel, of those that had to.",
        services,
        |it| &it.served.queued,
    );
    if let Some(Exported { sent, dropped }) = sight.exported {
        let taken = "Spans of ipcd that its collector has taken.";
        out.count("libipc_spans_exported", taken, sent);
        let not_taken = "Spans of ipcd that were dropped on the way to its collector.";
        out.count("libipc_spans_dropped", not_taken, dropped);
    }
    if format == Format::OpenMetrics {
        out.line(format_args!("# EOF"));
    }
    out.text
}

struct Page {
    text: String,
    format: Format,
}

impl Page {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{line}");
    }

    /// What is said of a family before its samples.
    fn head(&mut self, name: &str, kind: &str, unit: &str, help: &str) {
        // The older format knows samples only by their full names.
        let total = if kind == "counter" && self.format == Format::Text { "_total" } else { "" };
        self.line(format_args!("# HELP {name}{total} {help}"));
        self.line(format_args!("# TYPE {name}{total} {kind}"));
        if !unit.is_empty() && self.format == Format::OpenMetrics {
            self.line(format_args!("# UNIT {name} {unit}"));
        }
    }

    /// A counter of the runtime itself.
    fn count(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", "", help);
        self.line(format_args!("{name}_total {value}"));
    }

    fn family<T: Labelled>(&mut self, family: &Family<T>, whose: &[T]) {
        let (kind, total) = if family.counts { ("counter", "_total") } else { ("gauge", "") };
        self.head(family.name, kind, family.unit, family.help);
        for it in whose {
            let labels = it.labels();
            match (family.value)(it) {
                None => {}
                Some(Number::Whole(value)) => {
                    self.line(format_args!("{}{total}{{{labels}}} {value}", family.name));
                }
                Some(Number::Real(value)) => {
                    self.line(format_args!("{}{total}{{{labels}}} {value:?}", family.name));
                }
            }
        }
    }

    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        services: &[Service],
        of: fn(&Service) -> &ipc::Histogram,
    ) {
        self.head(name, "histogram", "seconds", help);
        for service in services {
            let (labels, histogram) = (service.labels(), of(service));
            for (below_ns, count) in histogram.octaves() {
                let le = seconds(below_ns);
                self.line(format_args!("{name}_bucket{{{labels},le=\"{le:?}\"}} {count}"));
            }
            let (count, sum) = (histogram.count(), seconds(histogram.sum_ns()));
            self.line(format_args!("{name}_bucket{{{labels},le=\"+Inf\"}} {count}"));
            self.line(format_args!("{name}_sum{{{labels}}} {sum:?}"));
            self.line(format_args!("{name}_count{{{labels}}} {count}"));
        }
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use ipc::{ServiceId, Stats};

    use super::{super::Process, *};

    fn sight() -> Sight {
        let stats = |messages_sent, exchanges, errors| Stats {
            messages_sent,
            exchanges,
            errors,
            ..Stats::default()
        };
        let mut called = stats(2, 2, 0);
        called.latency.record(150, 64);
        called.latency.record(70_000, 1);
        called.latency.record(3_000_000_000, 1);
        let process = Process { resident_bytes: 4096, cpu_seconds: 1.5, open_fds: Some(7) };
        let services = vec![
            Service {
                name: "echo".into(),
                instance: ServiceId::new(3),
                called,
                served: stats(6, 6, 2),
                connections: 2,
                process: Some(process),
            },
            Service { name: "a \"b\\".into(), instance: ServiceId::new(9), ..Service::default() },
        ];
        let unit = |name: &str, is_ready, restarts| Unit {
            name: name.into(),
            service: "echo".into(),
            is_ready,
            restarts,
        };
        let units = vec![unit("echo#1", true, 1), unit("echo#2", false, 6)];
        Sight { services, units, exported: Some(Exported { sent: 7, dropped: 1 }) }
    }

    /// The page of both services, in each format, as it was read and approved.
    #[test]
    fn a_page_is_what_it_was() {
        let golden = [include_str!("golden.openmetrics"), include_str!("golden.text")];
        let pages = [Format::OpenMetrics, Format::Text].map(|it| render(&sight(), it));
        if let Some(directory) = std::env::var_os("IPC_GOLDEN") {
            // To be read, and approved, and put in place of the old ones.
            for (name, page) in ["golden.openmetrics", "golden.text"].iter().zip(&pages) {
                std::fs::write(std::path::Path::new(&directory).join(name), page).expect("written");
            }
        }
        for (page, golden) in pages.iter().zip(golden) {
            assert!(page == golden, "another page: see it with IPC_GOLDEN=DIRECTORY\n{page}");
        }
    }

    /// The grammar of `OpenMetrics` 1.0, as far as this page uses it: families in one piece, each
    /// with its metadata first; samples named after their family and type; buckets that ascend and
    /// end with all; `# EOF` last.
    #[test]
    fn a_page_keeps_the_grammar() {
        let page = render(&sight(), Format::OpenMetrics);
        let lines: Vec<&str> = page.strip_suffix("# EOF\n").expect("an end").lines().collect();
        let (mut families, mut kind, mut family) = (Vec::new(), "", "");
        let mut last_bucket: Option<(String, f64, u64)> = None;
        for line in lines {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                family = rest.split(' ').next().expect("a name");
                assert!(!families.contains(&family), "{family} twice");
                families.push(family);
                kind = "";
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                kind = rest.strip_prefix(family).expect("of this family").trim();
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            } else if let Some(rest) = line.strip_prefix("# UNIT ") {
                let unit = rest.strip_prefix(family).expect("of this family").trim();
                assert!(family.ends_with(unit), "{line}");
            } else {
                // Of the runtime itself there are counters without labels.
                let (sample, labels, value) = if let Some((sample, rest)) = line.split_once('{') {
                    let (labels, value) = rest.rsplit_once("} ").expect("a value");
                    (sample, labels, value)
                } else {
                    let (sample, value) = line.split_once(' ').expect("a value");
                    (sample, "", value)
                };
                let suffix = sample.strip_prefix(family).expect("of this family");
                let allowed: &[&str] = match kind {
                    "counter" => &["_total"],
                    "gauge" => &[""],
                    _ => &["_bucket", "_sum", "_count"],
                };
                assert!(allowed.contains(&suffix), "{line}");
                let number: f64 = value.parse().expect("a number");
                assert!(number.is_finite() && number >= 0.0, "{line}");
                if suffix == "_bucket" {
                    let (whose, le) = labels.rsplit_once(",le=\"").expect("a bound");
                    let le: f64 = le.trim_end_matches('"').parse().expect("a bound");
                    let count: u64 = value.parse().expect("a whole number");
                    if let Some((who, bound, below)) =
                        last_bucket.replace((whose.into(), le, count))
                    {
                        assert!(who != whose || (bound < le && below <= count), "{line}");
                    }
                } else if suffix == "_count" {
                    let (_, bound, all) = last_bucket.take().expect("buckets before");
                    assert_eq!((bound, all.to_string().as_str()), (f64::INFINITY, value));
                }
            }
        }
        assert!(families.len() == FAMILIES.len() + UNITS.len() + 3 + 2);
    }
}
