//! What the service does, without any I/O: message in, answer out.

use std::fmt;

/// What to answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer<'a> {
    /// Nothing: it was one-way.
    None,
    /// The request's own payload.
    Payload(&'a [u8]),
    /// One-way messages so far: `u64`, little-endian.
    Count([u8; 8]),
}

/// Everything the service remembers.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    requests: u64,
    one_way: u64,
}

impl Machine {
    /// Takes one message, and decides the answer to it.
    pub(crate) fn take<'a>(
        &mut self,
        to_sink: bool,
        one_way: bool,
        payload: &'a [u8],
    ) -> Answer<'a> {
        if one_way {
            self.one_way += 1;
            return Answer::None;
        }
        self.requests += 1;
        if to_sink { Answer::Count(self.one_way.to_le_bytes()) } else { Answer::Payload(payload) }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests and {} one-way messages", self.requests, self.one_way)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_back() {
        let mut machine = Machine::default();
        assert_eq!(machine.take(false, false, b"hello"), Answer::Payload(b"hello"));
        assert_eq!(machine.take(false, false, b""), Answer::Payload(b""));
    }

    #[test]
    fn the_sink_counts_one_way_messages_and_nothing_else() {
        let mut machine = Machine::default();
        assert_eq!(machine.take(true, true, b"tick"), Answer::None);
        assert_eq!(machine.take(false, true, b"tick"), Answer::None);
        machine.take(false, false, b"a request");
        for _ in 0..2 {
            let count = machine.take(true, false, b"how many?");
            assert_eq!(count, Answer::Count([2, 0, 0, 0, 0, 0, 0, 0]));
        }
        assert_eq!(machine.to_string(), "3 requests and 2 one-way messages");
    }
}
