//! What sealing and opening share: the keys of a direction, and the keystream made ahead.

use std::ops::Range;

use zeroize::Zeroize;

use crate::{
    error::NodeError,
    layout::Ring,
    session::{
        aead::{self, Cipher, Head, Pad},
        chacha::{BLOCKS, Backend, NONCES, key_words},
        poly::Half,
        vault::{Secrets, Vault, sweep_stack},
    },
};

/// The nonce of the block from which the next generation's key is taken.
const REKEY: u64 = u64::MAX;

/// Which way records go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From who opened the channel.
    FromClient,
    /// To it.
    FromServer,
}

/// What every tag covers beside the frame: which session, which way, and the epoch of the name
/// that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Context {
    /// Of the handshake's hash.
    pub(crate) session: u64,
    pub(crate) epoch: u64,
    pub(crate) way: Way,
}

/// Where a ring's records stand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Track {
    /// The position of the next record.
    pub(crate) next: u64,
    /// Key changes so far.
    pub(crate) generation: u64,
    /// The position of the first record of this generation.
    pub(crate) since: u64,
    /// When the first record of this generation was sealed, or opened; none before it.
    pub(crate) since_ns: Option<u64>,
    /// The batches whose keystream is there: `position / NONCES` + 1, or 0.
    ahead: [u64; 2],
}

/// Keys and places of both rings of one direction.
#[derive(Debug)]
pub(crate) struct Direction {
    pub(crate) backend: Backend,
    secrets: Vault<[Secrets; 2]>,
    tracks: [Track; 2],
    /// The first half of what is authenticated, by ring.
    contexts: [[u64; 2]; 2],
    /// How far into a batch the next one is made. A call takes one record of each direction at
    /// either end; with a number of its own for each of the four, no call pays for two batches.
    ahead_from: u64,
}

impl Direction {
    /// Begins with a key of the handshake, which serves for nothing but to derive those of the
    /// rings.
    pub(crate) fn new(
        root: &[u8; 32],
        context: Context,
        ahead_from: u64,
    ) -> Result<Direction, NodeError> {
        let backend = Backend::detect();
        let mut secrets = Vault::<[Secrets; 2]>::new()?;
        let mut root = key_words(root);
        for (ring, secret) in secrets.get_mut().iter_mut().enumerate() {
            secret.key = derived(backend, &root, REKEY - 1 - ring as u64);
        }
        root.zeroize();
        let way = u64::from(context.way == Way::FromServer);
        let contexts = [0, 1].map(|ring| [context.session, context.epoch << 2 | way << 1 | ring]);
        let track = Track { next: 0, generation: 0, since: 0, since_ns: None, ahead: [0; 2] };
        Ok(Direction { backend, secrets, tracks: [track; 2], contexts, ahead_from })
    }

    /// Whether this is the process whose session it is.
    #[inline]
    pub(crate) fn is_here(&self) -> bool {
        self.secrets.is_here()
    }

    #[inline]
    pub(crate) fn track(&mut self, ring: Ring) -> &mut Track {
        &mut self.tracks[ring as usize]
    }

    /// All that a tag covers beside the text. The lap in the head's first word is left out: the
    /// position says it.
    #[inline]
    pub(crate) fn head(&self, ring: Ring, head: [u64; 2]) -> Head {
        let [session, context] = self.contexts[ring as usize];
        [session, context, head[0] & !0xFFFF_FFF0, head[1]]
    }

