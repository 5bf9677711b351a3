//! Rules, quotas, tokens and the audit log, with the real runtime and real processes.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use ipc::{
    CallError, Client, Node, NodeError, ServiceId, Spin, Status,
    control::{
        self, MAX_PACKET, Reply, Request,
        closer::Closer,
        decode_reply, encode_request,
        packet::{self, Received},
    },
};
use kernel_services::audit;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::Signal,
        socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
    },
    unistd::geteuid,
};
use serde_json::{Value, json};
use tests::{
    Ipcd, LONG, World,
    ipcd::{open_to_all, signal},
    proc, wait_for, wait_until,
};

const IPCD: &str = env!("CARGO_BIN_EXE_ipcd-under-test");
const PROBE: &str = env!("CARGO_BIN_EXE_probe");
const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

const CALL: u64 = 1;
const SEND: u64 = 1 << 1;

fn start(node: &str) -> (World, Ipcd) {
    let world = World::without_runtime(ACTOR);
    let ipcd = Ipcd::start(IPCD, world.directory(), node);
    (world, ipcd)
}

/// A service that serves its own name by one of the probe's ways. `more` are lines of its table.
fn service(name: &str, way: &str, more: &str) -> String {
    format!(
        "[service.{name}]\nexecutable = \"{PROBE}\"\narguments = [\"{way}\", \"{name}\"]\n{more}\n"
    )
}

fn rule(from: &str, to: &str, verb: &str) -> String {
    format!("[[rule]]\nfrom = \"{from}\"\nto = \"name:{to}\"\n{verb}\n")
}

fn ready(ipcd: &Ipcd, names: &[&str]) {
    for name in names {
        ipcd.wait(name, "ready");
    }
}

fn tell(client: &Client, what: &str) -> String {
    let answer = client.call(what.as_bytes(), LONG).expect("an answer");
    String::from_utf8(answer.clone()).expect("text")
}

fn open(node: &Node, name: &str) -> Result<Client, NodeError> {
    node.client(node.wait_service(name, Some(LONG))?)
}

/// The records of a kind, once there are some.
fn records(directory: &Path, kind: &str) -> Vec<Value> {
    let mut found = Vec::new();
    wait_until(&format!("{kind} is on record"), || {
        let text = fs::read_to_string(directory.join("audit.log")).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        found = lines.filter(|line| line["kind"] == kind).collect();
        !found.is_empty()
    });
    found
}

#[test]
fn services_talk_where_a_rule_lets_them_until_it_is_gone() {
    let services = service("api", "relay", "") + &service("store", "serve", "");
    let with =
        services.clone() + &rule("service:api", "store", "allow = [\"call\"]") + &open_to_all();
    let (world, ipcd) = start(&with);
    ready(&ipcd, &["api", "store"]);
    let node = world.node(Spin::Never);
    let api = open(&node, "api").expect("a rule");
    assert_eq!(tell(&api, "call store"), "IPC_OK");
    let told = |ipcd: &Ipcd| {
        ipcd.ask(&json!({
            "do": "policy", "from": "service:api", "to": "name:store", "operation": "call",
        }))
    };
    let ruling = told(&ipcd);
    assert_eq!((&ruling["allowed"], &ruling["rule"]), (&json!(true), &json!(1)), "{ruling}");
    let unknown = ipcd.ask(&json!({
        "do": "policy", "from": "service:apj", "to": "name:store", "operation": "call",
    }));
    assert_eq!(unknown["error"], "no service is called \"apj\"; see `ipctl status`");
    // The channel stays open between the calls; what is not allowed any more closes it.
    ipcd.reload(&(services.clone() + &open_to_all()));
    ipcd.hear("the node file is taken");
    wait_until("the channel is closed", || tell(&api, "call store") == "IPC_EACCES");
    let ruling = told(&ipcd);
    assert_eq!((&ruling["allowed"], &ruling["rule"]), (&json!(false), &json!(null)), "{ruling}");
    let [revoked] = &records(world.directory(), "revoked")[..] else { panic!("once") };
    assert!(revoked["subject"].as_str().is_some_and(|it| it.starts_with("service api ")));
    assert_eq!((&revoked["object"], &revoked["operation"]), (&json!("name store"), &json!("call")));
    ipcd.reload(&with);
    wait_until("it may again", || tell(&api, "call store") == "IPC_OK");
    // Who came from outside is shut out likewise, by a command.
    let answer = |ipcd: &Ipcd, node: &str| {
        tests::ipcd::write(world.directory(), node);
        ipcd.ask(&json!({ "do": "reload" }))
    };
    assert!(answer(&ipcd, &services)["change"].is_string());
    wait_until("the channel is closed", || api.call(b"call store", LONG).is_err());
    let refused = open(&world.node(Spin::Never), "api").map(drop);
    assert!(matches!(refused, Err(NodeError::Forbidden)), "{refused:?}");
    let (status, said) = ipcd.stop();
    assert_eq!(status.code(), Some(0), "{said:#?}");
    audit::verify(world.directory()).expect("it holds");
}

