//! Greeting, names, replicas, waits, pages.

use ipc::{
    ServiceId, Status,
    control::{MAX_PACKET, Reply, Request, SERVICE_EXCLUSIVE, encode_request},
};

use crate::peer::{Peer, register, runtime, until};

#[test]
fn a_greeting_is_answered_with_an_id_of_its_own() {
    let runtime = runtime();
    let peers = [0; 3].map(|_| Peer::connect(runtime.kernel.socket_path()));
    let mut ids = peers.each_ref().map(Peer::hello);
    ids.sort();
    assert!(ids[0] != ServiceId::NONE && ids[0] < ids[1] && ids[1] < ids[2]);
}

#[test]
fn what_is_no_greeting_is_refused() {
    let runtime = runtime();
    let hello =
        encode_request(5, &Request::Hello { asymmetric: true, encrypts: false, key: [0; 32] });
    let mut newer = hello.clone();
    newer[0] = 2;
    let ping = encode_request(5, &Request::Ping);
    for bytes in [newer, ping, hello[..13].to_vec()] {
        let peer = Peer::connect(runtime.kernel.socket_path());
        peer.send_raw(&bytes, &[]).expect("sends");
        peer.expect_cut(5, Status::PROTOCOL);
    }
    let peer = Peer::connect(runtime.kernel.socket_path());
    peer.send_raw(&[0; MAX_PACKET + 1], &[]).expect("sends");
    peer.expect_cut(0, Status::PROTOCOL);
    let peer = runtime.node();
    peer.send(9, &Request::Hello { asymmetric: false, encrypts: false, key: [0; 32] }, &[]);
    peer.expect_cut(9, Status::PROTOCOL);
}

#[test]
fn a_connection_without_a_greeting_is_closed() {
    let runtime = runtime();
    let peer = Peer::connect(runtime.kernel.socket_path());
    peer.expect_cut(0, Status::TIMED_OUT);
}

#[test]
fn names_are_registered_found_and_given_up() {
    let runtime = runtime();
    let (service, client) = (runtime.node(), runtime.node());
    let discover = Request::Discover { name: "echo".to_owned() };
    assert_eq!(client.ask(&discover), Reply::Refused(Status::NOT_FOUND));
    let (instance, name) = service.register("echo");
    assert_eq!(client.ask(&discover), Reply::Found { name });
    assert_eq!(service.ask(&register("echo", 0)), Reply::Refused(Status::EXISTS));
    assert_eq!(service.ask(&register("other", 1 << 9)), Reply::Refused(Status::INVALID));
    let unregister = Request::Unregister { instance };
    assert_eq!(client.ask(&unregister), Reply::Refused(Status::NOT_FOUND));
    assert_eq!(service.ask(&unregister), Reply::Done);
    assert_eq!(client.ask(&discover), Reply::Refused(Status::NOT_FOUND));
    assert_eq!(client.register("echo").1, name, "the name keeps its id");
}

#[test]
fn replicas_stand_by_and_move_up_when_one_dies() {
    let runtime = runtime();
    let (first, second, watcher) = (runtime.node(), runtime.node(), runtime.node());
    let (one, name) = first.register("echo");
    let (two, same) = second.register("echo");
    assert_eq!(name, same);
    let listed = |peer: &Peer| match peer.ask(&Request::List { after: 0 }) {
        Reply::Page { entries, next: 0 } => entries,
        other => panic!("not the only page: {other:?}"),
    };
    let ranks: Vec<_> = listed(&watcher).iter().map(|it| (it.instance, it.rank)).collect();
    assert_eq!(ranks, vec![(one, 0), (two, 1)]);
    drop(first);
    until("the dead replica is gone", || listed(&watcher).len() == 1);
    let left = listed(&watcher);
    assert_eq!((left[0].instance, left[0].rank, left[0].pid), (two, 0, std::process::id()));
    assert_eq!(left[0].name, "echo");
}

#[test]
fn an_exclusive_name_has_one_holder() {
    let runtime = runtime();
    let (one, two) = (runtime.node(), runtime.node());
    let taken = Reply::Refused(Status::EXISTS);
    assert!(matches!(one.ask(&register("a", SERVICE_EXCLUSIVE)), Reply::Registered { .. }));
    assert_eq!(two.ask(&register("a", 0)), taken);
    assert_eq!(two.ask(&register("a", SERVICE_EXCLUSIVE)), taken);
    drop(one);
    until("the name is free", || two.ask(&register("a", SERVICE_EXCLUSIVE)) != taken);
}

#[test]
fn a_wait_is_answered_when_the_name_is_served() {
    let runtime = runtime();
    let (service, client) = (runtime.node(), runtime.node());
    client.send(4, &Request::Wait { name: "late".to_owned() }, &[]);
    client.send(5, &Request::Wait { name: "late".to_owned() }, &[]);
    client.send(0, &Request::Forget { request: 4 }, &[]);
    assert_eq!(client.nodes_and_services(), (2, 0), "so the wait is in place");
    let (_, name) = service.register("late");
    assert_eq!(client.answer(5), Reply::Found { name });
    client.send(6, &Request::Wait { name: "late".to_owned() }, &[]);
    assert_eq!(client.answer(6), Reply::Found { name });
}

#[test]
fn long_lists_come_in_pages() {
    let runtime = runtime();
    let service = runtime.node();
    let made: Vec<_> =
        (0..100).map(|number| service.register(&format!("{number:0>150}")).0).collect();
    let (mut after, mut seen, mut pages) = (0, Vec::new(), 0);
    loop {
        let Reply::Page { entries, next } = service.ask(&Request::List { after }) else {
            panic!("not a page")
        };
        seen.extend(entries.iter().map(|entry| entry.instance));
        pages += 1;
        after = next;
        if next == 0 {
            break;
        }
    }
    assert_eq!(seen, made);
    assert!(pages > 2);
}

#[test]
fn the_state_counts_what_there_is() {
    let runtime = runtime();
    let (one, two) = (runtime.node(), runtime.node());
    one.register("a");
    assert_eq!(two.nodes_and_services(), (2, 1));
    drop(one);
    until("the node has left", || two.nodes_and_services() == (1, 0));
}

#[test]
fn who_does_not_read_is_cut_and_nobody_else_waits() {
    let runtime = runtime();
    let (deaf, other) = (runtime.node(), runtime.node());
    let service = runtime.node();
    for number in 0..100 {
        service.register(&format!("{number:0>200}"));
    }
    let list = encode_request(1, &Request::List { after: 0 });
    until("the deaf node is cut", || match deaf.send_raw(&list, &[]) {
        Ok(()) | Err(nix::errno::Errno::EAGAIN) => {
            other.nodes_and_services();
            false
        }
        Err(_) => true,
    });
    until("it is forgotten", || other.nodes_and_services() == (2, 100));
}
