//! The channels that this run has introduced and that are open, as far as both ends tell.
//!
//! A channel is forgotten when either end says that it is closed, or when the connections of both
//! are gone. Who lays down its connection while its process lives keeps its channels, and goes on
//! paying for them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::Token;
use crate::security::Who;

/// One open channel.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) client: Token,
    pub(super) service: Token,
    /// Who opened it.
    pub(super) who: Arc<Who>,
    /// The name that it leads to.
    pub(super) name: Arc<str>,
    /// The user of the process that serves.
    pub(super) served_by: u32,
    /// What it was opened for.
    pub(super) granted: u64,
    /// Whether its frames are sealed.
    pub(super) encrypted: bool,
}

#[derive(Debug, Default)]
pub(super) struct Channels {
    open: HashMap<u64, Channel>,
    by_end: HashMap<Token, HashSet<u64>>,
}

impl Channels {
    pub(super) fn insert(&mut self, id: u64, channel: Channel) {
        for end in [channel.client, channel.service] {
            self.by_end.entry(end).or_default().insert(id);
        }
        self.open.insert(id, channel);
    }

    /// An end says that it is closed; tells whether that ended the channel.
    pub(super) fn closed(&mut self, by: Token, id: u64) -> bool {
        let is_end = |channel: &Channel| channel.client == by || channel.service == by;
        self.open.get(&id).is_some_and(is_end) && self.remove(id).is_some()
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Channel> {
        let channel = self.open.remove(&id)?;
        for end in [channel.client, channel.service] {
            if let Some(ids) = self.by_end.get_mut(&end) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_end.remove(&end);
                }
            }
        }
        Some(channel)
    }

    /// A connection is gone; gives the channels that this has ended.
    pub(super) fn gone(&mut self, token: Token) -> Vec<u64> {
        let ids = self.by_end.remove(&token).unwrap_or_default();
        let mut ended = Vec::new();
        for id in ids {
            let Some(channel) = self.open.get(&id) else { continue };
            let other = if channel.client == token { channel.service } else { channel.client };
            if other == token || !self.by_end.get(&other).is_some_and(|it| it.contains(&id)) {
                self.open.remove(&id);
                ended.push(id);
            }
        }
        ended
    }

    /// Whether one of these has a channel that the other serves.
    pub(super) fn is_between(&self, client: Token, service: Token) -> bool {
        let ids = self.by_end.get(&client).into_iter().flatten();
        let mut channels = ids.filter_map(|id| self.open.get(id));
        channels.any(|it| it.client == client && it.service == service)
    }

    /// The channels on which that is the client.
    pub(super) fn opened_by(&self, client: Token) -> Vec<u64> {
        let ids = self.by_end.get(&client).into_iter().flatten().copied();
        let mut ids: Vec<u64> =
            ids.filter(|id| self.open.get(id).is_some_and(|it| it.client == client)).collect();
        ids.sort_unstable();
        ids
    }

    /// How many channels are served there.
    pub(super) fn served_by(&self, service: Token) -> usize {
        let ids = self.by_end.get(&service).into_iter().flatten();
        ids.filter_map(|id| self.open.get(id)).filter(|it| it.service == service).count()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (u64, &Channel)> {
        self.open.iter().map(|(&id, channel)| (id, channel))
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.by_end.is_empty()
    }
}
