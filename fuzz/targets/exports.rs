//! The functions of `ipc.h` in any order, from outside and from inside callbacks, with valid
//! pointers or NULL, and any sizes and numbers: they return what the header says, leave
//! out-parameters alone when they fail, and leak nothing.
//!
//! Input: what is called, a byte each, and its arguments. See `act`. A service of another node
//! echoes beside it, in the same process.

#![no_main]

#[path = "exports/abi.rs"]
mod abi;
#[path = "exports/events.rs"]
mod events;
#[path = "exports/failover.rs"]
mod failover;
#[path = "exports/loans.rs"]
mod loans;
#[path = "exports/queues.rs"]
mod queues;
#[path = "exports/regions.rs"]
mod regions;
#[path = "exports/rights.rs"]
mod rights;
#[path = "exports/transports.rs"]
mod transports;

use std::{
    cell::RefCell,
    collections::BTreeSet,
    ffi::{CString, c_int, c_void},
    path::PathBuf,
    sync::OnceLock,
};

use abi::{Config, EINVAL, EREENTRANT, Kept, Lent, Message};
use fuzz::Input;
use ipc::{Node, Server, Status};
use kernel_services::Kernel;
use libfuzzer_sys::fuzz_target;

/// Functions called for one input, those inside callbacks included.
const CALLS: u32 = 60;
/// Milliseconds that one input may wait in all.
const WAITS: u32 = 5;
/// Largest payload: more than a few turns of a ring's slab.
const LARGEST: usize = 40_000;

thread_local! {
    static PLAY: RefCell<Play> = RefCell::new(Play::new(&[]));
}

fuzz_target!(|input: &[u8]| {
    world();
    PLAY.with(|play| *play.borrow_mut() = Play::new(input));
    loans::begin();
    regions::begin();
    while with(Play::may_go_on) {
        act(false);
    }
    // What is retained may outlive the runtime.
    while abi::shutdown() == 0 {}
    release_all();
});

/// What runs beside every input: a runtime, and a service that is not the program's.
struct World {
    directory: PathBuf,
    own: PathBuf,
    /// The service's id, and its name's.
    echo: [u32; 2],
    _kernel: Kernel,
    _node: Node,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        // Whoever starts this program says where, and takes it away: there is no end to a target.
        let base = tempfile::tempdir().expect("a place for temporary files").keep();
        let (directory, own) = (base.join("shared"), base.join("own"));
        let kernel = Kernel::embedded(&directory).expect("a runtime");
        let config = ipc::Config { runtime_dir: Some(directory.clone()), ..ipc::Config::default() };
        let node = Node::connect(&config).expect("it runs");
        let server = node.server().expect("descriptors");
        let it = server.register("echo", 0).expect("the first there");
        std::thread::spawn(move || echo(&server));
        World {
            directory,
            own,
            echo: [it.instance.get(), it.name.get()],
            _kernel: kernel,
            _node: node,
        }
    })
}

/// Answers with what it got, or with an error of its own.
fn echo(server: &Server) {
    let ended = server.run(|request| {
        // It fails when the caller is gone.
        let _ = match request.payload() {
            [0xEE, ..] => request.reply_error(Status::from_code(-1001)),
            payload => request.reply(payload),
        };
    });
    ended.expect("nobody ends it");
}

/// One input, as far as it got.
struct Play {
    input: Input,
    calls: u32,
    waits: u32,
    /// Whether the runtime in use is the program's own, without the other service.
    own: bool,
    /// Ids of services, of messages, and numbers of callbacks that are to come.
    ids: Vec<u32>,
    messages: Vec<u64>,
    awaited: BTreeSet<usize>,
    next: usize,
    kept: Kept,
}

impl Play {
    fn new(input: &[u8]) -> Play {
        Play {
            input: Input::new(input),
            calls: CALLS,
            waits: WAITS,
            own: false,
            ids: vec![0],
            messages: vec![0],
            awaited: BTreeSet::new(),
            next: 1,
            kept: Kept::new(),
        }
    }

