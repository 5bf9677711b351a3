//! Writes the log on a thread of its own: a write that is made durable takes milliseconds, in which
//! nobody is to wait for an introduction.

use std::{
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvError, RecvTimeoutError},
    },
    thread::{Builder, JoinHandle},
    time::Duration,
};

use nix::sys::signal::SigSet;

use super::{Keep, Kind, Log, OpenError, Record};
use crate::{
    error::KernelError,
    notes::{self, Dated, Note, Notes, unix_us},
};

/// Bytes of stack: a record is built on it, nothing is recursive.
const STACK: usize = 128 * 1024;
/// Records that are made durable together at most: those behind them wait for the next flush.
const TOGETHER: usize = notes::QUEUE;
/// How long until what could not be written is tried again, though nothing new has come.
const AGAIN: Duration = Duration::from_secs(1);

/// The thread that writes. It ends when nobody can note anything any more, after the last note.
#[derive(Debug)]
pub(crate) struct Writer {
    thread: Option<JoinHandle<()>>,
    pid: u32,
}

impl Writer {
    /// Opens the log of a directory whose lock the caller holds.
    pub(crate) fn start(directory: &Path) -> Result<(Writer, Notes), KernelError> {
        let log = Log::open(directory, Keep::default(), unix_us())?;
        let (notes, queue, lost) = notes::queue();
        let thread = Builder::new()
            .name("ipc-audit".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                // The host program's signals are for its own threads.
                let _ = SigSet::all().thread_block();
                Pen { log, queue, lost, troubled: false }.run();
            })
            .map_err(|error| KernelError::system("cannot start the audit log's thread", error))?;
        Ok((Writer { thread: Some(thread), pid: std::process::id() }, notes))
    }
}

impl Drop for Writer {
    /// Waits until all is written. A forked child has no such thread.
    fn drop(&mut self) {
        if std::process::id() == self.pid
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

struct Pen {
    log: Log,
    queue: Receiver<Dated>,
    lost: Arc<AtomicU64>,
    /// Whether the last flush failed.
    troubled: bool,
}

impl Pen {
    fn run(&mut self) {
        self.flush();
        while let Ok(first) = self.next() {
            for (time_us, note) in first.into_iter().chain(self.queue.try_iter().take(TOGETHER)) {
                self.log.record(&record(&note), time_us);
            }
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                let because = format!("{lost} records: they came faster than they are written");
                let record =
                    Record { because: because.into(), ..Record::new(Kind::Lost, "audit log") };
                self.log.record(&record, unix_us());
            }
            self.flush();
        }
    }

    /// Waits for a note, or until what failed is to be tried again. An error when nobody can note
    /// anything any more.
    fn next(&self) -> Result<Option<Dated>, RecvError> {
        if !self.troubled {
            return self.queue.recv().map(Some);
        }
        match self.queue.recv_timeout(AGAIN) {
            Ok(note) => Ok(Some(note)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(RecvError),
        }
    }

    fn flush(&mut self) {
        let flushed = self.log.flush(unix_us());
        if let Err(error) = &flushed
            && !self.troubled
        {
            // Once, until it succeeds: the disk may be full of such lines.
            let _ = std::io::stderr().write_all(format!("ipcd: {error}\n").as_bytes());
        }
        self.troubled = flushed.is_err();
    }
}

fn record(note: &Note) -> Record<'_> {
    Record {
        kind: note.kind,
        subject: note.subject.as_str().into(),
        object: note.object.as_str().into(),
        operation: (&*note.operation).into(),
        verdict: note.verdict,
        because: note.because.as_str().into(),
    }
}

impl From<OpenError> for KernelError {
    fn from(source: OpenError) -> KernelError {
        KernelError::Audit { why: source.to_string() }
    }
}
