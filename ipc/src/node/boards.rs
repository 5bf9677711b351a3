//! Boards: showing the runtime this node's, and reading those of all.

use std::{collections::HashMap, os::fd::AsFd, sync::Arc, time::Duration};

use super::{Core, Node, PATIENCE, refused};
use crate::{
    ServiceId,
    board::{self, Board, BoardView, EndStats, SessionStats, Stats},
    clock,
    control::{Reply, Request},
    error::NodeError,
    trace,
};

/// Segments that one look at all boards may find. More than any runtime keeps; one that goes on
/// beyond lies.
const MOST: usize = 64 * 1024;

impl Core {
    /// Shows the runtime the segments of this node's board that it has not seen, and says which are
    /// no more. A runtime that
    /// cannot be told now is told when it is reached again.
    pub(super) fn tell_boards(&self) {
        for (segment, fd) in self.board.untold() {
            let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
            let _ = self.post(0, &Request::Board { segment }, &fds);
        }
    }

    /// Lets so many bytes of payloads of traced requests be shown. When there are none of any
    /// instance any more, those that were are taken back.
    pub(super) fn let_show(&self, instance: ServiceId, bytes: u32, for_ms: u32) {
        let now = clock::now_ns();
        if !trace::allow(instance, bytes, now + u64::from(for_ms) * 1_000_000, now) {
            self.board.hide();
            self.tell_boards();
        }
    }
}

impl Node {
    /// Gives the boards of all nodes that have, or had, a channel: what each of their ends counted.
    /// For operators' programs.
    ///
    /// ```no_run
    /// # fn of(node: &ipc::Node) -> Result<(), ipc::NodeError> {
    /// for board in node.boards()? {
    ///     for end in board.ends() {
    ///         let stats = &end.stats;
    ///         println!("{} {:?}: {} sent", board.pid, end.role, stats.messages_sent);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `ACCESS` in a supervised service; those of a lost runtime.
    pub fn boards(&self) -> Result<Vec<Board>, NodeError> {
        let mut boards = Vec::new();
        self.refresh_boards(&mut boards)?;
        Ok(boards)
    }

    /// Brings boards up to date: those of new nodes come, those of nodes that are gone go, and what
    /// was mapped stays.
    ///
    /// # Errors
    /// As for [`boards`](Node::boards); there are none then.
    pub fn refresh_boards(&self, boards: &mut Vec<Board>) -> Result<(), NodeError> {
        let old = std::mem::take(boards).into_iter();
        let mut known: HashMap<(ServiceId, u64), BoardView> = old
            .flat_map(|Board { node, segments, .. }| {
                segments.into_iter().map(move |view| ((node, view.inode), view))
            })
            .collect();
        let mut found: Vec<Board> = Vec::new();
        let mut after = 0;
        for _ in 0..MOST {
            let request = Request::Boards { after };
            let (reply, fds) = self.shared.core.request(&request, &[], Some(PATIENCE))?;
            let (node, pid, segment) = match reply {
                Reply::Done => break,
                Reply::Board { node, pid, segment, next } => {
                    after = next;
                    (node, pid, segment)
                }
                reply => return Err(refused(&reply)),
            };
            let fd = fds.first().ok_or(NodeError::Malformed("a board without its memory"))?;
            let inode = board::inode(fd.as_fd())?;
            let view = match known.remove(&(node, inode)) {
                Some(view) => view,
                // A process that made a bad one spoils its own board only.
                None => match board::view(fd.as_fd(), segment) {
                    Ok(view) => view,
                    Err(_) => continue,
                },
            };
            match found.last_mut() {
                Some(board) if board.node == node => board.segments.push(view),
                _ => found.push(Board { node, pid, segments: vec![view] }),
            }
        }
        *boards = found;
        Ok(())
    }

