//! Requests go through here to their handler, once each.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Answer, Known, Limits, Log, LogError, Memory, RequestKey, Window, log::recover};
use crate::{
    Request, Server, ServiceId,
    error::{CallError, Status},
};

impl Memory for Infallible {
    fn size(&self) -> usize {
        match *self {}
    }

    fn read(&self, _: usize, _: &mut [u8]) -> Result<(), LogError> {
        match *self {}
    }

    fn write(&self, _: usize, _: &[u8]) -> Result<(), LogError> {
        match *self {}
    }

    fn load(&self, _: usize) -> Result<u64, LogError> {
        match *self {}
    }

    fn store(&self, _: usize, _: u64) -> Result<(), LogError> {
        match *self {}
    }
}

/// Lets each request through to its handler once, and answers repeated ones as the first.
///
/// With memory that the successor can read, what was answered is there after this process died.
/// Any number of threads may use it; no lock is held while a handler runs.
///
/// ```no_run
/// use ipc::once::{Gate, Limits};
///
/// # fn of(server: &ipc::Server) -> Result<(), ipc::CallError> {
/// let gate = Gate::new(Limits::default());
/// server.run(|request| {
///     // A caller that is gone needs no answer.
///     let _ = gate.handle(&request, |payload| Ok(payload.to_vec()));
/// })
/// # }
/// ```
#[derive(Debug)]
pub struct Gate<M = Infallible> {
    state: Mutex<State<M>>,
}

#[derive(Debug)]
struct State<M> {
    window: Window,
    log: Option<Log<M>>,
    /// Whose the open channels are, once it is told of those that end.
    channels: Option<HashMap<u64, ServiceId>>,
}

impl Gate {
    /// Makes one that remembers in this process only.
    pub fn new(limits: Limits) -> Gate {
        Gate { state: Mutex::new(State::new(Window::new(limits), None)) }
    }
}