    fn may_go_on(&mut self) -> bool {
        self.calls = self.calls.saturating_sub(1);
        self.calls > 0 && !self.input.is_empty()
    }

    fn dest(&mut self) -> u32 {
        match self.input.u8() {
            255 => self.input.u32(),
            pick => self.ids[usize::from(pick) % self.ids.len()],
        }
    }

    fn name(&mut self) -> Option<CString> {
        let bytes = match self.input.u8() % 8 {
            0 => return None,
            1 => b"echo".to_vec(),
            2 => vec![b'n'; 254 + usize::from(self.input.u8() % 3)],
            3 => {
                let length = usize::from(self.input.u8() % 32);
                self.input.bytes(length)
            }
            pick => vec![b'a' + pick],
        };
        let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        CString::new(text).ok()
    }

    fn lent(&mut self) -> Lent {
        let fill = self.input.u8();
        let length = match fill & 7 {
            0 => return Lent::Null(usize::from(self.input.u8() & 1)),
            1 => return Lent::Impossible(Box::new([fill]), usize::from(self.input.u16())),
            2 | 3 => usize::from(self.input.u16()) % LARGEST,
            _ => usize::from(self.input.u8()),
        };
        Lent::Block(vec![if fill & 8 == 0 { fill } else { 0xEE }; length].into())
    }

    /// A time to wait, 0 to 2 ms, while there is time.
    fn timeout(&mut self) -> u32 {
        let wanted = u32::from(self.input.u8() % 3).min(self.waits);
        self.waits -= wanted;
        wanted
    }

    /// Whether this is the service that takes whatever comes. Only there may a call wait for room
    /// without a limit: a service of the program's own takes nothing meanwhile.
    fn is_taken(&self, dest: u32) -> bool {
        !self.own && world().echo.contains(&dest)
    }

    /// One of the messages that are retained; NULL for none.
    fn kept(&mut self) -> *const Message {
        let pick = usize::from(self.input.u8());
        let kept = self.kept.keys().nth(pick % self.kept.len().max(1));
        kept.map_or(std::ptr::null(), |&message| std::ptr::with_exposed_provenance(message))
    }
}

/// For a moment: callbacks come here, too.
fn with<T>(what: impl FnOnce(&mut Play) -> T) -> T {
    PLAY.with(|play| what(&mut play.borrow_mut()))
}

/// Calls a function of what is there beside calls.
fn beside(what: u8) {
    match what {
        0 => match with(|play| (play.input.u8(), play.dest())) {
            (what, _) if what % 2 == 0 => abi::free_nothing(),
            (what, dest) => transports::act(what / 2 % 85 * 3, dest, &world().directory),
        },
        1 => {
            let (what, data) = with(|play| (play.input.u8(), play.lent()));
            events::act(what, &data);
        }
        2 => queues::act(&with(|play| queues::Choice {
            what: play.input.u8(),
            number: play.input.u32(),
            data: play.lent(),
        })),
        _ => match with(|play| play.input.u8()) {
            what @ 192.. => failover::act(&with(|play| failover::Choice {
                what,
                ids: [play.dest(), play.dest()],
                bytes: play.input.bytes(17),
            })),
            what => rights::act(&with(|play| rights::Choice {
                what,
                ids: [play.dest(), play.dest()],
                number: play.input.u32(),
                at: play.input.u16(),
                data: play.lent(),
            })),
        },
    }
}

