//! Where metrics are served, as node files and command lines write it.

use std::{fmt, net::SocketAddr, str::FromStr};

use super::{Listener, quantity::quoted};

/// Explains why a text is no [`Listener`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {}", NoListener::HINT)]
pub struct NoListener {
    pub(super) what: String,
}

impl NoListener {
    pub(super) const HINT: &str = "write \"127.0.0.1:9464\", or \"unix:PATH\" for a socket";
}

impl FromStr for Listener {
    type Err = NoListener;

    /// Reads `unix:PATH`, or a port of 127.0.0.1. A path is as it was written.
    fn from_str(text: &str) -> Result<Listener, NoListener> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Listener::Unix(path.into()));
        }
        let what = match text.parse::<SocketAddr>() {
            Ok(address) if address.port() == 0 => "metrics need a port of their own".to_owned(),
            Ok(SocketAddr::V4(address)) if address.ip().octets() == [127, 0, 0, 1] => {
                return Ok(Listener::Loopback(address.port()));
            }
            Ok(_) => format!("metrics are not served at {text}, but on this machine only"),
            Err(_) => format!("metrics cannot be served at {}", quoted(text)),
        };
        Err(NoListener { what })
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listener::Unix(path) => write!(f, "unix:{}", path.display()),
            Listener::Loopback(port) => write!(f, "127.0.0.1:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_the_same() {
        for text in ["unix:/run/metrics", "unix:here", "127.0.0.1:9464"] {
            let listener: Listener = text.parse().expect("a listener");
            assert_eq!(listener.to_string(), text);
        }
        for text in ["", "unix:", "9464", "127.0.0.1:0", "0.0.0.0:80", "[::1]:80"] {
            let error = text.parse::<Listener>().expect_err("none").to_string();
            assert!(error.ends_with(NoListener::HINT), "{error}");
        }
    }
}