    /// The cipher of this generation.
    pub(crate) fn cipher(&self, ring: Ring) -> Cipher<'_> {
        Cipher { key: &self.secrets.get()[ring as usize].key }
    }

    /// The key of the generation that many steps ahead.
    fn key_ahead(&self, ring: Ring, steps: u32) -> [u32; 8] {
        (0..steps).fold(self.secrets.get()[ring as usize].key, |mut key, _| {
            let next = derived(self.backend, &key, REKEY);
            key.zeroize();
            next
        })
    }

    /// Whether a record was sealed for a position, with the key of the generation that many steps
    /// ahead.
    pub(crate) fn opens(
        &self,
        ring: Ring,
        steps: u32,
        position: u64,
        head: &Head,
        body: &[u8],
        tag: Half,
    ) -> bool {
        self.find(ring, steps, position..position + 1, head, body, tag).is_some()
    }

    /// Finds the position, one of these, for which a record was sealed with such a key.
    pub(crate) fn find(
        &self,
        ring: Ring,
        steps: u32,
        near: Range<u64>,
        head: &Head,
        body: &[u8],
        tag: Half,
    ) -> Option<u64> {
        let mut key = self.key_ahead(ring, steps);
        let mut ahead = [[0; 8]; BLOCKS];
        let found = near.clone().step_by(NONCES).find_map(|first| {
            self.backend.ahead(&key, first, &mut ahead);
            let positions = first..near.end.min(first + NONCES as u64);
            positions.zip(ahead.iter().step_by(2)).find_map(|(position, zeroth)| {
                aead::is_sealed(zeroth, head, body, tag).then_some(position)
            })
        });
        key.zeroize();
        ahead.zeroize();
        found
    }

    /// Goes on to the next generation, of which the next record is the first.
    #[cold]
    pub(crate) fn change_key(&mut self, ring: Ring, now_ns: u64) {
        self.replace_key(ring, now_ns);
        sweep_stack();
    }

    #[inline(never)]
    fn replace_key(&mut self, ring: Ring, now_ns: u64) {
        let next = self.key_ahead(ring, 1);
        let secret = &mut self.secrets.get_mut()[ring as usize];
        secret.key = next;
        secret.ahead.zeroize();
        let track = &mut self.tracks[ring as usize];
        track.ahead = [0; 2];
        track.generation += 1;
        track.since = track.next;
        track.since_ns = Some(now_ns);
    }

    /// The pad of the next record, made now if it is not there. Overwrite it when it is used.
    #[inline(always)]
    pub(crate) fn pad(&mut self, ring: Ring) -> &mut Pad {
        let track = &self.tracks[ring as usize];
        let batch = track.next / NONCES as u64;
        let slot = batch as usize % 2;
        if track.ahead[slot] != batch + 1 {
            self.make(ring, batch);
        }
        let at = self.tracks[ring as usize].next as usize % NONCES;
        let (pads, _) = self.secrets.get_mut()[ring as usize].ahead[slot].as_chunks_mut::<2>();
        &mut pads[at]
    }

    /// Makes keystream for the records after those for which there is some. Returns whether there
    /// was any to make.
    #[inline]
    pub(crate) fn prepare(&mut self, ring: Ring) -> bool {
        let track = &self.tracks[ring as usize];
        let batch = track.next / NONCES as u64;
        let is_there = |batch: u64| track.ahead[batch as usize % 2] == batch + 1;
        let missing = if !is_there(batch) {
            batch
        } else if track.next % NONCES as u64 >= self.ahead_from && !is_there(batch + 1) {
            batch + 1
        } else {
            return false;
        };
        self.make(ring, missing);
        true
    }

    #[inline(never)]
    fn make(&mut self, ring: Ring, batch: u64) {
        let slot = batch as usize % 2;
        let secret = &mut self.secrets.get_mut()[ring as usize];
        self.backend.ahead(&secret.key, batch * NONCES as u64, &mut secret.ahead[slot]);
        self.tracks[ring as usize].ahead[slot] = batch + 1;
    }

    /// Keystream that is not used yet, in tests of where else it lies.
    #[cfg(test)]
    pub(crate) fn unused(
        &self,
        ring: Ring,
    ) -> impl Iterator<Item = &crate::session::chacha::Block> {
        let blocks = self.secrets.get()[ring as usize].ahead.iter().flatten();
        blocks.filter(|block| block.iter().any(|word| *word != 0))
    }

    /// The key of a ring, in tests of where else it lies.
    #[cfg(test)]
    pub(crate) fn key(&self, ring: Ring) -> &[u32; 8] {
        &self.secrets.get()[ring as usize].key
    }

    /// Begins at a later position than the first.
    pub(crate) fn begin_at(&mut self, ring: Ring, position: u64) {
        let track = self.track(ring);
        track.next = position;
        track.since = position;
    }
}

/// A key from a key: the first half of a block that serves for nothing else. With [`REKEY`] it is
/// Noise's `Rekey` (11.3 of its specification).
fn derived(backend: Backend, key: &[u32; 8], number: u64) -> [u32; 8] {
    let mut blocks = [[0; 8]; BLOCKS];
    backend.consecutive(key, number, 1, &mut blocks);
    let derived = std::array::from_fn(|word| (blocks[0][word / 2] >> (32 * (word % 2))) as u32);
    blocks.zeroize();
    derived
}
