//! The node file: which services make up a system, and on what terms.

mod spec;

pub use spec::{
    Backoff, Grants, Group, Intensity, Limits, Listener, Log, LogFormat, Node, Object, Quota,
    Readiness, Ready, Restart, Rule, Sandbox, Service, Strategy, Subject, Watchdog,
};
