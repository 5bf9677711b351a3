//! The one thread of a node: keeps its life words, hears the runtime, and watches its peers.
//!
//! It sleeps unless something happens. While the runtime is gone, and names are to be registered
//! again or this process is its heir, it tries now and then.

use std::{
    os::fd::AsFd,
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use nix::{
    errno::Errno,
    sys::epoll::{EpollEvent, EpollTimeout},
};

use super::core::{Core, TOKEN_KICK, TOKEN_SOCKET};
use crate::{
    clock,
    control::{
        MAX_PACKET, Reply, decode_reply,
        packet::{self, Received},
        regions::RegionReply,
    },
    error::NodeError,
    trace,
};

/// First and longest pause between attempts to come back to the runtime, in ms.
const FIRST_RETRY_MS: u16 = 10;
const LAST_RETRY_MS: u16 = 2000;
const STACK: usize = 128 * 1024;

/// Starts the thread, once it keeps the life words.
pub(super) fn start(core: Arc<Core>) -> Result<JoinHandle<()>, NodeError> {
    let (tell, told) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("ipc-warden".into())
        .stack_size(STACK)
        .spawn(move || {
            let kept = core.roll.keep();
            let keeps = kept.is_ok();
            let _ = tell.send(kept);
            drop(tell);
            if keeps {
                Warden { core: &core, buffer: vec![0; MAX_PACKET], retry_ms: 0 }.run();
                core.roll.retire();
            }
        })
        .map_err(|source| NodeError::System { what: "start the warden", source })?;
    told.recv().unwrap_or(Err(NodeError::Closed))?;
    Ok(thread)
}

struct Warden<'a> {
    core: &'a Arc<Core>,
    buffer: Vec<u8>,
    /// The pause before the next attempt; 0 while connected.
    retry_ms: u16,
}

impl Warden<'_> {
    fn run(&mut self) {
        let mut events = [EpollEvent::empty(); 32];
        while !self.core.is_closed() {
            let pauses = [self.plan(), self.core.end_mute()];
            let pause = pauses.into_iter().flatten().min();
            let timeout = pause.map_or(EpollTimeout::NONE, EpollTimeout::from);
            let count = self.core.epoll.wait(&mut events, timeout).unwrap_or(0);
            for event in &events[..count] {
                match event.data() {
                    TOKEN_KICK => {
                        self.core.tell_boards();
                        self.core.speak();
                        self.core.open_wanted();
                    }
                    TOKEN_SOCKET => {
                        self.core.hearing.begin();
                        self.hear();
                        if self.core.hearing.end() {
                            self.core.alarm();
                        }
                    }
                    pid => {
                        self.core.peers.bury(pid as u32);
                        self.core.alarm();
                    }
                }
            }
        }
    }

    /// Tries to come back if the runtime is missed; says for how many ms to sleep at most.
    fn plan(&mut self) -> Option<u16> {
        if self.core.current().is_some() || !self.core.needs_runtime() {
            self.retry_ms = 0;
            return None;
        }
        if self.core.reconnect() {
            self.retry_ms = 0;
            return None;
        }
        self.retry_ms = (self.retry_ms * 2).clamp(FIRST_RETRY_MS, LAST_RETRY_MS);
        Some(self.retry_ms)
    }

    /// Takes one packet; epoll says if there are more.
    fn hear(&mut self) {
        self.core.tell_closed();
        let Some(socket) = self.core.current() else { return };
        match packet::receive(socket.as_fd(), &mut self.buffer, &self.core.closer) {
            Ok(Received::Packet(length, fds)) => match decode_reply(&self.buffer[..length]) {
                Ok((0, Reply::Incoming(introduction))) => self.core.accept(*introduction, fds),
                Ok((0, Reply::Revoked { channel })) => self.core.peers.revoke(channel),
                Ok((0, Reply::Group(group))) => self.core.hear_group(&group),
                Ok((0, Reply::Promote { instance, epoch })) => self.core.promote(instance, epoch),
                Ok((0, Reply::Yield { instance })) => self.core.yield_name(instance),
                Ok((0, Reply::Probe { instance, number })) => self.core.probed(instance, number),
                Ok((0, Reply::Region(RegionReply::Ended { region, revoked }))) => {
                    self.core.region_ended(region, revoked);
                }
                Ok((0, Reply::Trace { instance, every_us, for_ms })) => {
                    let until = clock::now_ns() + u64::from(for_ms) * 1_000_000;
                    trace::order(instance, u64::from(every_us) * 1000, until);
                }
                Ok((0, Reply::Payloads { instance, bytes, for_ms })) => {
                    self.core.let_show(instance, bytes, for_ms);
                }
                Ok((0, reply @ Reply::Ring { .. })) => self.core.take_ring(&reply, &fds),
                Ok((0, Reply::Bus(note))) => self.core.hear_of_bus(note, &fds),
                Ok((sequence, reply)) => self.core.settle(sequence, (reply, fds)),
                // A runtime that speaks nonsense is no runtime.
                Err(_) => self.core.lose(&socket),
            },
            Err(Errno::EAGAIN) => {}
            Ok(_) | Err(_) => self.core.lose(&socket),
        }
    }
}