#[test]
fn who_may_only_send_may_not_call() {
    let user = nix::unistd::geteuid();
    let node = service("store", "serve", "")
        + &rule(&format!("user:{user}"), "store", "allow = [\"send\"]");
    let (world, ipcd) = start(&node);
    ipcd.wait("store", "ready");
    let node = world.node(Spin::Never);
    let store = open(&node, "store").expect("a rule");
    let refused = store.call(b"hello", LONG);
    assert!(matches!(refused, Err(CallError::Remote(Status::ACCESS))), "{refused:?}");
    let id = node.discover("store").expect("served");
    let may = [0, 1].map(|operation| node.may(ServiceId::NONE, id, operation).expect("told"));
    assert_eq!(may, [false, true]);
}

#[test]
fn a_squatter_gets_no_supervised_name_though_it_comes_first() {
    let (world, ipcd) = start(&(service("api", "relay", "") + &open_to_all()));
    ipcd.wait("api", "ready");
    assert_eq!(ipcd.act("stop", "api"), None);
    let node = world.node(Spin::Never);
    let refused = node.server().expect("a server").register("api", 0);
    let Err(error @ NodeError::Owned(_)) = refused else { panic!("{refused:?}") };
    assert_eq!(error.status(), Status::ACCESS);
    assert!(error.to_string().contains("choose another name"), "{error}");
    assert_eq!(ipcd.act("start", "api"), None);
    let api = open(&node, "api").expect("a rule");
    // Nor does a service take what it does not provide.
    assert_eq!(tell(&api, "serve other"), "IPC_EACCES");
    node.server().expect("a server").register("other", 0).expect("it is free");
    wait_until("both are on record", || records(world.directory(), "denial").len() == 2);
    let denials = records(world.directory(), "denial");
    assert!(denials.iter().all(|it| it["operation"] == "serve" && it["verdict"] == false));
}

#[test]
fn one_service_s_flood_takes_no_share_of_another_s() {
    let greedy = "quota = { channels = 3, names = 1, messages_per_second = 500 }";
    let node = service("greedy", "relay", greedy)
        + &service("modest", "relay", "")
        + &service("store", "serve", "")
        + &rule("any", "store", "allow = [\"call\"]")
        + &open_to_all();
    let (world, ipcd) = start(&node);
    ready(&ipcd, &["greedy", "modest", "store"]);
    let node = world.node(Spin::Never);
    let [greedy, modest] = ["greedy", "modest"].map(|name| open(&node, name).expect("a rule"));
    // What is closed is given back: each time it gets as far.
    for _ in 0..5 {
        wait_for("what it can open", &"3 IPC_EQUOTA".to_owned(), || tell(&greedy, "open store 9"));
        assert_eq!(tell(&modest, "open store 9"), "9 IPC_OK");
    }
    let refused: usize = tell(&greedy, "spam 5000").parse().expect("a number");
    assert!(refused > 0);
    assert_eq!(tell(&modest, "spam 5000"), "0");
    assert_eq!(tell(&modest, "call store"), "IPC_OK");
    let (status, said) = ipcd.stop();
    assert_eq!(status.code(), Some(0));
    // At its end ipcd asserts that nobody holds anything.
    assert!(!said.iter().any(|line| line.contains("panicked")), "{said:#?}");
}

