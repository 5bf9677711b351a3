//! As much HTTP/1.1 as a scraper speaks: one GET a connection, bounded in bytes, time and number.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::Format;

/// How long a scraper may take to say what it wants, and again to take it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a request, with its headers.
const MOST_BYTES: usize = 8192;
/// Connections served at a time; others are closed at once.
const MOST_CONNECTIONS: usize = 8;
/// The last header, and the empty line.
const LAST: &str = "Connection: close\r\n\r\n";
/// How long to rest when no connection can be accepted, for want of descriptors.
const REST: Duration = Duration::from_millis(100);

/// Where scrapers come in; does not block.
#[derive(Debug)]
pub(super) enum Door {
    /// A socket in the file system, whose mode says who may.
    Unix(UnixListener),
    /// A port, of the loopback address: everybody on this machine may.
    Tcp(TcpListener),
}

/// A connection of either kind.
trait Stream: Read + Write + Send {
    fn limit(&self, left: Duration) -> io::Result<()>;
}

impl Stream for UnixStream {
    fn limit(&self, left: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(left))?;
        self.set_write_timeout(Some(left))
    }
}

impl Stream for TcpStream {
    fn limit(&self, left: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(left))?;
        self.set_write_timeout(Some(left))
    }
}

impl Door {
    fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Door::Unix(listener) => Box::new(listener.accept()?.0),
            Door::Tcp(listener) => Box::new(listener.accept()?.0),
        })
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Door::Unix(listener) => listener.as_fd(),
            Door::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// A page, or why there is none.
pub(super) type Page = dyn Fn(Format) -> Result<String, String> + Send + Sync;

/// Answers scrapers with what `page` gives, until the other end of `leash` is closed.
/// `GET /metrics`, or `/`, has the page; it is asked for in `OpenMetrics` by an `Accept` header
/// that names it.
pub(super) fn serve(door: &Door, leash: BorrowedFd<'_>, page: &Arc<Page>) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let mut fds =
            [PollFd::new(leash, PollFlags::POLLIN), PollFd::new(door.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) if fds[0].any().unwrap_or(true) => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        match door.accept() {
            Ok(stream) => admit(stream, &open, page),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Readable still: no descriptor is left for it.
            Err(_) => std::thread::sleep(REST),
        }
    }
}

/// Has a thread answer; closes the connection where there are too many.
fn admit(mut stream: Box<dyn Stream>, open: &Arc<AtomicUsize>, page: &Arc<Page>) {
    let place = Place(Arc::clone(open));
    if open.fetch_add(1, Ordering::SeqCst) >= MOST_CONNECTIONS {
        return;
    }
    let page = Arc::clone(page);
    // Without a thread the connection closes, and the place is given back.
    let _ = std::thread::Builder::new().name("ipc-metrics".into()).spawn(move || {
        let _place = place;
        let _ = answer(&mut *stream, &*page);
    });
}

/// A place among the connections, given back on drop.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn answer(stream: &mut dyn Stream, page: &Page) -> io::Result<()> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    let head = read_head(stream)?;
    let (status, kind, body) = match understand(&head).map(|format| (format, page(format))) {
        Ok((format, Ok(page))) => ("200 OK", format.content_type(), page),
        Ok((_, Err(why))) => ("503 Service Unavailable", PLAIN, format!("{why}\n")),
        Err(status) => (status, PLAIN, format!("{status}\n")),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{LAST}",
        body.len()
    );
    let until = Instant::now() + PATIENCE;
    write_until(stream, head.as_bytes(), until)?;
    write_until(stream, body.as_bytes(), until)
}

/// Reads up to the empty line. A request that is longer, or slower, is no scraper's.
fn read_head(stream: &mut dyn Stream) -> io::Result<Vec<u8>> {
    let until = Instant::now() + PATIENCE;
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() >= MOST_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        stream.limit(left(until)?)?;
        match stream.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => head.extend_from_slice(&part[..count]),
        }
    }
    Ok(head)
}

fn write_until(stream: &mut dyn Stream, mut bytes: &[u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.limit(left(until)?)?;
        match stream.write(bytes)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => bytes = &bytes[count..],
        }
    }
    Ok(())
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// What is asked for; else the status that refuses it.
fn understand(head: &[u8]) -> Result<Format, &'static str> {
    let head = std::str::from_utf8(head).map_err(|_| "400 Bad Request")?;
    let mut lines = head.split("\r\n");
    let words: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, version] = words[..] else { return Err("400 Bad Request") };
    if !version.starts_with("HTTP/1.") {
        return Err("505 HTTP Version Not Supported");
    }
    if method != "GET" {
        return Err("405 Method Not Allowed");
    }
    if !matches!(target.split('?').next(), Some("/" | "/metrics")) {
        return Err("404 Not Found");
    }
    let accept = lines.filter_map(|line| line.split_once(':'));
    let mut accept = accept.filter(|(name, _)| name.eq_ignore_ascii_case("accept"));
    let is_open = accept.any(|(_, value)| value.contains("application/openmetrics-text"));
    Ok(if is_open { Format::OpenMetrics } else { Format::Text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(path: &std::path::Path, request: &str) -> String {
        let mut stream = UnixStream::connect(path).expect("it listens");
        // A connection that is refused, for now or in the middle of a request, may be reset.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    fn served(
        page: impl Fn(Format) -> Result<String, String> + Send + Sync + 'static,
    ) -> (tempfile::TempDir, UnixStream) {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("metrics")).expect("a socket");
        listener.set_nonblocking(true).expect("an open socket");
        let (leash, collar) = UnixStream::pair().expect("a pair");
        let page: Arc<Page> = Arc::new(page);
        std::thread::spawn(move || serve(&Door::Unix(listener), collar.as_fd(), &page));
        (directory, leash)
    }

    #[test]
    fn who_has_no_page_says_why() {
        let (directory, _leash) = served(|_| Err("no runtime".into()));
        let answer = ask(&directory.path().join("metrics"), "GET / HTTP/1.1\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nno runtime\n"), "{answer}");
    }

    #[test]
    fn scrapers_get_the_page_and_others_a_refusal() {
        let (directory, _leash) = served(|format| Ok(format!("page in {format:?}\n")));
        let path = directory.path().join("metrics");
        let page = ask(&path, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
        assert!(
            page.contains("Content-Length: 13\r\n") && page.ends_with("\r\n\r\npage in Text\n")
        );
        let accept = "ACCEPT: application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
        let page = ask(&path, &format!("GET / HTTP/1.0\r\n{accept}\r\n\r\n"));
        assert!(page.ends_with("page in OpenMetrics\n"), "{page}");
        for (request, status) in [
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET /else HTTP/1.1\r\n\r\n", "404"),
            ("GET /metrics HTTP/2\r\n\r\n", "505"),
            ("nonsense\r\n\r\n", "400"),
        ] {
            assert!(ask(&path, request).starts_with(&format!("HTTP/1.1 {status} ")), "{request}");
        }
        assert_eq!(ask(&path, &"x".repeat(MOST_BYTES + 2000)), "", "no end of a request");
    }

    #[test]
    fn those_who_say_nothing_do_not_hold_up_the_others_for_ever() {
        let (directory, _leash) = served(|_| Ok("page".into()));
        let path = directory.path().join("metrics");
        let idle: Vec<_> =
            (0..20).map(|_| UnixStream::connect(&path).expect("a place in the queue")).collect();
        while !ask(&path, "GET / HTTP/1.1\r\n\r\n").ends_with("page") {}
        drop(idle);
    }
}
