//! One request of HTTP/1.1, and what came of it.

use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

use super::Collector;

/// Most bytes of an answer that are read.
const LONGEST: usize = 1 << 16;

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Posted {
    /// Taken, with this answer.
    Taken(Vec<u8>),
    /// To be sent again: the collector is not there, or has too much to do.
    Later,
    /// Refused, and would be again.
    Refused(u16),
}

/// Sends a body to a collector, and waits for its answer, for so long at most.
pub(super) fn post(collector: &Collector, body: &[u8], patience: Duration) -> Posted {
    match exchange(collector, body, Instant::now() + patience) {
        Ok((status, answer)) => match status {
            200..=299 => Posted::Taken(answer),
            // As OTLP lists them.
            429 | 502..=504 => Posted::Later,
            _ => Posted::Refused(status),
        },
        Err(_) => Posted::Later,
    }
}

fn exchange(collector: &Collector, body: &[u8], until: Instant) -> io::Result<(u16, Vec<u8>)> {
    let left = || match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut)),
        left => Ok(left),
    };
    let host = collector.host.trim_start_matches('[').trim_end_matches(']');
    let mut stream = Err(io::Error::from(io::ErrorKind::NotFound));
    for address in (host, collector.port).to_socket_addrs()? {
        stream = TcpStream::connect_timeout(&address, left()?);
        if stream.is_ok() {
            break;
        }
    }
    let mut stream = stream?;
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-protobuf\r\nContent-Length: \
         {}\r\nUser-Agent: libipc/{}\r\nConnection: close\r\n\r\n",
        collector.path,
        collector.place(),
        body.len(),
        env!("CARGO_PKG_VERSION"),
    );
    for mut bytes in [head.as_bytes(), body] {
        while !bytes.is_empty() {
            stream.set_write_timeout(Some(left()?))?;
            let written = stream.write(bytes)?;
            bytes = &bytes[written..];
        }
    }
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    let (mut status, mut end) = (None, LONGEST);
    while answer.len() < end {
        stream.set_read_timeout(Some(left()?))?;
        let length = stream.read(&mut chunk)?;
        if length == 0 {
            break;
        }
        answer.extend_from_slice(&chunk[..length]);
        // A collector may leave the connection open in spite of what it was asked.
        if status.is_none()
            && let Some((found, whole)) = understood(&answer)
        {
            (status, end) = (Some(found), whole.unwrap_or(LONGEST).min(LONGEST));
        }
    }
    let status = status.ok_or(io::ErrorKind::InvalidData)?;
    let head = head_of(&answer).unwrap_or(answer.len());
    Ok((status, answer.split_off(head)))
}

/// Where the head of an answer ends, if it is all there.
fn head_of(answer: &[u8]) -> Option<usize> {
    answer.windows(4).position(|it| it == b"\r\n\r\n").map(|at| at + 4)
}

/// Reads the status, and how long all of the answer is, once its head is there.
fn understood(answer: &[u8]) -> Option<(u16, Option<usize>)> {
    let head = head_of(answer)?;
    let text = std::str::from_utf8(&answer[..head]).ok()?;
    let mut lines = text.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let status = first.next().filter(|it| it.starts_with("HTTP/1.")).and(first.next())?;
    let length = lines.filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
        let value = value.trim().parse::<usize>().ok()?;
        name.eq_ignore_ascii_case("content-length").then_some(value)
    });
    Some((status.parse().ok()?, length.map(|it| head.saturating_add(it))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_understood_once_its_head_is_whole() {
        let whole = b"HTTP/1.1 200 OK\r\nX: y\r\ncontent-LENGTH: 3\r\n\r\nabc";
        assert_eq!(understood(whole), Some((200, Some(whole.len()))));
        assert_eq!(understood(&whole[..30]), None);
        assert_eq!(understood(b"HTTP/1.0 503 no\r\n\r\n"), Some((503, None)));
        for bad in [&b"HTTP/2 200\r\n\r\n"[..], b"x\r\n\r\n", b"HTTP/1.1 abc d\r\n\r\n"] {
            assert_eq!(understood(bad), None);
        }
    }
}