    /// Has an instance begin traces at requests that come to it and carry none: at most one each
    /// `every`, for that long. What is done for them, there and in the services that it calls, is
    /// found in [`Board::spans`]. For operators' programs; the last who asks for a process stands.
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `NOT_FOUND` for what is no instance, `ACCESS` in a supervised
    /// service; those of a lost runtime.
    pub fn trace(
        &self,
        instance: ServiceId,
        every: Duration,
        length: Duration,
    ) -> Result<(), NodeError> {
        let every_us = u32::try_from(every.as_micros()).unwrap_or(u32::MAX);
        let for_ms = u32::try_from(length.as_millis()).unwrap_or(u32::MAX);
        let request = Request::Trace { instance, every_us, for_ms };
        match self.shared.core.request(&request, &[], Some(PATIENCE))?.0 {
            Reply::Done => Ok(()),
            reply => Err(refused(&reply)),
        }
    }

    /// Has the first `bytes` of each payload be shown for traced requests to an instance, at most
    /// [`MOST_SHOWN`](trace::MOST_SHOWN), and of their answers: in [`Board::payloads`], for that
    /// long. The same goes for all other services whose payloads may be shown, so that a trace can
    /// be followed. With 0 it ends, and what was shown goes. Nothing is shown of messages on
    /// encrypted channels. For operators' programs; each use goes on record.
    ///
    /// # Errors
    /// [`NodeError::Refused`] with `ACCESS` where the node file does not list its name in
    /// `monitor.payloads`, and in a supervised service, with `NOT_FOUND` for what is no instance;
    /// those of a lost runtime.
    pub fn show_payloads(
        &self,
        instance: ServiceId,
        bytes: u32,
        length: Duration,
    ) -> Result<(), NodeError> {
        let for_ms = u32::try_from(length.as_millis()).unwrap_or(u32::MAX);
        let request = Request::Payloads { instance, bytes, for_ms };
        match self.shared.core.request(&request, &[], Some(PATIENCE))?.0 {
            Reply::Done => Ok(()),
            reply => Err(refused(&reply)),
        }
    }

    /// Gives what each end of a channel of this node counted, and those that are gone together.
    pub fn ends(&self) -> Vec<EndStats> {
        if self.is_forked() { Vec::new() } else { self.shared.core.board.ends() }
    }

    /// Gives the ends of this node's encrypted channels whose handshakes are done: who is at the
    /// other end, and in [`EndStats::session`] what may be told of the session. Never a key.
    ///
    /// ```no_run
    /// let node = ipc::Node::connect(&ipc::Config::default())?;
    /// for end in node.sessions() {
    ///     let session = end.session.expect("only such ends are given");
    ///     println!("{} {:?} {:02x?}", end.peer, session.pattern, &session.fingerprint[..8]);
    /// }
    /// # Ok::<(), ipc::NodeError>(())
    /// ```
    pub fn sessions(&self) -> Vec<EndStats> {
        let mut ends = self.ends();
        ends.retain(|end| end.session.is_some());
        ends
    }

    /// Gives what all channels of this node counted, also those that are gone.
    pub fn stats(&self) -> Stats {
        self.ends().iter().map(|end| &end.stats).collect()
    }
}

impl crate::Client {
    /// Gives what this client's channel counted, and the one that it was opened with. `depth` are
    /// the calls that wait for an answer now.
    pub fn stats(&self) -> Stats {
        if !self.node.birth.is_here() {
            return Stats::default();
        }
        let first = &self.state.first;
        let link = self.state.link.load_full();
        let mut stats = link.channel.stats();
        if !Arc::ptr_eq(first, &link) {
            stats.merge(&first.channel.stats());
        }
        stats.depth = link.outstanding();
        stats
    }
}

impl crate::Client {
    /// Tells what may be told of the session of this client's channel; nothing when the channel is
    /// plain, and in a forked child.
    pub fn session(&self) -> Option<SessionStats> {
        if !self.node.birth.is_here() {
            return None;
        }
        self.state.link.load().channel.session()
    }
}

impl crate::Server {
    /// Gives what the channels of all servers of this node counted, also those that are gone.
    pub fn stats(&self) -> Stats {
        let node = self.node();
        if !node.birth.is_here() {
            return Stats::default();
        }
        let ends = node.core.board.ends();
        ends.iter().filter(|end| end.role.serves()).map(|end| &end.stats).collect()
    }
}
