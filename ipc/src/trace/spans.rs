//! Traces as spans of the `tracing` crate (feature `tracing`).
//!
//! Two ways meet here. A traced request's handler runs in a span `request`, and a call within a
//! context in a span `call`, each with the ids that the other process, tapes and exporters know:
//! whatever a handler logs, and whatever spans it makes, are within it. And [`Contexts`], a layer
//! of a program's subscriber, gives each of the program's own spans a [`Context`]: what is called
//! while such a span is entered belongs to it, on any thread, in tasks, too.

use std::cell::{Cell, RefCell};

use tracing::{Id, Subscriber, info_span, span::Attributes};
use tracing_subscriber::{Layer, layer, registry::LookupSpan};

use super::{Context, Scope, current};
use crate::board::Span;

/// The target of the spans that are made here, for filters.
pub const TARGET: &str = "ipc::trace";

/// Where a span stands in a trace. [`Contexts`] puts it among the span's extensions, where other
/// layers, such as exporters, find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The span's own ids.
    pub context: Context,
    /// The span that it is part of, in this process or another; 0 at the root.
    pub parent: u64,
}

thread_local! {
    /// Where the span stands that this thread is about to make for libipc.
    static NEXT: Cell<Option<Placed>> = const { Cell::new(None) };
    /// Spans that this thread is in; they need not be left in order.
    static ENTERED: RefCell<Vec<(Id, Scope)>> = const { RefCell::new(Vec::new()) };
}

/// Makes the span of a traced request's handler.
pub(super) fn request(it: &Span) -> tracing::Span {
    let (_next, Context { trace, span, .. }) = (Next::set(it), it.context);
    info_span!(
        target: TARGET,
        "request",
        trace_id = %format_args!("{trace:032x}"),
        span_id = %format_args!("{span:016x}"),
        parent_id = %format_args!("{:016x}", it.parent),
        service = it.dest_name.get(),
        peer_pid = it.peer_pid,
        message_id = it.message_id,
        bytes = it.bytes,
        one_way = it.is_one_way,
    )
}

/// Makes the span of a call within a context.
pub(super) fn call(it: &Span) -> tracing::Span {
    let (_next, Context { trace, span, .. }) = (Next::set(it), it.context);
    info_span!(
        target: TARGET,
        "call",
        trace_id = %format_args!("{trace:032x}"),
        span_id = %format_args!("{span:016x}"),
        parent_id = %format_args!("{:016x}", it.parent),
        service = it.dest_name.get(),
        peer_pid = it.peer_pid,
        bytes = it.bytes,
    )
}

/// Says where the next span stands, until it is made, whether anybody takes it or not.
struct Next;

impl Next {
    fn set(it: &Span) -> Next {
        NEXT.set(Some(Placed { context: it.context, parent: it.parent }));
        Next
    }
}

impl Drop for Next {
    fn drop(&mut self) {
        NEXT.set(None);
    }
}

/// Gives each span of a program a place in a trace, and has what is called within it carry that.
///
/// A span belongs to the one around it, or to the context that the thread is within (as a handler
/// of a traced request is); where there is neither it is in no trace, unless
/// [`beginning`](Contexts::beginning).
///
/// ```
/// use tracing_subscriber::prelude::*;
///
/// let subscriber = tracing_subscriber::registry().with(ipc::trace::Contexts::beginning());
/// tracing::subscriber::with_default(subscriber, || {
///     let order = tracing::info_span!("order").entered();
///     // What is called here carries it: an ipc::Client, too.
///     assert!(ipc::trace::current().is_some());
///     drop(order);
///     assert_eq!(ipc::trace::current(), None);
/// });
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Contexts {
    begins: bool,
}

impl Contexts {
    /// Goes on with traces that others have begun.
    pub fn new() -> Contexts {
        Contexts::default()
    }

    /// Begins a trace at each span that is within none, too.
    pub fn beginning() -> Contexts {
        Contexts { begins: true }
    }

