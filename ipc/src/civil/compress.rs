//! Large messages, compressed on the way.
//!
//! A message is one byte that names the algorithm, and for a compressed one its length in 8 bytes,
//! little endian, before what the algorithm made of it: an LZ4 block, or a Zstandard frame.

use std::borrow::Cow;

use crate::{CallOptions, Client, Request, error::CallError};

/// How messages are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CompressionAlgorithm {
    /// Not at all.
    None = 0,
    /// Fast, by LZ4.
    #[default]
    Lz4 = 1,
    /// Smaller, by Zstandard.
    Zstd = 2,
}

/// Why something is no message.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// It is too short, or names no algorithm.
    #[error("not a message of a compressed transport")]
    Malformed,
    /// It says that it is longer than allowed, or would grow more than anything honest does.
    /// Nothing was decompressed.
    #[error("a message of {compressed} bytes that says to become {size}: refused")]
    Bomb {
        /// As it came.
        compressed: usize,
        /// As it says to become.
        size: u64,
    },
    /// It does not decompress to what it says.
    #[error("a message that does not decompress to the length it says")]
    Corrupt,
    /// The call failed.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Compresses messages of at least so many bytes; both ends of a channel need one. What the other
/// end sends is not trusted: before anything is allocated, the length that it says to become is
/// held against two limits, its size and its growth; and it is not decompressed beyond it.
///
/// ```
/// use ipc::civil::{CompressedTransport, CompressionAlgorithm};
///
/// let transport = CompressedTransport::new(1024, CompressionAlgorithm::Zstd);
/// let message = "again and again ".repeat(1000);
/// let sent = transport.encode(message.as_bytes());
/// assert!(sent.len() < message.len() / 10);
/// assert_eq!(transport.decode(&sent)?, message.as_bytes());
/// # Ok::<(), ipc::civil::CompressError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct CompressedTransport {
    compression_threshold: usize,
    algorithm: CompressionAlgorithm,
    max_size: usize,
    max_ratio: usize,
}

/// The algorithm's byte.
const TAG: usize = 1;
/// That, and the length.
const HEADER: usize = TAG + 8;
/// Speed before size: a service waits for it.
const ZSTD_LEVEL: i32 = 1;

impl CompressedTransport {
    /// Compresses messages of at least `compression_threshold` bytes. Takes messages of up to
    /// 64 MiB that grow up to 1000 times.
    pub fn new(
        compression_threshold: usize,
        algorithm: CompressionAlgorithm,
    ) -> CompressedTransport {
        let (max_size, max_ratio) = (64 << 20, 1000);
        CompressedTransport { compression_threshold, algorithm, max_size, max_ratio }
    }

    /// Sets what a message may become: so many bytes, and so many times its size. The other end
    /// needs the same: what would be over the ratio here is sent as it is.
    #[must_use]
    pub fn limits(self, max_size: usize, max_ratio: usize) -> CompressedTransport {
        CompressedTransport { max_size, max_ratio, ..self }
    }

    /// Makes what is sent for a message. One that does not get smaller is sent as it is.
    pub fn encode(&self, message: &[u8]) -> Vec<u8> {
        if message.len() >= self.compression_threshold
            && let Some(encoded) = self.compress(message)
            && encoded.len() < TAG + message.len()
            && self.allows(encoded.len() - HEADER, message.len())
        {
            return encoded;
        }
        [&[CompressionAlgorithm::None as u8], message].concat()
    }

    fn compress(&self, message: &[u8]) -> Option<Vec<u8>> {
        let mut encoded = vec![self.algorithm as u8];
        encoded.extend_from_slice(&(message.len() as u64).to_le_bytes());
        match self.algorithm {
            CompressionAlgorithm::None => return None,
            CompressionAlgorithm::Lz4 => {
                let longest = lz4_flex::block::get_maximum_output_size(message.len());
                encoded.resize(HEADER + longest, 0);
                let packed = lz4_flex::block::compress_into(message, &mut encoded[HEADER..]);
                encoded.truncate(HEADER + packed.ok()?);
            }
            CompressionAlgorithm::Zstd => {
                encoded.extend(zstd::bulk::compress(message, ZSTD_LEVEL).ok()?);
            }
        }
        Some(encoded)
    }