#[test]
fn one_user_s_flood_takes_no_share_of_another_user_s() {
    if !geteuid().is_root() {
        eprintln!("skipped: another user needs root");
        return;
    }
    // Where another user can read it; by another process, as a child of ours could hold the copy
    // open for writing.
    let open_to_read = tempfile::tempdir().expect("a directory");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(open_to_read.path(), mode).expect("ours");
    let program = open_to_read.path().join("probe");
    let copied = std::process::Command::new("cp").arg(PROBE).arg(&program).status().expect("run");
    assert!(copied.success());
    let greedy = format!(
        "[service.greedy]\nexecutable = \"{}\"\narguments = [\"relay\", \"greedy\"]\n\
         user = \"nobody\"\ndirectory = \"/\"\n",
        program.display()
    );
    let node = greedy
        + &service("modest", "relay", "")
        + &service("store", "serve", "")
        + &rule("any", "store", "allow = [\"call\"]")
        + &open_to_all()
        + "[limits.user]\nchannels = 10\nmessages_per_second = 500\n";
    let (world, ipcd) = start(&node);
    ready(&ipcd, &["greedy", "modest", "store"]);
    let uid = |name: &str| {
        let place = format!("/proc/{}", ipcd.pid_of(name));
        std::os::unix::fs::MetadataExt::uid(&fs::metadata(place).expect("it lives"))
    };
    assert_ne!(uid("greedy"), uid("modest"));
    let node = world.node(Spin::Never);
    let [greedy, modest] = ["greedy", "modest"].map(|name| open(&node, name).expect("a rule"));
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let (mut rounds, mut refused) = (0, 0);
            while !over.load(std::sync::atomic::Ordering::Relaxed) || rounds == 0 {
                // What is closed is given back a little later.
                let opened = tell(&greedy, "open store 99");
                let (count, status) = opened.split_once(' ').expect("two words");
                assert_eq!(status, "IPC_EQUOTA");
                assert!(count.parse::<u32>().expect("a number") <= 10);
                refused += tell(&greedy, "spam 5000").parse::<u32>().expect("a number");
                rounds += 1;
            }
            refused
        });
        for _ in 0..5 {
            // Of its own user's ten, which has a few open here.
            assert_eq!(tell(&modest, "open store 5"), "5 IPC_OK");
            assert_eq!(tell(&modest, "spam 20"), "0");
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(flood.join().expect("it ended") > 0, "messages over the rate are refused");
    });
    let (status, said) = ipcd.stop();
    assert_eq!(status.code(), Some(0));
    assert!(!said.iter().any(|line| line.contains("panicked")), "{said:#?}");
}

/// Connects, and says nothing.
fn loris(directory: &Path) -> Option<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a socket");
    let address = UnixAddr::new(&directory.join("ipcd.sock")).expect("short");
    match connect(socket.as_raw_fd(), &address) {
        Ok(()) => Some(socket),
        Err(Errno::EAGAIN) => None,
        Err(errno) => panic!("{errno}"),
    }
}

