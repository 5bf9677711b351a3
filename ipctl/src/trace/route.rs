//! Spans put together: what was done for what.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

use ipc::SpanKind;

use super::Done;
use crate::{
    table::{Align, Table},
    units,
};

/// Deeper than any system of services; what lies of its parents ends there.
const DEEPEST: usize = 64;

/// One trace.
pub(super) struct Route<'a> {
    pub(super) trace: u128,
    pub(super) root: &'a Done,
    children: HashMap<u64, Vec<&'a Done>>,
}

/// Gives the traces of which the root is known.
pub(super) fn routes(done: &[Done]) -> Vec<Route<'_>> {
    let mut traces: BTreeMap<u128, Vec<&Done>> = BTreeMap::new();
    for one in done {
        traces.entry(one.span.context.trace).or_default().push(one);
    }
    let routes = traces.into_iter().filter_map(|(trace, spans)| {
        let root = spans.iter().find(|it| it.span.parent == 0).copied()?;
        let mut children: HashMap<u64, Vec<&Done>> = HashMap::new();
        for one in spans {
            children.entry(one.span.parent).or_default().push(one);
        }
        Some(Route { trace, root, children })
    });
    routes.collect()
}

impl<'a> Route<'a> {
    /// Each span behind what it was done for, with its depth.
    pub(super) fn walk(&self) -> Vec<(usize, &'a Done)> {
        let (mut walked, mut next) = (Vec::new(), vec![(0, self.root)]);
        while let Some((depth, one)) = next.pop() {
            walked.push((depth, one));
            let children = self.children.get(&one.span.context.span).into_iter().flatten();
            if depth < DEEPEST {
                // The first is popped first.
                next.extend(children.rev().map(|child| (depth + 1, *child)));
            }
        }
        walked
    }
}

impl fmt::Display for Route<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            ("WHAT", Align::Left),
            ("AT", Align::Right),
            ("TIME", Align::Right),
            ("QUEUED", Align::Right),
            ("BYTES", Align::Right),
            ("PID", Align::Right),
        ]);
        let time = |ns: u64| units::show(Duration::from_nanos(ns));
        for (depth, one) in self.walk() {
            let indent = "  ".repeat(depth);
            let span = &one.span;
            let (what, queued) = match span.kind {
                SpanKind::Handler => (format!("{} handles", one.process), time(span.queued_ns)),
                SpanKind::Call => {
                    let failed = if span.status == 0 { "" } else { ", which fails" };
                    (format!("{} calls {}{failed}", one.process, one.service), "-".to_owned())
                }
            };
            table.row([
                format!("{indent}{what}"),
                time(span.start_ns.saturating_sub(self.root.span.start_ns)),
                time(span.duration_ns),
                queued,
                span.bytes.to_string(),
                one.pid.to_string(),
            ]);
        }
        table.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::tests::done;

    #[test]
    fn a_span_that_is_its_own_parent_is_walked_to_an_end() {
        let mut done = done();
        // Below itself, as a process may claim.
        done[2].span.parent = done[2].span.context.span;
        done[1].span.parent = done[1].span.context.span;
        done.push({
            let mut liar = done[2].clone();
            liar.span.context.span = 1;
            liar.span.parent = 1;
            liar
        });
        let routes = routes(&done);
        assert!(routes[0].walk().len() <= DEEPEST + 2);
    }

    #[test]
    fn a_trace_without_its_root_is_none() {
        assert!(routes(&done()[1..]).is_empty());
    }
}