    fn place(self, around: Option<Context>) -> Option<Placed> {
        match around {
            Some(around) => Some(Placed { context: around.child(), parent: around.span }),
            None => self.begins.then(|| Placed { context: Context::root(), parent: 0 }),
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Contexts {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: layer::Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let is_ours = attributes.metadata().target() == TARGET;
        let next = NEXT.try_with(Cell::take).ok().flatten().filter(|_| is_ours);
        let placed = next.or_else(|| {
            // Of a thread's own spans the innermost is what the thread is within.
            let around = if attributes.is_contextual() {
                current()
            } else {
                span.parent().and_then(|it| Some(it.extensions().get::<Placed>()?.context))
            };
            self.place(around)
        });
        if let Some(placed) = placed {
            span.extensions_mut().replace(placed);
        }
    }

    fn on_enter(&self, id: &Id, context: layer::Context<'_, S>) {
        let placed = context.span(id).and_then(|it| it.extensions().get::<Placed>().copied());
        if let Some(placed) = placed {
            let scope = Scope::enter(placed.context);
            let _ = ENTERED.try_with(|it| it.borrow_mut().push((id.clone(), scope)));
        }
    }

    fn on_exit(&self, id: &Id, _: layer::Context<'_, S>) {
        let _ = ENTERED.try_with(|it| {
            let mut entered = it.borrow_mut();
            if let Some(at) = entered.iter().rposition(|(of, _)| of == id) {
                let (_, scope) = entered.remove(at);
                // Left out of order: who is inside stays there, and leaves to who is outside.
                match entered.get_mut(at) {
                    Some((_, inner)) => inner.inherit(scope),
                    None => drop(scope),
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::prelude::*;

    use super::*;

    /// Where spans stood when they closed, by their names.
    type Places = Vec<(&'static str, Option<Placed>)>;

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Places>>);

    impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Seen {
        fn on_close(&self, id: Id, context: layer::Context<'_, S>) {
            let span = context.span(&id).expect("it closes");
            let placed = span.extensions().get::<Placed>().copied();
            self.0.lock().expect("nobody panicked").push((span.name(), placed));
        }
    }

    fn seen(contexts: Contexts, run: impl FnOnce()) -> Places {
        let seen = Seen::default();
        let subscriber = tracing_subscriber::registry().with(contexts).with(seen.clone());
        tracing::subscriber::with_default(subscriber, run);
        assert_eq!(current(), None);
        Arc::try_unwrap(seen.0).expect("the subscriber is gone").into_inner().expect("no panic")
    }

    #[test]
    fn a_program_s_spans_are_in_the_trace_that_their_thread_is_within() {
        let root = Context::root();
        let all = seen(Contexts::new(), || {
            drop(info_span!("outside").entered());
            super::super::within(root, || {
                let outer = info_span!("outer").entered();
                let within = current().expect("a context");
                assert_eq!(within.trace, root.trace);
                let inner = info_span!("inner").entered();
                // Not in order.
                drop(outer);
                assert_ne!(current(), Some(within));
                drop(inner);
                assert_eq!(current(), Some(root));
            });
        });
        // A span closes when those within it have.
        let [(_, outside), (_, inner), (_, outer)] = all[..] else { panic!("{all:?}") };
        let (outer, inner) = (outer.expect("placed"), inner.expect("placed"));
        assert_eq!((outside, outer.parent), (None, root.span));
        assert_eq!((inner.parent, inner.context.trace), (outer.context.span, root.trace));
    }

    #[test]
    fn a_span_goes_with_its_task_to_another_thread() {
        let all = seen(Contexts::beginning(), || {
            let span = info_span!("order");
            std::thread::scope(|scope| {
                let dispatch = tracing::dispatcher::get_default(Clone::clone);
                let span = span.clone();
                scope.spawn(move || {
                    tracing::dispatcher::with_default(&dispatch, || {
                        let _here = span.enter();
                        drop(info_span!("part").entered());
                    });
                });
            });
            assert_eq!(current(), None);
        });
        let [("part", Some(part)), ("order", Some(order))] = all[..] else { panic!("{all:?}") };
        assert_eq!((part.parent, order.parent), (order.context.span, 0));
    }

    #[test]
    fn what_libipc_does_for_a_request_has_the_ids_that_others_know() {
        let context = Context::root();
        let it = Span { context, parent: 7, ..Span::default() };
        let all = seen(Contexts::new(), || {
            let _request = request(&it).entered();
            assert_eq!(current(), Some(context));
        });
        assert_eq!(all, [("request", Some(Placed { context, parent: 7 }))]);
    }
}