#[test]
fn a_thousand_who_connect_and_say_nothing_keep_no_service_from_its_work() {
    let node = service("api", "relay", "backoff = { first = \"1ms\", most = \"1ms\" }")
        + &service("store", "serve", "")
        + &rule("service:api", "store", "allow = [\"call\"]")
        + &open_to_all()
        + "[limits.user]\nhalf_open = 50\n";
    let (world, ipcd) = start(&node);
    ready(&ipcd, &["api", "store"]);
    let node = world.node(Spin::Never);
    let api = open(&node, "api").expect("a rule");
    assert_eq!(tell(&api, "call store"), "IPC_OK");
    let before = proc::holdings(ipcd.pid());
    let mut crowd = Vec::new();
    while crowd.len() < 1000 {
        crowd.extend(loris(world.directory()));
    }
    // All but 50 are turned away at once; and there is no place for one who would greet.
    let cut = |socket: &OwnedFd| {
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    };
    wait_until("most are cut", || crowd.iter().filter(|it| cut(it)).count() >= 950);
    // A service that is killed comes back meanwhile, and is called as ever.
    let pid = ipcd_pid(&node, "store");
    signal(pid, Signal::SIGKILL);
    let mut back = false;
    wait_until("it is back", || {
        back = tell(&api, "call store") == "IPC_OK" && ipcd_pid(&node, "store") != pid;
        back
    });
    wait_until("all are cut", || crowd.iter().all(cut));
    drop(crowd);
    let newcomer = world.node(Spin::Never);
    open(&newcomer, "api").expect("there is room");
    drop(newcomer);
    wait_until("nothing is kept of them", || proc::holdings(ipcd.pid()).is_within(&before));
}

/// Waits for what the runtime says next on a raw connection.
fn hear(socket: &OwnedFd) -> (u32, Reply) {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::NONE).expect("polls");
    let mut buffer = [0; MAX_PACKET];
    let closer = Closer::new().expect("a closer");
    match packet::receive(socket.as_fd(), &mut buffer, &closer) {
        Ok(Received::Packet(length, _)) => decode_reply(&buffer[..length]).expect("a reply"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_is_kept_for_who_held_it_over_a_restart() {
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let server = world.server("echo", &[]);
    let entry = |node: &Node| node.list().expect("a list").into_iter().find(|it| it.rank == 0);
    let before = entry(&world.node(Spin::Never)).expect("it is served");
    signal(server.pid(), Signal::SIGSTOP);
    runtime.kill();
    let _runtime = world.runtime();
    let thief = loris(world.directory()).expect("a connection");
    let say = |sequence, request: &Request| {
        let bytes = encode_request(sequence, request);
        packet::send(thief.as_fd(), &bytes, &[]).expect("sent");
    };
    say(1, &Request::Hello { asymmetric: false, encrypts: false, key: [0; 32] });
    assert!(matches!(hear(&thief), (1, Reply::Welcome { .. })));
    // It claims what is not its own, in vain, and waits for who held it.
    let (flags, ticket, name) = (control::SERVICE_EXCLUSIVE, [7; 32], "echo".to_owned());
    let (claim_instance, claim_name) = (before.instance.get(), before.name_id.get());
    say(2, &Request::Register { flags, claim_instance, claim_name, ticket, name });
    say(3, &Request::Ping);
    assert!(matches!(hear(&thief), (3, Reply::State { services: 0, .. })));
    signal(server.pid(), Signal::SIGCONT);
    assert_eq!(hear(&thief), (2, Reply::Refused(Status::EXISTS)));
    let after = entry(&world.node(Spin::Never)).expect("it is served");
    assert_eq!(
        (after.instance, after.name_id, after.pid),
        (before.instance, before.name_id, server.pid())
    );
}

/// The process that serves a name, as the runtime says; 0 for none.
fn ipcd_pid(node: &Node, name: &str) -> u32 {
    let entries = node.list().expect("a list");
    entries.iter().find(|entry| entry.name == name).map_or(0, |entry| entry.pid)
}

#[test]
fn tokens_count_for_whom_and_with_whom_they_say_until_they_are_revoked() {
    let world = World::new(ACTOR);
    let [service, client, thief] = [(); 3].map(|()| world.node(Spin::Never));
    let server = service.server().expect("a server");
    server.register("vault", 0).expect("registered");
    let vault = service.discover("vault").expect("served");
    let token = client.request_token(vault, CALL | SEND, 60_000).expect("a token");
    assert_eq!(service.authenticate(client.id(), &token).expect("it counts"), CALL | SEND);
    let refused = [
        ("another presenter", service.authenticate(thief.id(), &token)),
        ("another audience", thief.authenticate(client.id(), &token)),
    ];
    for (what, refused) in refused {
        assert!(matches!(refused, Err(NodeError::Refused(Status::AUTH))), "{what}: {refused:?}");
    }
    // Whoever has the key verifies it alone; and it outlives the runtime that issued it.
    let key = client.public_key().expect("a key");
    let key = kernel_services::token::PublicKey::from_bytes(&key).expect("a key");
    let parsed = kernel_services::token::AuthToken::from_bytes(&token).expect("a token");
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    kernel_services::token::verify(&key, &parsed, client.id(), &[vault], now).expect("it counts");
    let file = fs::metadata(world.directory().join("token.key")).expect("a file");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&file.permissions()) & 0o777, 0o600);
    // It ends with its subject.
    let id = client.id();
    drop(client);
    wait_until("it is gone", || {
        matches!(service.authenticate(id, &token), Err(NodeError::Refused(Status::AUTH)))
    });
}