/// Calls a function.
fn act(inside: bool) {
    let what = with(|play| play.input.u8());
    match what % 24 {
        0 | 1 => init(what),
        2 => {
            if !inside {
                // The end of an input has what is retained for longer.
                release_all();
            }
            let number = abi::shutdown();
            assert!(!inside || number == EREENTRANT, "ended from inside a callback: {number}");
        }
        3 | 4 => {
            let (name, flags) = with(|play| (play.name(), play.input.u8()));
            let flags = (what & 32 == 0).then_some(u32::from(flags % 5));
            let id = abi::register(name.as_deref(), flags, what & 64 == 0);
            with(|play| play.ids.extend(id));
        }
        5 => {
            abi::unregister(with(Play::dest));
        }
        6 | 7 => {
            let (name, timeout) = with(|play| (play.name(), play.timeout()));
            let wait = (what % 24 == 7).then_some(timeout);
            let id = abi::discover(name.as_deref(), wait, what & 64 == 0);
            with(|play| play.ids.extend(id));
        }
        8 => {
            let (dest, data, time) = with(|play| (play.dest(), play.lent(), play.timeout()));
            abi::call(dest, &data, [what & 32 == 0, what & 64 == 0], time);
        }
        9 => {
            let (dest, data, time) = with(|play| (play.dest(), play.lent(), play.timeout()));
            let capacity = with(|play| usize::from(play.input.u16()) % LARGEST);
            let capacity = (what & 32 == 0).then_some(capacity);
            abi::call_into(dest, &data, capacity, what & 64 == 0, time);
        }
        10 => beside(what >> 6),
        11 => send(what),
        12 | 13 => send_ex(what),
        14 => {
            let messages = with(|play| play.messages.clone());
            abi::cancel(messages[usize::from(what / 24) % messages.len()]);
        }
        15 => {
            let source = with(Play::dest);
            let source = if what & 32 == 0 { 0 } else { source };
            let handler = (what & 64 == 0).then_some(handle as abi::Handler);
            abi::receive(source, handler, (what & 128 == 0).then_some(9));
        }
        16 => answer(with(Play::kept)),
        17 => release(with(Play::kept)),
        18 => {
            let message = with(Play::kept);
            if abi::retain(message) {
                count_kept(message);
            }
        }
        19 | 20 => {
            let number = abi::poll(with(Play::timeout));
            assert!(!inside || number < 0, "polled from inside a callback: {number}");
        }
        21 => {
            abi::stopped_run();
        }
        22 => {
            if what & 32 == 0 {
                abi::stop();
            } else {
                abi::fd();
            }
        }
        _ if what & 32 == 0 => abi::ask(with(|play| i32::from(play.input.u16() as i16))),
        _ if what & 64 != 0 => regions::act(with(|play| regions::Choice {
            what: play.input.u8(),
            dest: play.dest(),
            size: usize::from(play.input.u16()),
            timeout_ms: play.timeout(),
        })),
        _ => loans::act(with(|play| loans::Choice {
            what: play.input.u8(),
            dest: play.dest(),
            size: usize::from(play.input.u16()),
            timeout_ms: play.timeout(),
            message: play.kept(),
        })),
    }
}

fn init(what: u8) {
    let world = world();
    let choice = with(|play| play.input.u8());
    let own = what & 32 != 0;
    let directory = if own { &world.own } else { &world.directory };
    let directory = CString::new(directory.as_os_str().as_encoded_bytes()).expect("a path");
    let mut config = Config {
        size: size_of::<Config>() as u32,
        flags: 1,
        runtime_dir: directory.as_ptr(),
        ring_cells: 0,
        spin_us: 0,
        max_payload: 0,
        user_data: std::ptr::null_mut(),
        reserved: [0; 4],
    };
    // Mostly as it should be: without a runtime there is not much to see.
    match choice {
        0..100 => {}
        100..110 => config.size = with(|play| play.input.u32()),
        110..120 => config.size = u32::from(choice - 100) * 40,
        120..130 => config.flags = with(|play| play.input.u32()),
        130..150 => config.flags = u32::from(choice % 8),
        150..160 => config.ring_cells = with(|play| play.input.u32()),
        160..180 => config.ring_cells = u32::from(choice) * 4,
        180..190 => config.spin_us = with(|play| play.input.u32()) % 100,
        190..200 => config.max_payload = with(|play| play.input.u64()),
        200..230 => config.max_payload = 1 << (choice % 30),
        230..235 => config.reserved[usize::from(choice % 4)] = 1,
        235..240 => config.runtime_dir = c"".as_ptr(),
        240..245 => config.runtime_dir = c"/proc/none".as_ptr(),
        _ => {
            config.user_data = std::ptr::without_provenance_mut(3);
        }
    }
    if abi::init((choice != 255).then_some(&config)) == 0 {
        with(|play| {
            play.own = own;
            if !own {
                play.ids.extend(world.echo);
            }
        });
    }
}

