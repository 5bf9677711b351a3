//! Where a system serves its metrics: what the command line says, else the node file.

use super::System;
use crate::{
    console::say,
    monitor::{ExportError, Exporter},
    node::Listener,
};

/// Whether and where metrics are served.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// What the command line says.
    ordered: Option<Listener>,
    exporter: Option<Exporter>,
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
