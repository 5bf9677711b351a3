//! As much HTTP/1.1 as a scraper speaks: one GET a connection, bounded in bytes, time and number.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
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

/// Where scrapers come in.
#[derive(Debug)]
pub enum Door {
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

/// Answers scrapers with what `page` gives, for as long as the process lives. `GET /metrics`, or
/// `/`, has the page; it is asked for in `OpenMetrics` by an `Accept` header that names it.
pub fn serve(door: &Door, page: impl Fn(Format) -> String + Send + Sync + 'static) {
    let page = Arc::new(page);
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok(mut stream) = door.accept() else {
            std::thread::sleep(REST);
            continue;
        };
        if open.fetch_add(1, Ordering::SeqCst) >= MOST_CONNECTIONS {
            open.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let place = Place(Arc::clone(&open));
        let page = Arc::clone(&page);
        // Without a thread the connection closes, and the place is given back.
        let _ = std::thread::Builder::new().name("ipc-metrics".into()).spawn(move || {
            let _place = place;
            let _ = answer(&mut *stream, &*page);
        });
    }
}

/// A place among the connections, given back on drop.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn answer(stream: &mut dyn Stream, page: &dyn Fn(Format) -> String) -> io::Result<()> {
    let head = read_head(stream)?;
    let (status, kind, body) = match understand(&head) {
        Ok(format) => ("200 OK", format.content_type(), page(format)),
        Err(status) => (status, "text/plain; charset=utf-8", format!("{status}\n")),
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

    #[test]
    fn scrapers_get_the_page_and_others_a_refusal() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("metrics");
        let door = Door::Unix(UnixListener::bind(&path).expect("a socket"));
        std::thread::spawn(move || serve(&door, |format| format!("page in {format:?}\n")));
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
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("metrics");
        let door = Door::Unix(UnixListener::bind(&path).expect("a socket"));
        std::thread::spawn(move || serve(&door, |_| "page".into()));
        let idle: Vec<_> =
            (0..20).map(|_| UnixStream::connect(&path).expect("a place in the queue")).collect();
        while !ask(&path, "GET / HTTP/1.1\r\n\r\n").ends_with("page") {}
        drop(idle);
    }
}