    /// Makes the message of what was sent.
    ///
    /// # Errors
    /// [`CompressError`].
    pub fn decode<'a>(&self, sent: &'a [u8]) -> Result<Cow<'a, [u8]>, CompressError> {
        let (tag, rest) = sent.split_first().ok_or(CompressError::Malformed)?;
        let algorithm = match *tag {
            0 => return self.plain(rest),
            1 => CompressionAlgorithm::Lz4,
            2 => CompressionAlgorithm::Zstd,
            _ => return Err(CompressError::Malformed),
        };
        let (size, packed) = rest.split_first_chunk().ok_or(CompressError::Malformed)?;
        let says = u64::from_le_bytes(*size);
        let size = usize::try_from(says).ok().filter(|size| self.allows(packed.len(), *size));
        let size = size.ok_or(CompressError::Bomb { compressed: sent.len(), size: says })?;
        let mut message = vec![0; size];
        let written = match algorithm {
            CompressionAlgorithm::None => None,
            CompressionAlgorithm::Lz4 => {
                lz4_flex::block::decompress_into(packed, &mut message).ok()
            }
            CompressionAlgorithm::Zstd => {
                zstd::bulk::decompress_to_buffer(packed, &mut message[..]).ok()
            }
        };
        if written == Some(size) { Ok(message.into()) } else { Err(CompressError::Corrupt) }
    }

    fn plain<'a>(&self, message: &'a [u8]) -> Result<Cow<'a, [u8]>, CompressError> {
        let size = message.len();
        if size > self.max_size {
            return Err(CompressError::Bomb { compressed: size, size: size as u64 });
        }
        Ok(message.into())
    }

    fn allows(&self, packed: usize, size: usize) -> bool {
        size <= self.max_size && size <= packed.saturating_mul(self.max_ratio)
    }

    /// Calls a service that has such a transport, too.
    ///
    /// # Errors
    /// [`CompressError::Call`]; the others when the answer is none of such a transport.
    pub fn call(
        &self,
        client: &Client,
        message: &[u8],
        options: impl Into<CallOptions>,
    ) -> Result<Vec<u8>, CompressError> {
        let answer = client.call(&self.encode(message), options)?;
        Ok(self.decode(&answer)?.into_owned())
    }

    /// Answers a request of such a transport, with what `handle` makes of its message.
    ///
    /// # Errors
    /// [`CompressError`]: the request is unanswered, and ends with an error when it is dropped.
    pub fn serve(
        &self,
        request: &Request<'_>,
        handle: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> Result<(), CompressError> {
        let message = self.decode(request.payload())?;
        Ok(request.reply(&self.encode(&handle(&message)))?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [CompressionAlgorithm; 3] =
        [CompressionAlgorithm::None, CompressionAlgorithm::Lz4, CompressionAlgorithm::Zstd];

    #[test]
    fn small_and_incompressible_messages_go_as_they_are() {
        for algorithm in ALL {
            let transport = CompressedTransport::new(100, algorithm);
            assert_eq!(transport.encode(&[7; 99])[..2], [0, 7], "below the threshold");
            assert_eq!(transport.encode(&[7; 100])[0], algorithm as u8);
            let noise: Vec<u8> = (0..1000_u32).map(|n| (n.pow(3) >> 3) as u8).collect();
            assert!(transport.encode(&noise).len() <= 1 + noise.len());
            assert_eq!(transport.decode(&transport.encode(&[])).expect("empty"), b"".as_slice());
        }
    }

    #[test]
    fn bombs_are_refused() {
        let zeros = vec![0; 10 << 20];
        for algorithm in [CompressionAlgorithm::Lz4, CompressionAlgorithm::Zstd] {
            let wide = CompressedTransport::new(0, algorithm).limits(usize::MAX, usize::MAX);
            let bomb = wide.encode(&zeros);
            assert!(bomb.len() < zeros.len() / 100);
            assert!(wide.decode(&bomb).is_ok());
            let refused = |transport: CompressedTransport, sent: &[u8]| {
                matches!(transport.decode(sent), Err(CompressError::Bomb { .. }))
            };
            assert!(refused(wide.limits(zeros.len() - 1, usize::MAX), &bomb), "too large");
            assert!(refused(wide.limits(usize::MAX, 100), &bomb), "grows too much");
            let mut liar = bomb.clone();
            for size in [0, 1, 1000, zeros.len() as u64 - 1, zeros.len() as u64 + 1] {
                liar[TAG..HEADER].copy_from_slice(&size.to_le_bytes());
                let outcome = wide.decode(&liar);
                assert!(matches!(outcome, Err(CompressError::Corrupt)), "says {size}");
            }
            liar[TAG..HEADER].fill(0xFF);
            assert!(refused(wide.limits(1 << 30, usize::MAX), &liar), "says everything");
        }
        let small = CompressedTransport::new(0, CompressionAlgorithm::None).limits(10, 1);
        assert!(small.decode(&small.encode(&[1; 10])).is_ok());
        assert!(small.decode(&small.encode(&[1; 11])).is_err());
    }

    #[test]
    fn what_grows_too_much_is_not_sent_so() {
        let zeros = vec![0; 1 << 20];
        for algorithm in ALL {
            let transport = CompressedTransport::new(0, algorithm).limits(1 << 20, 20);
            assert_eq!(transport.decode(&transport.encode(&zeros)).expect("as it is"), zeros);
        }
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in(
            message in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..3000),
                (any::<u8>(), 0_usize..100_000).prop_map(|(byte, count)| vec![byte; count]),
            ],
            threshold in 0_usize..2000,
            algorithm in prop::sample::select(&ALL[..]),
        ) {
            let transport = CompressedTransport::new(threshold, algorithm);
            let sent = transport.encode(&message);
            prop_assert!(sent.len() <= 1 + message.len());
            prop_assert_eq!(transport.decode(&sent).expect("its own"), message);
        }

        #[test]
        fn any_bytes_are_a_message_or_an_error(
            tag in 0_u8..4,
            size in prop_oneof![0_u64..10_000, any::<u64>()],
            packed in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let sent = [&[tag][..], &size.to_le_bytes(), &packed].concat();
            let transport = CompressedTransport::new(0, CompressionAlgorithm::Lz4);
            if let Ok(message) = transport.decode(&sent) {
                prop_assert!(tag == 0 || message.len() as u64 == size);
            }
        }
    }
}
