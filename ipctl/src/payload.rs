//! Bytes from the command line, and bytes for people to read.

use std::{
    fmt::{self, Write as _},
    fs,
    io::{self, Read as _},
};

use clap::Args;

use crate::failure::Failure;

/// What to send. Nothing given: an empty message.
#[derive(Args, Debug)]
#[group(multiple = false)]
pub(crate) struct Payload {
    /// What to send, as text (after `--` if it starts with a dash). Nothing: an empty message
    #[arg(value_name = "PAYLOAD")]
    plain: Option<String>,
    /// Send this text
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    text: Option<String>,
    /// Send these bytes: pairs of hex digits; spaces and colons between pairs are ignored
    #[arg(long, value_name = "HEX", value_parser = Bytes::from_hex)]
    hex: Option<Bytes>,
    /// Send what is in this file; `-` is stdin
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::FilePath)]
    file: Option<String>,
}

impl Payload {
    /// Gathers the bytes to send.
    pub(crate) fn read(&self) -> Result<Vec<u8>, Failure> {
        if let Some(path) = &self.file {
            let bytes = if path == "-" {
                let mut bytes = Vec::new();
                io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
            } else {
                fs::read(path)
            };
            return bytes.map_err(|source| Failure::Read { path: path.clone(), source });
        }
        let text = self.text.as_ref().or(self.plain.as_ref()).map(|text| text.clone().into_bytes());
        Ok(text.or_else(|| self.hex.clone().map(|bytes| bytes.0)).unwrap_or_default())
    }
}

/// A newtype, since clap takes a plain `Vec<u8>` for an argument that is given many times.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn from_hex(text: &str) -> Result<Bytes, String> {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let mut bytes = Vec::with_capacity(digits.len() / 2);
        let mut high = None;
        for c in digits.chars() {
            let digit = match c.to_digit(16) {
                Some(digit) => digit as u8,
                None if high.is_none() && (c == ':' || c.is_ascii_whitespace()) => continue,
                None => return Err(format!("{c:?} is no hex digit")),
            };
            match high.take() {
                None => high = Some(digit),
                Some(high) => bytes.push(high << 4 | digit),
            }
        }
        if high.is_some() {
            return Err("the last byte has one digit only; write two for each".to_owned());
        }
        Ok(Bytes(bytes))
    }
}

/// Writes bytes as pairs of hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Gives bytes as text if a terminal can show them: UTF-8, with no control characters but ends of
/// lines and tabs.
pub(crate) fn printable(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    text.chars().all(|c| !c.is_control() || c == '\n' || c == '\t').then_some(text)
}

/// Shows bytes as `hexdump -C` does: offset, hex, and what of them is ASCII.
#[derive(Debug)]
pub(crate) struct Dump<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Dump<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (row, bytes) in self.0.chunks(16).enumerate() {
            write!(f, "{:08x}  ", row * 16)?;
            for column in 0..16 {
                match bytes.get(column) {
                    Some(byte) => write!(f, "{byte:02x} ")?,
                    None => f.write_str("   ")?,
                }
                if column == 7 {
                    f.write_char(' ')?;
                }
            }
            f.write_str(" |")?;
            for byte in bytes {
                let graphic = byte.is_ascii_graphic() || *byte == b' ';
                f.write_char(if graphic { char::from(*byte) } else { '.' })?;
            }
            f.write_str("|\n")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<Vec<u8>> {
        Bytes::from_hex(text).ok().map(|bytes| bytes.0)
    }

    #[test]
    fn hex_is_pairs_of_digits() {
        assert_eq!(parsed("00ff7F"), Some(vec![0, 255, 127]));
        assert_eq!(parsed("0xdeadBEEF"), Some(vec![0xde, 0xad, 0xbe, 0xef]));
        assert_eq!(parsed("de:ad be ef"), Some(vec![0xde, 0xad, 0xbe, 0xef]));
        assert_eq!(parsed(""), Some(vec![]));
    }

    #[test]
    fn bad_hex_is_refused_with_a_reason() {
        assert!(Bytes::from_hex("abc").is_err_and(|reason| reason.contains("one digit")));
        assert!(Bytes::from_hex("12 3z").is_err_and(|reason| reason.contains("'z'")));
        for text in ["a b", "1:2", "0x0x", "-1", "é"] {
            assert!(Bytes::from_hex(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hex_goes_back_and_forth() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(parsed(&hex(&bytes)), Some(bytes));
    }

    #[test]
    fn only_what_a_terminal_can_show_is_text() {
        assert_eq!(printable("two\nlines\tété".as_bytes()), Some("two\nlines\tété"));
        assert_eq!(printable(b"\x1b[2J"), None);
        assert_eq!(printable(&[0xff, 0xfe]), None);
        assert_eq!(printable(b"a\0"), None);
    }

    #[test]
    fn a_dump_has_sixteen_bytes_to_a_line() {
        let bytes: Vec<u8> = (0x30..0x42).collect();
        let lines = [
            "00000000  30 31 32 33 34 35 36 37  38 39 3a 3b 3c 3d 3e 3f  |0123456789:;<=>?|",
            "00000010  40 41                                             |@A|",
            "",
        ];
        assert_eq!(Dump(&bytes).to_string(), lines.join("\n"));
    }
}
