//! One ring by itself, in sealed lanes but without a channel around it: what the benchmarks hold
//! against everything that is built upon it. Nobody waits here, and nobody is woken.

pub mod seal;

use crate::{
    error::{NodeError, PeerCorrupt},
    frame::{Kind, Label, Sender},
    lane,
    layout::{Geometry, INLINE, Ring},
    ring::{Consumer, Producer, PushError, SealError},
    session::record::{Context, Limits, Opener, Sealer, Way},
};

/// The writing end.
#[derive(Debug)]
pub struct Tx {
    producer: Producer,
    id: u32,
}

/// The reading end.
#[derive(Debug)]
pub struct Rx {
    consumer: Consumer,
    buffer: Vec<u8>,
}

/// The same with every frame sealed.
#[derive(Debug)]
pub struct SealedTx {
    tx: Tx,
    sealer: Sealer,
}

/// The reading end of it.
#[derive(Debug)]
pub struct SealedRx {
    rx: Rx,
    opener: Opener,
}

/// Makes such a ring, both of whose ends know a key already; of a pair, the one that leads back.
///
/// # Errors
/// Those of making the lanes, and the memory for keys.
pub fn sealed_ring(geometry: Geometry, is_back: bool) -> Result<(SealedTx, SealedRx), NodeError> {
    let (tx, rx) = ring(geometry)?;
    let way = if is_back { Way::FromServer } else { Way::FromClient };
    let context = Context { session: 1, epoch: 1, way };
    let sealer = Sealer::new(&[7; 32], context, Limits::default())?;
    let opener = Opener::new(&[7; 32], context, Limits::default())?;
    Ok((SealedTx { tx, sealer }, SealedRx { rx, opener }))
}

impl SealedTx {
    /// As [`Tx::push`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// After 2^64 frames, and in forked children.
    #[inline]
    pub fn push(&mut self, payload: &[u8]) -> Result<bool, PeerCorrupt> {
        let label = Label::new(Kind::OneWay, 2).with_id(self.tx.id);
        match self.tx.producer.push_sealed(&mut self.sealer, label, payload, 0, 0) {
            Ok(_) => {
                self.tx.id = self.tx.id.wrapping_add(1);
                Ok(true)
            }
            Err(SealError::Push(PushError::Full { .. } | PushError::Retired)) => Ok(false),
            Err(SealError::Push(PushError::Corrupt(lie))) => Err(lie),
            Err(SealError::Spent(spent)) => panic!("{spent}"),
        }
    }

    /// Makes keystream for the next frames, if some is missing.
    #[inline]
    pub fn prepare(&mut self) -> bool {
        self.sealer.prepare(Ring::Ordinary)
    }
}

impl SealedRx {
    /// As [`Rx::take`].
    ///
    /// # Errors
    /// As there, and [`PeerCorrupt::Record`] for what does not open.
    #[inline]
    pub fn take(&mut self) -> Result<Option<&[u8]>, PeerCorrupt> {
        let Rx { consumer, buffer } = &mut self.rx;
        match consumer.take_sealed(&mut self.opener, buffer, 0)? {
            Some(Ok(it)) => Ok(Some(&buffer[..it.length])),
            Some(Err(_)) => Err(PeerCorrupt::Record),
            None => Ok(None),
        }
    }

    /// As [`SealedTx::prepare`].
    #[inline]
    pub fn prepare(&mut self) -> bool {
        self.opener.prepare(Ring::Ordinary)
    }
}

/// Makes an ordinary ring of this geometry, both of whose ends are in this process.
///
/// # Errors
/// Those of making the lanes.
pub fn ring(geometry: Geometry) -> Result<(Tx, Rx), NodeError> {
    let ((sender, _), (receiver, _)) = (lane::create(geometry)?, lane::create(geometry)?);
    let producer = Producer::new(&sender, &receiver, Ring::Ordinary);
    let consumer = Consumer::new(&receiver, &sender, Ring::Ordinary, Sender::Client);
    let largest = geometry.ordinary_slab() as usize / 2 + INLINE;
    Ok((Tx { producer, id: 0 }, Rx { consumer, buffer: vec![0; largest] }))
}

impl Tx {
    /// Publishes one frame, of at most half the slab. Returns false when there is no room.
    ///
    /// # Errors
    /// [`PeerCorrupt`]: the receiver's progress is impossible.
    #[inline(always)]
    pub fn push(&mut self, payload: &[u8]) -> Result<bool, PeerCorrupt> {
        let label = Label::new(Kind::OneWay, 2).with_id(self.id);
        match self.producer.push(label, payload, 0) {
            Ok(_) => {
                self.id = self.id.wrapping_add(1);
                Ok(true)
            }
            Err(PushError::Full { .. } | PushError::Retired) => Ok(false),
            Err(PushError::Corrupt(lie)) => Err(lie),
        }
    }
}

impl Rx {
    /// Takes one frame, checked and copied; nothing when there is none.
    ///
    /// # Errors
    /// [`PeerCorrupt`]: no honest sender wrote it.
    #[inline(always)]
    pub fn take(&mut self) -> Result<Option<&[u8]>, PeerCorrupt> {
        let frame = match self.consumer.peek_plain([Kind::Request, Kind::OneWay]) {
            Some(frame) => frame,
            None => match self.consumer.peek()? {
                Some(frame) => frame,
                None => return Ok(None),
            },
        };
        self.consumer.copy(&frame, &mut self.buffer);
        self.consumer.release(&frame);
        Ok(Some(&self.buffer[..frame.head.length as usize]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_until_it_is_full() {
        let (mut tx, mut rx) = ring(Geometry::default()).expect("lanes");
        let mut sent = 0_u8;
        while tx.push(&[sent; 60]).expect("an honest receiver") {
            sent += 1;
        }
        assert!(sent > 1);
        for number in 0..sent {
            assert_eq!(rx.take().expect("an honest sender"), Some(&[number; 60][..]));
        }
        assert_eq!(rx.take().expect("an honest sender"), None);
        assert!(tx.push(b"again").expect("an honest receiver"));
    }
}
