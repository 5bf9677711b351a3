//! Rings of events, and the cursor pages of who reads them, on their way.

use std::{os::fd::OwnedFd, sync::Arc};

use ipc::control::{Reply, closer::Stranger, encode_reply};

use super::{Lost, Parcel, Reactor};
use crate::broker::{Event, RingEffect};

impl Reactor {
    /// Carries out an effect of the event bus.
    pub(super) fn pass_events(
        &mut self,
        effect: RingEffect,
        carried: &mut Option<Stranger>,
    ) -> Option<Event> {
        match effect {
            RingEffect::Keep { ring } => {
                // Sealed and of a ring's size, as the broker saw.
                self.memory.rings.insert(ring, Arc::new(carried.take()?.vouched()));
                None
            }
            RingEffect::Lose { ring } => {
                self.memory.rings.remove(&ring);
                None
            }
            RingEffect::Send { to, ring, reply } => {
                let fd = Arc::clone(self.memory.rings.get(&ring)?);
                match self.post(to, parcel(&reply, fd)) {
                    Ok(()) => None,
                    // What it is not given it would miss unknown: it has to come back.
                    Err(Lost::Introduction | Lost::Node) => self.drop_node(to),
                }
            }
            RingEffect::Pass { to, reply } => {
                let page = Arc::new(carried.take()?.vouched());
                match self.post(to, parcel(&reply, page)) {
                    // Who sent it hears nothing of the publisher, and tries again or gives up.
                    Ok(()) | Err(Lost::Introduction) => None,
                    Err(Lost::Node) => self.drop_node(to),
                }
            }
        }
    }
}

fn parcel(reply: &Reply, fd: Arc<OwnedFd>) -> Parcel {
    Parcel::new(encode_reply(0, reply), vec![fd])
}