fn send(what: u8) {
    let (dest, data) = with(|play| (play.dest(), play.lent()));
    let calls = what & 32 == 0 && with(|play| play.is_taken(dest));
    abi::send(dest, &data, calls.then_some(done_unnumbered as abi::Callback));
}

fn send_ex(what: u8) {
    let (dest, data, priority) = with(|play| (play.dest(), play.lent(), play.input.u8()));
    let priority = if priority < 250 { u32::from(priority % 6) } else { u32::from(priority) << 24 };
    let timeout = with(Play::timeout);
    let calls = what & 32 == 0 && (timeout > 0 || with(|play| play.is_taken(dest)));
    let callback = calls.then_some(done as abi::Callback);
    let number = with(|play| {
        play.next += 1;
        play.next
    });
    if callback.is_some() {
        with(|play| play.awaited.insert(number));
    }
    let wants_id = what & 64 == 0;
    let (status, id) = abi::send_ex(dest, &data, [priority, timeout], callback, number, wants_id);
    with(|play| {
        if status < 0 {
            play.awaited.remove(&number);
        }
        play.messages.extend(id);
    });
}

/// Runs for a message.
extern "C" fn handle(message: *const Message, _user_data: *mut c_void) {
    let copy = abi::look(message);
    let how = with(|play| play.input.u8());
    if how & 1 != 0 {
        answer(message);
    }
    if how & 2 != 0 && abi::retain(message) {
        count_kept(message);
    }
    if how & 4 != 0 {
        assert_eq!(abi::reply(&raw const *copy, &Lent::Null(0)), EINVAL, "a copy is no message");
    }
    for _ in 0..how >> 6 {
        if with(Play::may_go_on) {
            act(true);
        }
    }
    if how & 8 != 0 {
        answer(message);
    }
}

/// Runs for the end of a call, once for each that was numbered.
extern "C" fn done(status: c_int, reply: *const Message, user_data: *mut c_void) {
    let number = user_data.addr();
    with(|play| assert!(play.awaited.remove(&number), "called for nothing"));
    done_unnumbered(status, reply, user_data);
}

extern "C" fn done_unnumbered(status: c_int, reply: *const Message, _user_data: *mut c_void) {
    assert_eq!(status < 0, reply.is_null(), "{status}");
    if !reply.is_null() {
        abi::look(reply);
        assert_eq!(abi::reply(reply, &Lent::Null(0)), EINVAL, "a response has no answer");
        if with(|play| play.input.u8()) & 1 != 0 && abi::retain(reply) {
            count_kept(reply);
        }
    }
    if with(Play::may_go_on) {
        act(true);
    }
}

fn answer(message: *const Message) {
    let (how, data) = with(|play| (play.input.u8(), play.lent()));
    if how & 1 == 0 {
        abi::reply(message, &data);
    } else {
        abi::reply_error(message, -i32::from(how >> 1) * if how & 2 == 0 { 1 } else { 20 });
    }
}

fn count_kept(message: *const Message) {
    with(|play| *play.kept.entry(message.expose_provenance()).or_default() += 1);
}

fn release_all() {
    for (message, times) in with(|play| std::mem::take(&mut play.kept)) {
        let message = std::ptr::with_exposed_provenance::<Message>(message);
        abi::look(message);
        (0..times).for_each(|_| abi::release(message));
    }
}

fn release(message: *const Message) {
    abi::release(message);
    with(|play| {
        let address = message.expose_provenance();
        if let Some(times) = play.kept.get_mut(&address) {
            *times -= 1;
            if *times == 0 {
                play.kept.remove(&address);
            }
        }
    });
}