#[test]
fn what_a_token_permits_is_cut_to_the_rules_of_the_moment() {
    let user = nix::unistd::geteuid();
    let services = service("api", "relay", "");
    let both = rule(&format!("user:{user}"), "api", "allow = [\"call\", \"send\"]");
    let (world, ipcd) = start(&(services.clone() + &both));
    ipcd.wait("api", "ready");
    let node = world.node(Spin::Never);
    let api = node.discover("api").expect("served");
    let all = node.request_token(api, CALL | SEND | 1 << 5, 60_000).expect("a token");
    let granted = kernel_services::token::AuthToken::from_bytes(&all).expect("a token").permissions;
    assert_eq!(granted, CALL | SEND | 1 << 5, "an operator may administer");
    ipcd.reload(&services);
    ipcd.hear("the node file is taken");
    wait_until("it may not", || !node.may(ServiceId::NONE, api, 0).expect("told"));
    let refused = node.request_token(api, CALL, 60_000);
    assert!(matches!(refused, Err(NodeError::Refused(Status::ACCESS))), "{refused:?}");
    let tokens = records(world.directory(), "token");
    assert_eq!(tokens[0]["operation"], "call, send, admin");
}

#[test]
fn what_happens_is_on_record_beyond_the_death_of_ipcd() {
    let node = service("api", "relay", "backoff = { first = \"1ms\", most = \"1ms\" }")
        + &service("store", "serve", "")
        + &open_to_all();
    let (world, ipcd) = start(&node);
    ready(&ipcd, &["api", "store"]);
    let directory = world.directory();
    let api = open(&world.node(Spin::Never), "api").expect("a rule");
    assert_eq!(tell(&api, "call store"), "IPC_EACCES");
    let pid = ipcd.pid_of("store");
    signal(pid, Signal::SIGKILL);
    ipcd.wait_replaced("store", pid);
    assert_eq!(ipcd.act("restart", "store"), None);
    ipcd.reload(&node);
    for kind in ["opened", "registered", "denial", "grant", "died", "restarted", "admin", "reload"]
    {
        records(directory, kind);
    }
    let user = nix::unistd::geteuid();
    let admin = &records(directory, "admin")[0];
    assert!(admin["subject"].as_str().is_some_and(|it| it.starts_with(&format!("user {user} "))));
    assert_eq!(
        (&admin["operation"], &admin["object"]),
        (&json!("restart"), &json!("service store"))
    );
    ipcd.kill();
    let found = audit::verify(directory).expect("it holds");
    let ipcd = Ipcd::again(IPCD, directory);
    wait_until("it is opened again", || records(directory, "opened").len() == 2);
    assert!(audit::verify_to(directory, found.head).expect("it goes on").count > found.count);
    let (status, _) = ipcd.stop();
    assert_eq!(status.code(), Some(0));
    // One letter, by somebody's hand.
    let path = directory.join("audit.log");
    let text = fs::read_to_string(&path).expect("a log");
    fs::write(&path, text.replacen("IPC_", "ipc_", 1).replacen("denial", "grant", 1))
        .expect("ours");
    assert!(matches!(audit::verify(directory), Err(audit::Bad::Line { .. })));
}
