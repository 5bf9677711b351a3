//! Where a system serves its metrics, and where it sends spans: what the command line says, else
//! the node file.

use ipc::trace::Collector;

use super::System;
use crate::{
    console::say,
    journal,
    monitor::{ExportError, Exporter},
    node::Listener,
};

/// Whether and where metrics are served.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// What the command line says.
    ordered: Option<Listener>,
    exporter: Option<Exporter>,
    /// What the command line says of a collector, and who has been told.
    collector_ordered: Option<Collector>,
    collector: Option<Collector>,
}

impl System {
    /// Serves metrics there; without it, where the node file says, if it does.
    ///
    /// # Errors
    /// [`ExportError`]; none are served.
    pub fn serve_metrics(&mut self, ordered: Option<Listener>) -> Result<(), ExportError> {
        self.metrics.ordered = ordered;
        let listener = self.metrics.ordered.as_ref().or(self.node.metrics.as_ref());
        let start = |listener| Exporter::start(listener, &self.runtime_dir);
        self.metrics.exporter = listener.map(start).transpose()?;
        Ok(())
    }

    /// Sends spans to that collector; without it, to that of the node file, if it has one, now and
    /// after each reload.
    pub fn send_spans(&mut self, ordered: Option<Collector>) {
        self.metrics.collector_ordered = ordered;
        self.move_spans();
    }

    /// Sends spans to where a new node file says.
    pub(super) fn move_spans(&mut self) {
        let Metrics { collector_ordered, collector, .. } = &mut self.metrics;
        let wanted = collector_ordered.as_ref().or(self.node.monitor.otlp.as_ref());
        if wanted == collector.as_ref() {
            return;
        }
        if let Err(error) = journal::export(wanted) {
            say(&format!("spans go to no collector: {error}"));
        }
        *collector = wanted.cloned();
    }

    /// Serves metrics where a new node file says. Without them all else goes on.
    pub(super) fn move_metrics(&mut self) {
        let now = self.metrics.exporter.as_ref().map(Exporter::listener);
        if self.metrics.ordered.is_some() || now == self.node.metrics.as_ref() {
            return;
        }
        // First, as what takes its place may be in its place.
        self.metrics.exporter = None;
        if let Err(error) = self.serve_metrics(None) {
            say(&error.to_string());
        }
    }
}