impl<M: Memory> Gate<M> {
    /// Makes one that writes down what it answers in `memory`, and knows what is in that of a
    /// predecessor, which must write no more.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn with_log(
        limits: Limits,
        memory: M,
        predecessor: Option<&impl Memory>,
    ) -> Result<Gate<M>, LogError> {
        let window = match predecessor {
            Some(memory) => recover(memory, limits)?,
            None => Window::new(limits),
        };
        let mut log = Log::create(memory)?;
        // The next one is to find it as well, though this one dies before its first request.
        for (key, answer) in window.records() {
            log.begin(key)?;
            if let Some(answer) = answer {
                log.finish(key, answer)?;
            }
        }
        Ok(Gate { state: Mutex::new(State::new(window, Some(log))) })
    }

    /// Has the gate learn of channels that end, so that callers which are gone make room for
    /// others: without it, or [`gone`](Gate::gone), as many sessions of callers are known as
    /// [`Limits`] say, and no other is let in. Returns whether the server tells it: it tells one
    /// only, by [`Server::on_gone`].
    ///
    /// ```no_run
    /// use std::sync::Arc;
    /// use ipc::once::{Gate, Limits};
    ///
    /// # fn of(server: &ipc::Server) {
    /// let gate = Arc::new(Gate::new(Limits::default()));
    /// assert!(gate.follow(server));
    /// # }
    /// ```
    pub fn follow(self: &Arc<Self>, server: &Server) -> bool
    where
        M: Send + 'static,
    {
        self.lock().channels.get_or_insert_default();
        let gate = Arc::downgrade(self);
        server.on_gone(move |channel| {
            if let Some(gate) = gate.upgrade() {
                gate.gone(channel);
            }
        })
    }

    /// Hears that a [channel](Request::channel) has ended, for who has another use for
    /// [`Server::on_gone`]. A caller without any other may be forgotten when there is no room.
    pub fn gone(&self, channel: u64) {
        let mut state = self.lock();
        let channels = state.channels.get_or_insert_default();
        let Some(client) = channels.remove(&channel) else { return };
        if !channels.values().any(|other| *other == client) {
            state.window.depart(client);
        }
    }

    /// Carries a request out and answers it; a repeated one gets the answer of the first. One of
    /// which it is not known whether it was carried out ends in [`Status::MAYBE`].
    ///
    /// The answer is written down before it is sent.
    ///
    /// # Errors
    /// Those of [`Request::reply`]. A caller for whom there is no room is answered
    /// [`Status::FULL`]. An answer that is too long for the log is sent, and the
    /// successor knows only that the request was begun.
    pub fn handle(
        &self,
        request: &Request<'_>,
        effect: impl FnOnce(&[u8]) -> Answer,
    ) -> Result<(), CallError> {
        let key = request.key();
        if let Some(channels) = &mut self.lock().channels {
            channels.entry(request.channel()).or_insert(key.client);
        }
        let answer = self.carry_out(key, || effect(request.payload()));
        match answer {
            _ if request.is_one_way() => Ok(()),
            Ok(payload) => request.reply(&payload),
            Err(status) => request.reply_error(status),
        }
    }

    /// Like [`handle`](Gate::handle), for who answers by other means.
    ///
    /// # Errors
    /// The recorded status, or that of the effect; [`Status::MAYBE`]; [`Status::FULL`] when there
    /// is no room for another caller, and [`Status::IO`] when nothing can be written down any more:
    /// it was not carried out.
    pub fn carry_out(&self, key: RequestKey, effect: impl FnOnce() -> Answer) -> Answer {
        if let Some(answer) = self.enter(key) {
            return answer;
        }
        let answer = effect();
        self.lock().finish(key, &answer);
        answer
    }

    /// Forgets a caller whose process has ended: it sends nothing again. It is known by what
    /// [`Request::key`] names its sender.
    pub fn leave(&self, client: ServiceId) {
        self.lock().window.leave(client);
    }

    /// Notes that the request is begun; nothing is returned if it is to be carried out.
    fn enter(&self, key: RequestKey) -> Option<Answer> {
        let mut state = self.lock();
        match state.window.look(&key) {
            Known::Done(answer) => return Some(answer.clone()),
            Known::Begun | Known::Forgotten => return Some(Err(Status::MAYBE)),
            Known::New => {}
        }
        if !state.window.begin(key) {
            return Some(Err(Status::FULL));
        }
        // What the successor would not know of is not carried out.
        if let Some(log) = &mut state.log
            && log.begin(&key).is_err()
        {
            state.window.finish(key, Err(Status::IO));
            return Some(Err(Status::IO));
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, State<M>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M> State<M> {
    fn new(window: Window, log: Option<Log<M>>) -> State<M> {
        State { window, log, channels: None }
    }
}

impl<M: Memory> State<M> {
    fn finish(&mut self, key: RequestKey, answer: &Answer) {
        if let Some(log) = &mut self.log {
            // What is too long stays begun there: "maybe" is true of it.
            let _ = log.finish(&key, answer);
        }
        self.window.finish(key, answer.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Priority,
        sync::{AtomicU64, Ordering},
    };

    /// Memory of two that are never there at the same time.
    #[derive(Debug)]
    struct Words(Vec<AtomicU64>);

    impl Words {
        fn new() -> Words {
            Words((0..512).map(|_| AtomicU64::new(0)).collect())
        }
    }

    impl Memory for &Words {
        fn size(&self) -> usize {
            self.0.len() * 8
        }

        fn read(&self, at: usize, into: &mut [u8]) -> Result<(), LogError> {
            for (offset, byte) in into.iter_mut().enumerate() {
                let word = self.0[(at + offset) / 8].load(Ordering::Relaxed);
                *byte = word.to_le_bytes()[(at + offset) % 8];
            }
            Ok(())
        }

        fn write(&self, at: usize, bytes: &[u8]) -> Result<(), LogError> {
            for (offset, byte) in bytes.iter().enumerate() {
                let word = &self.0[(at + offset) / 8];
                let mut whole = word.load(Ordering::Relaxed).to_le_bytes();
                whole[(at + offset) % 8] = *byte;
                word.store(u64::from_le_bytes(whole), Ordering::Relaxed);
            }
            Ok(())
        }

        fn load(&self, at: usize) -> Result<u64, LogError> {
            Ok(self.0[at / 8].load(Ordering::Acquire))
        }

        fn store(&self, at: usize, word: u64) -> Result<(), LogError> {
            self.0[at / 8].store(word, Ordering::Release);
            Ok(())
        }
    }

    fn key(id: u64) -> RequestKey {
        RequestKey::new(ServiceId::new(7), id, Priority::Normal)
    }

    #[test]
    fn a_repeated_request_is_answered_and_not_carried_out() {
        let gate = Gate::new(Limits::default());
        let count = AtomicU64::new(0);
        let effect = || Ok(count.fetch_add(1, Ordering::Relaxed).to_le_bytes().to_vec());
        let first = gate.carry_out(key(1), effect);
        assert_eq!(gate.carry_out(key(1), effect), first);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        let refused = gate.carry_out(key(2), || Err(Status::from_code(-1000)));
        assert_eq!(refused, Err(Status::from_code(-1000)));
        assert_eq!(gate.carry_out(key(2), || Ok(vec![])), refused, "a refusal is an answer");
        gate.leave(ServiceId::new(7));
        gate.carry_out(key(1), effect).expect("it is another caller's");
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_request_that_comes_again_while_it_is_carried_out_may_have_been() {
        let gate = Gate::new(Limits::default());
        let outer = gate.carry_out(key(1), || {
            assert_eq!(gate.carry_out(key(1), || Ok(vec![])), Err(Status::MAYBE));
            Ok(b"outer".to_vec())
        });
        assert_eq!(outer, Ok(b"outer".to_vec()));
    }

    #[test]
    fn three_in_a_row_know_what_the_first_answered() {
        let memories = [Words::new(), Words::new(), Words::new()];
        let mut before: Option<&Words> = None;
        for (place, memory) in memories.iter().enumerate() {
            let gate = Gate::with_log(Limits::default(), memory, before.as_ref()).expect("a log");
            let answers = [1, 2, 3].map(|id| gate.carry_out(key(id), || Ok(vec![place as u8])));
            assert_eq!(answers, [Ok(vec![0]), Ok(vec![0]), Ok(vec![0])]);
            before = Some(memory);
        }
        let last = Gate::with_log(Limits::default(), &Words::new(), before.as_ref()).map(drop);
        assert_eq!(last, Ok(()));
    }

    #[test]
    fn who_died_in_the_middle_leaves_a_maybe() {
        let (first, second) = (Words::new(), Words::new());
        let gate = Gate::with_log(Limits::default(), &first, None::<&&Words>).expect("a log");
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            gate.carry_out(key(1), || panic!("the process dies"))
        }));
        assert!(caught.is_err());
        let next = Gate::with_log(Limits::default(), &second, Some(&&first)).expect("a log");
        assert_eq!(next.carry_out(key(1), || Ok(vec![])), Err(Status::MAYBE));
        assert_eq!(next.carry_out(key(2), || Ok(vec![])), Ok(vec![]), "this one was not begun");
    }
}
