//! Spans of what the runtime does: connections, introductions, launches, reloads. What is asked
//! for within a trace is part of it. In a program that shows none (every embedded runtime) they
//! cost nothing.

#[cfg(feature = "node")]
pub(crate) use shown::{Open, heard};
#[cfg(not(feature = "node"))]
pub(crate) use unseen::{Open, heard};

#[cfg(feature = "node")]
mod shown {
    use std::path::Path;

    use ipc::control::{Introduction, Request};
    use tracing::{Level, Span, debug, enabled, field::Empty, info_span};

    use crate::broker::{Peer, Token};

    /// A span that goes on; it ends when this is dropped.
    #[derive(Debug)]
    pub(crate) struct Open(Span);

    impl Open {
        /// A process's connection.
        pub(crate) fn connection(connection: Token, peer: &Peer) -> Open {
            let service = peer.unit.as_ref().map(|unit| unit.service.as_ref());
            let (pid, uid) = (peer.pid, peer.uid);
            Open(info_span!(parent: None, "connection", connection, pid, uid, service))
        }

        /// A client's wish for a channel, until it has one or is refused. Where it is asked for
        /// within a trace, this thread is within that now.
        pub(crate) fn introduction(ticket: u64) -> Open {
            let (channel, dest, client_pid) = (Empty, Empty, Empty);
            Open(info_span!("introduction", ticket, channel, dest, client_pid))
        }

        /// It is offered to a service.
        pub(crate) fn offered(&self, it: &Introduction) {
            self.0.record("channel", it.channel);
            self.0.record("dest", it.dest.get());
            self.0.record("client_pid", it.peer_pid);
        }

        /// The start of a service's process.
        pub(crate) fn launch(service: &str, replica: u32) -> Open {
            Open(info_span!("launch", service, replica, pid = Empty))
        }

        /// What an operator wants of the supervisor, until it is done. Where it is asked for
        /// within a trace, this thread is within that now.
        pub(crate) fn command(what: &'static str, name: &str, by: &str) -> Open {
            Open(info_span!("command", what, name, by))
        }

        /// Does something as a part of it.
        pub(crate) fn within<R>(&self, run: impl FnOnce() -> R) -> R {
            self.0.in_scope(run)
        }

        /// It runs.
        pub(crate) fn launched(&self, pid: u32) {
            self.0.record("pid", pid);
        }

        /// The taking of a new node file.
        pub(crate) fn reload(file: &Path, by: &str) -> Open {
            Open(info_span!("reload", file = %file.display(), by))
        }
    }

    /// Tells of a request which it is, and nothing of its fields: tickets and tokens are secrets.
    pub(crate) fn heard(connection: Token, sequence: u32, request: &Request) {
        if enabled!(Level::DEBUG) {
            let verb = verb(request);
            debug!(connection, sequence, verb, "asked");
        }
    }

    fn verb(request: &Request) -> String {
        let whole = format!("{request:?}");
        whole.split(|it: char| !it.is_alphanumeric()).next().unwrap_or_default().to_owned()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn of_a_request_its_verb_is_told_and_nothing_else() {
            assert_eq!(verb(&Request::Ping), "Ping");
            assert_eq!(verb(&Request::Discover { name: "secret".to_owned() }), "Discover");
        }
    }
}

#[cfg(not(feature = "node"))]
mod unseen {
    use ipc::control::{Introduction, Request};

    use crate::broker::{Peer, Token};

    #[derive(Debug)]
    pub(crate) struct Open;

    impl Open {
        pub(crate) fn connection(_: Token, _: &Peer) -> Open {
            Open
        }

        pub(crate) fn introduction(_: u64) -> Open {
            Open
        }

        #[allow(clippy::unused_self, reason = "as where it is shown")]
        pub(crate) fn offered(&self, _: &Introduction) {}
    }

    pub(crate) fn heard(_: Token, _: u32, _: &Request) {}
}
