//! Metrics, served where a node file or the command line says, as long as this lives.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::{Builder, JoinHandle},
};

use ipc::{Config, Node};
use nix::{
    errno::Errno,
    sys::{
        socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
        stat::{Mode, fchmod},
    },
};

use super::{
    Format, Monitor,
    http::{Door, Page, serve},
    render,
};
use crate::{journal, node::Listener};

/// Explains why metrics cannot be served there.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics at {listener}: {source}")]
pub struct ExportError {
    listener: Listener,
    source: io::Error,
}

/// Serves metrics, on a thread of its own, until it is dropped.
#[derive(Debug)]
pub struct Exporter {
    listener: Listener,
    /// The thread ends when this is closed.
    leash: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    /// Begins to serve the metrics of the runtime of that directory. It connects to it when it is
    /// first asked, as a client like any other.
    ///
    /// # Errors
    /// [`ExportError`]: somebody listens there; or what is there is no socket, or not ours.
    pub fn start(listener: &Listener, runtime_dir: &Path) -> Result<Exporter, ExportError> {
        let failed = |source| ExportError { listener: listener.clone(), source };
        let door = open(listener).map_err(failed)?;
        let (leash, collar) = UnixStream::pair().map_err(failed)?;
        let config = Config { runtime_dir: Some(runtime_dir.to_owned()), ..ipc::Config::default() };
        let monitor = Mutex::new(None);
        let page: Arc<Page> = Arc::new(move |format| look(&monitor, &config, format));
        let run = move || serve(&door, collar.as_fd(), &page);
        let thread = Builder::new().name("ipc-metrics".to_owned()).spawn(run).map_err(failed)?;
        Ok(Exporter { listener: listener.clone(), leash: Some(leash), thread: Some(thread) })
    }

    /// Gives where it listens.
    pub fn listener(&self) -> &Listener {
        &self.listener
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        drop(self.leash.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Listener::Unix(path) = &self.listener {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Looks, and writes the page. A runtime that is lost is connected to again at the next look.
fn look(
    monitor: &Mutex<Option<Monitor>>,
    config: &Config,
    format: Format,
) -> Result<String, String> {
    let mut slot = monitor.lock().unwrap_or_else(PoisonError::into_inner);
    let mut monitor = match slot.take() {
        Some(monitor) => monitor,
        None => Monitor::new(Node::connect(config).map_err(|error| error.to_string())?),
    };
    let mut sight = monitor.look().map_err(|error| error.to_string())?;
    sight.exported = journal::exported();
    *slot = Some(monitor);
    Ok(render(&sight, format))
}

fn open(listener: &Listener) -> io::Result<Door> {
    let door = match listener {
        Listener::Unix(path) => Door::Unix(open_socket(path)?),
        Listener::Loopback(port) => Door::Tcp(TcpListener::bind((Ipv4Addr::LOCALHOST, *port))?),
    };
    match &door {
        Door::Unix(listener) => listener.set_nonblocking(true)?,
        Door::Tcp(listener) => listener.set_nonblocking(true)?,
    }
    Ok(door)
}

/// Listens on a socket of mode 0600, in place of one that a killed ipcd left.
fn open_socket(path: &PathBuf) -> io::Result<UnixListener> {
    let stream = || socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
    let address = UnixAddr::new(path)?;
    let fresh = stream()?;
    // Linux gives the file the mode of the socket, so at no time is it open to others.
    fchmod(&fresh, Mode::S_IRUSR | Mode::S_IWUSR)?;
    match bind(fresh.as_raw_fd(), &address) {
        Err(Errno::EADDRINUSE) => {
            // Only a socket that nobody listens on refuses so.
            match UnixStream::connect(path) {
                Err(error)
                    if error.kind() == io::ErrorKind::ConnectionRefused && is_socket(path) =>
                {
                    std::fs::remove_file(path)?;
                    bind(fresh.as_raw_fd(), &address)?;
                }
                _ => return Err(Errno::EADDRINUSE.into()),
            }
        }
        bound => bound?,
    }
    listen(&fresh, Backlog::MAXCONN)?;
    Ok(fresh.into())
}

/// A file that is none refuses connections, too.
fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::fs::PermissionsExt,
    };

    use super::*;
    use crate::Kernel;

    fn get(path: &Path) -> String {
        let mut stream = UnixStream::connect(path).expect("it listens");
        let request = b"GET / HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n";
        stream.write_all(request).expect("a listener");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("a page");
        answer
    }

    #[test]
    fn metrics_come_from_the_runtime_of_the_directory_even_when_it_comes_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("metrics");
        let listener = Listener::Unix(path.clone());
        let exporter = Exporter::start(&listener, directory.path()).expect("a place");
        assert_eq!(path.metadata().expect("a file").permissions().mode() & 0o777, 0o600);
        assert!(get(&path).starts_with("HTTP/1.1 503 "), "nobody is there");
        for _ in 0..2 {
            let kernel = Kernel::embedded(directory.path()).expect("a runtime");
            let mut page = get(&path);
            while page.starts_with("HTTP/1.1 503 ") {
                // What was connected to the one before notices that it is gone.
                page = get(&path);
            }
            assert!(page.contains("# TYPE libipc_messages_sent counter"), "{page}");
            assert!(page.ends_with("# EOF\n"), "{page}");
            kernel.stop();
        }
        drop(exporter);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_was_left_is_replaced_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("metrics");
        drop(UnixListener::bind(&path).expect("a socket"));
        let first = open_socket(&path).expect("nobody listens any more");
        let error = open_socket(&path).expect_err("somebody does");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        std::fs::remove_file(&path).expect("it is there");
        std::fs::write(&path, "precious").expect("a directory");
        assert!(open_socket(&path).is_err());
        assert_eq!(std::fs::read(&path).expect("it is there"), b"precious");
    }
}
