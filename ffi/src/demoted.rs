//! Names that go to another: who lets go of one is told, inside ipc_poll and ipc_run.

#![allow(unsafe_code)] // exports, and calls into C

use std::{
    ffi::{c_int, c_void},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipc_core::{Server, ServiceId};

use crate::{
    boundary::{UserData, guard},
    error::IPC_OK,
    message::run_callback,
    runtime,
    types::DemotedHandler,
};

/// Has handler called when an instance of this process has let go of its name, since the name goes
/// to another: inside ipc_poll or ipc_run, once nothing of what it took is being handled, or a
/// second is over, and before the next one serves, which waits until it has returned. A service
/// whose store one process at a time has open, as a file with a lock, closes it here, and opens it
/// when a request comes again. A handler replaces the one before; NULL removes it, though another
/// thread may still be running it.
///
/// It has what is left of two seconds, and so has the program to come to ipc_poll: one that takes
/// longer is passed over. ipcd kills it then, if it supervises it; any other loses its channels,
/// regions and tokens, and hears of it when it comes to ipc_poll. So a thread that alone polls must
/// not call ipc_trigger_failover for a name that its process serves. The handler is not called
/// where the process dies before it can let go, and not by ipc_unregister_service and ipc_shutdown.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_on_demoted(handler: DemotedHandler, user_data: *mut c_void) -> c_int {
    guard(|| {
        let runtime = runtime::current()?;
        let user_data = UserData(user_data);
        runtime.demotions.state().handler = handler.map(|function| Handler { function, user_data });
        let generation = runtime.generation;
        // Set once for a server, and found by its number: what it had in hand would hold it.
        runtime.server.on_demoted(move |instance, epoch| tell(generation, instance, epoch));
        Ok(IPC_OK)
    })
}

/// Longest time until the program has come round: then it is passed over in any case.
const PATIENCE: Duration = Duration::from_secs(2);

/// A handler with what it is called with.
#[derive(Clone, Copy, Debug)]
struct Handler {
    function: unsafe extern "C" fn(u32, u64, *mut c_void),
    user_data: UserData,
}

impl Handler {
    fn run(self, demotion: Demotion) {
        run_callback(|| {
            let (instance, epoch) = (demotion.instance.get(), demotion.epoch);
            // SAFETY: C gave this function for this purpose.
            unsafe { (self.function)(instance, epoch, self.user_data.0) }
        });
    }
}

/// An instance that has let go of its name, of which the program is to hear.
#[derive(Clone, Copy, Debug)]
struct Demotion {
    instance: ServiceId,
    epoch: u64,
}

/// What a runtime's program is to hear of names that went to others: at most one thing of each of
/// its instances.
#[derive(Debug, Default)]
pub(crate) struct Demotions {
    state: Mutex<State>,
    /// Something was heard.
    heard: Condvar,
}

#[derive(Debug, Default)]
struct State {
    handler: Option<Handler>,
    due: Vec<Demotion>,
    /// Those of which it hears just now.
    telling: Vec<ServiceId>,
}

impl State {
    fn is_over(&self, instance: ServiceId) -> bool {
        !self.telling.contains(&instance) && self.due.iter().all(|it| it.instance != instance)
    }
}

/// In the thread in which an instance lets go: has the loop tell, and waits until it has.
fn tell(generation: u64, instance: ServiceId, epoch: u64) {
    let Ok(runtime) = runtime::current() else { return };
    if runtime.generation == generation {
        let demotions = Arc::clone(&runtime.demotions);
        demotions.note(&runtime.server, Demotion { instance, epoch });
        // The runtime may end meanwhile.
        drop(runtime);
        demotions.wait(instance);
    }
}

impl Demotions {
    fn note(self: &Arc<Self>, server: &Server, demotion: Demotion) {
        let mut state = self.state();
        if state.handler.is_none() {
            return;
        }
        if let Some(due) = state.due.iter_mut().find(|it| it.instance == demotion.instance) {
            // Its loop has not come round since the last one.
            *due = demotion;
            return;
        }
        state.due.push(demotion);
        drop(state);
        let demotions = Arc::clone(self);
        if server.defer(move || demotions.tell_one()).is_err() {
            // A loop that is so far behind does not come round in time either.
            self.state().due.retain(|it| it.instance != demotion.instance);
        }
    }

    /// In the loop: tells of the first that is due.
    fn tell_one(&self) {
        let (handler, demotion) = {
            let mut state = self.state();
            if state.due.is_empty() {
                return;
            }
            let demotion = state.due.remove(0);
            state.telling.push(demotion.instance);
            (state.handler, demotion)
        };
        if let Some(handler) = handler {
            handler.run(demotion);
        }
        let mut state = self.state();
        let place = state.telling.iter().position(|it| *it == demotion.instance);
        if let Some(place) = place {
            state.telling.swap_remove(place);
        }
        drop(state);
        self.heard.notify_all();
    }

    fn wait(&self, instance: ServiceId) {
        let is_due = |state: &mut State| !state.is_over(instance);
        // Whether it is over, or the time is, is the same here: the runtime has a clock of its own.
        let _over = self.heard.wait_timeout_while(self.state(), PATIENCE, is_due);
    }

    /// Forgets all: nobody waits any more.
    pub(crate) fn clear(&self) {
        let mut state = self.state();
        state.handler = None;
        state.due.clear();
        state.telling.clear();
        drop(state);
        self.heard.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
