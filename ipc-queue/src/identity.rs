//! Who a producer is: what nobody else can be, nor learn from its messages.
//!
//! A producer names itself by a number that it drew. Others may write the same number, so its
//! window goes by that number and its user, which the kernel vouches for; and consumers, who are
//! told by whom a message is, get neither, but what a key of the queue makes of both. So who reads
//! messages cannot send in the name of who sent them.

/// A key of one queue, which no process but `ipc-queue` ever sees. It is as old as the queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub [u64; 2]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Secret")
    }
}

/// Bits of a producer's number that say whose it is.
const OWNER_BITS: u32 = 16;

impl Secret {
    /// Draws one.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn draw() -> Result<Secret, getrandom::Error> {
        Ok(Secret([getrandom::u64()?, getrandom::u64()?]))
    }

    /// The number by which the queue knows the producer of a user that calls itself `who`, and
    /// shows it to consumers. Never 0.
    pub fn producer(self, uid: u32, who: u64) -> u64 {
        // 0 is no producer's number for itself.
        let owner = self.hash([u64::from(uid), 0]) << (64 - OWNER_BITS);
        let own = self.hash([u64::from(uid), who]) >> OWNER_BITS;
        (owner | own).max(1)
    }

    /// SipHash-2-4 of two words.
    fn hash(self, words: [u64; 2]) -> u64 {
        let [key, other] = self.0;
        let mut v = [
            key ^ 0x736f_6d65_7073_6575,
            other ^ 0x646f_7261_6e64_6f6d,
            key ^ 0x6c79_6765_6e65_7261,
            other ^ 0x7465_6462_7974_6573,
        ];
        // The last block has the length, 16 bytes, and nothing else.
        for word in [words[0], words[1], 16 << 56] {
            v[3] ^= word;
            round(&mut v);
            round(&mut v);
            v[0] ^= word;
        }
        v[2] ^= 0xff;
        for _ in 0..4 {
            round(&mut v);
        }
        v[0] ^ v[1] ^ v[2] ^ v[3]
    }
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

/// Whose producer that is, as far as that must be told apart: two users may be taken for one,
/// which costs them a part of their share.
pub fn owner(producer: u64) -> u64 {
    producer >> (64 - OWNER_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of the published vectors: bytes 0 to 15.
    const KEY: Secret = Secret([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);

    #[test]
    fn the_hash_is_that_of_the_published_vector() {
        // For the 16 bytes 0 to 15.
        assert_eq!(KEY.hash(KEY.0), 0x3f2a_cc7f_57c2_9bdb);
    }

    #[test]
    fn neither_another_user_nor_who_reads_the_number_is_that_producer() {
        let shown = KEY.producer(1000, 7);
        assert_eq!(shown, KEY.producer(1000, 7));
        assert_ne!(shown, KEY.producer(1001, 7), "another user");
        assert_ne!(shown, KEY.producer(1000, shown), "what consumers see");
        assert_ne!(shown, Secret([1, 2]).producer(1000, 7), "another queue");
        assert_eq!(owner(shown), owner(KEY.producer(1000, 8)));
        assert_ne!(owner(shown), owner(KEY.producer(1001, 7)));
    }
}
