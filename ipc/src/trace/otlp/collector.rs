//! Where a collector is, as command lines and node files write it.

use std::{fmt, str::FromStr};

/// Where a collector listens for OTLP over HTTP.
///
/// ```
/// let collector: ipc::trace::Collector = "http://127.0.0.1:4318".parse()?;
/// assert_eq!(collector.to_string(), "http://127.0.0.1:4318/v1/traces");
/// # Ok::<(), ipc::trace::NoCollector>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) path: String,
}

/// A text is no [`Collector`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCollector {
    /// It begins otherwise.
    #[error("{}", NoCollector::HINT)]
    Form,
    /// It begins with `https:`.
    #[error("libipc does not encrypt what it sends to collectors: run one on this machine")]
    Encrypted,
}

impl NoCollector {
    /// How it is written.
    pub const HINT: &str = "write \"http://HOST:PORT\", such as \"http://127.0.0.1:4318\"";
}

/// The port that OTLP has over HTTP.
const PORT: u16 = 4318;
const PATH: &str = "/v1/traces";

impl FromStr for Collector {
    type Err = NoCollector;

    /// Reads `http://HOST[:PORT][/PATH]`: port 4318 and `/v1/traces` by default. A host of IPv6
    /// stands in brackets.
    fn from_str(text: &str) -> Result<Collector, NoCollector> {
        if text.starts_with("https:") {
            return Err(NoCollector::Encrypted);
        }
        let rest = text.strip_prefix("http://").ok_or(NoCollector::Form)?;
        let (place, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match place.rsplit_once(':') {
            // A colon within brackets.
            Some((_, after)) if after.ends_with(']') => (place, PORT),
            Some((host, port)) => (host, port.parse().map_err(|_| NoCollector::Form)?),
            None => (place, PORT),
        };
        let is_plain = |it: &str| it.bytes().all(|byte| byte.is_ascii_graphic());
        let is_host = !host.is_empty() && !host.contains(['@', '?', '#']);
        if !is_host || port == 0 || !is_plain(text) || path.contains('#') {
            return Err(NoCollector::Form);
        }
        let path = if path.len() > 1 { path } else { PATH };
        Ok(Collector { host: host.to_owned(), port, path: path.to_owned() })
    }
}

impl Collector {
    /// Host and port, as a request names them.
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.place(), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_with_what_was_left_out() {
        let said = |text: &str| text.parse::<Collector>().map(|it| it.to_string());
        let whole = |text: &str| Ok(text.to_owned());
        assert_eq!(said("http://here"), whole("http://here:4318/v1/traces"));
        assert_eq!(said("http://here:1/"), whole("http://here:1/v1/traces"));
        assert_eq!(said("http://[::1]:9/x/y"), whole("http://[::1]:9/x/y"));
        assert_eq!(said("http://[::1]"), whole("http://[::1]:4318/v1/traces"));
        assert_eq!(said("https://here"), Err(NoCollector::Encrypted));
        for bad in [
            "",
            "here",
            "http://",
            "http://:1",
            "http://a:0",
            "http://a:x",
            "http://a b",
            "http://u@a",
            "http://a\r\nX: y",
            "http://a/x#y",
        ] {
            assert_eq!(said(bad), Err(NoCollector::Form), "{bad:?}");
        }
    }
}
