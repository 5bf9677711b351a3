//! Where a service is: by its name in the runtime, or by the path of a socket of its own.

use std::{fmt, path::PathBuf, str::FromStr};

#[cfg(not(loom))]
use crate::control::check_name;

/// Names are checked by the control protocol, which models do without.
#[cfg(loom)]
fn check_name(_: &str) -> Result<(), &'static str> {
    Ok(())
}

/// Longest path of a Unix socket, in bytes.
pub const MAX_PATH: usize = 107;

/// An address, which may stand wherever a service is named to connect to it.
///
/// ```
/// use ipc::{Address, AddressError};
///
/// assert_eq!("echo".parse(), Ok(Address::Name("echo".into())));
/// assert_eq!("shm://echo".parse(), Ok(Address::Name("echo".into())));
/// assert_eq!("unix:///run/echo.sock".parse(), Ok(Address::Unix("/run/echo.sock".into())));
/// let tcp = "tcp://host:7000".parse::<Address>();
/// assert!(matches!(tcp, Err(AddressError::Unsupported { .. })));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A name that the runtime knows, over shared memory: `shm://name`, or the name alone.
    Name(String),
    /// A socket on which a service of this machine listens: `unix:///path`.
    Unix(PathBuf),
}

/// Why text is no address that can be connected to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// A name that is none.
    #[error("invalid service name: {0}")]
    Name(&'static str),
    /// A path that no socket has.
    #[error("invalid socket path: {0}")]
    Path(&'static str),
    /// A host and port that are none.
    #[error("invalid tcp address: {0}")]
    Host(&'static str),
    /// There is no such scheme.
    #[error("there are shm://, unix:// and tcp:// addresses, and none of {0}://")]
    Scheme(String),
    /// A proper address, of another machine.
    #[error("tcp://{host}:{port}: calls to other machines are not supported")]
    Unsupported {
        /// The host, as it was written.
        host: String,
        /// The port.
        port: u16,
    },
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        match text.split_once("://") {
            Some(("shm", rest)) => name(rest),
            Some(("unix", rest)) => path(rest),
            Some(("tcp", rest)) => Err(host(rest).unwrap_or_else(|error| error)),
            Some((scheme, _)) if is_scheme(scheme) => Err(AddressError::Scheme(scheme.to_owned())),
            // Names may have slashes and colons in them.
            None | Some(_) => name(text),
        }
    }
}

fn name(text: &str) -> Result<Address, AddressError> {
    check_name(text).map_err(AddressError::Name)?;
    Ok(Address::Name(text.to_owned()))
}

/// As RFC 3986 has it: a letter, then letters, digits, `+`, `-` and `.`.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|it| it.is_ascii_alphanumeric() || "+-.".contains(it))
}

fn path(text: &str) -> Result<Address, AddressError> {
    if !text.starts_with('/') {
        return Err(AddressError::Path("it is not absolute; write unix:///path"));
    }
    if text.len() > MAX_PATH {
        return Err(AddressError::Path("it is over 107 bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(AddressError::Path("it contains control characters"));
    }
    if text.ends_with('/') {
        return Err(AddressError::Path("it is a directory's"));
    }
    Ok(Address::Unix(PathBuf::from(text)))
}

fn host(text: &str) -> Result<AddressError, AddressError> {
    let (host, port) =
        text.rsplit_once(':').ok_or(AddressError::Host("it has no port; write tcp://host:port"))?;
    let inside = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let is_host = match inside {
        Some(number) => number.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            (1..=253).contains(&host.len())
                && host.chars().all(|it| it.is_ascii_alphanumeric() || "-._".contains(it))
        }
    };
    if !is_host {
        return Err(AddressError::Host("the host is no name and no number"));
    }
    match port.parse::<u16>() {
        Ok(port) if port != 0 && text.ends_with(&format!(":{port}")) => {
            Ok(AddressError::Unsupported { host: host.to_owned(), port })
        }
        _ => Err(AddressError::Host("the port is no number from 1 to 65535")),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Name(name) => write!(to, "shm://{name}"),
            Address::Unix(path) => write!(to, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_as_it_was(
            name in "[^\\p{Cc}]{1,60}",
            path in "/[^\\p{Cc}/]{1,25}",
        ) {
            for address in [Address::Name(name), Address::Unix(path.into())] {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }

        #[test]
        fn any_text_is_an_address_or_an_error(
            text in "\\PC*",
            scheme in "(shm|unix|tcp|http|a b)?",
        ) {
            let _ = text.parse::<Address>();
            if let Ok(address) = format!("{scheme}://{text}").parse::<Address>() {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }

        #[test]
        fn every_host_and_port_is_refused_as_such(host in "[a-z0-9.-]{1,40}", port in 1_u16..) {
            let refused = format!("tcp://{host}:{port}").parse::<Address>();
            prop_assert_eq!(refused, Err(AddressError::Unsupported { host, port }));
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let of = |text: &str| text.parse::<Address>().err();
        assert!(matches!(of(""), Some(AddressError::Name(_))));
        assert!(matches!(of("shm://"), Some(AddressError::Name(_))));
        for path in ["unix://", "unix://relative", "unix:///", "unix:///a\n"] {
            assert!(matches!(of(path), Some(AddressError::Path(_))), "{path}");
        }
        let long = format!("unix:///{}", "a".repeat(MAX_PATH));
        assert!(matches!(of(&long), Some(AddressError::Path(_))));
        for host in [
            "tcp://",
            "tcp://a",
            "tcp://:1",
            "tcp://a:0",
            "tcp://a:01",
            "tcp://a:65536",
            "tcp://a b:1",
            "tcp://[::1:5",
            "tcp://[x]:5",
            "tcp://a:+1",
        ] {
            assert!(matches!(of(host), Some(AddressError::Host(_))), "{host}");
        }
        let v6 = AddressError::Unsupported { host: "[::1]".into(), port: 5 };
        assert_eq!(of("tcp://[::1]:5"), Some(v6));
        assert_eq!(of("http://a"), Some(AddressError::Scheme("http".into())));
        assert_eq!("odd name://x".parse(), Ok(Address::Name("odd name://x".into())));
    }
}
