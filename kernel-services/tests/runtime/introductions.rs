//! Connecting: the lanes that pass, the lanes that do not, and deaths in between.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ipc::{
    Geometry, ServiceId, Status,
    control::{Reply, Request, closer::Closer, packet},
};
use nix::sys::stat::fstat;

use crate::peer::{
    Peer, Runtime, await_readable, has_pidfds, lane, runtime, seal, sparse_lane, unsealed_lane,
    until,
};

/// A runtime, a service called "echo", and a client.
fn pair() -> (Runtime, Peer, Peer, ServiceId) {
    let runtime = runtime();
    let (service, client) = (runtime.node(), runtime.node());
    let (_, name) = service.register("echo");
    (runtime, service, client, name)
}

/// A lane, a bell, and a pidfd where the kernel has them.
fn descriptors() -> usize {
    2 + usize::from(has_pidfds())
}

fn inode(fd: &OwnedFd) -> u64 {
    fstat(fd).expect("a file").st_ino
}

fn is_hung_up(bell: &OwnedFd) {
    await_readable(bell.as_fd());
    let closer = Closer::new().expect("a closer");
    let heard = packet::receive(bell.as_fd(), &mut [0; 8], &closer).expect("readable");
    assert!(matches!(heard, packet::Received::Closed));
}

#[test]
fn both_ends_get_the_others_lane_and_a_bell_between_them() {
    let (_runtime, service, client, name) = pair();
    let (theirs, ours) = (lane(), lane());
    client.connect_to(9, name, &theirs);
    let (incoming, at_service) = service.incoming();
    service.accept(incoming.channel, &ours);
    let (connected, at_client) = client.connected(9);
    assert_eq!((inode(&at_service[0]), inode(&at_client[0])), (inode(&theirs), inode(&ours)));
    assert_eq!((at_service.len(), at_client.len()), (descriptors(), descriptors()));
    packet::send(at_client[1].as_fd(), b"ring", &[]).expect("rings");
    await_readable(at_service[1].as_fd());
    assert_eq!(connected.channel, incoming.channel);
    assert_eq!((connected.session, connected.start_ns), (incoming.session, incoming.start_ns));
    assert!(connected.asymmetric && incoming.asymmetric);
    assert_eq!((connected.peer, connected.peer_name), (incoming.dest, name));
    assert_eq!((incoming.peer_name, incoming.dest_name), (ServiceId::NONE, name));
    assert_eq!(connected.peer_pid, std::process::id());
    assert_eq!(connected.peer_uid, nix::unistd::geteuid().as_raw());
    assert_eq!(connected.geometry, Geometry::default());
    let Reply::Page { entries, .. } = client.ask(&Request::List { after: 0 }) else {
        panic!("not a page")
    };
    assert_eq!(entries[0].channels, 1);
}

#[test]
fn a_client_that_serves_appears_as_its_instance() {
    let (_runtime, service, client, name) = pair();
    let (instance, own_name) = client.register("other");
    client.connect_to(9, name, &lane());
    let (incoming, _fds) = service.incoming();
    assert_eq!((incoming.peer, incoming.peer_name), (instance, own_name));
}

#[test]
fn one_may_connect_to_oneself() {
    let (_runtime, service, _client, name) = pair();
    service.connect_to(9, name, &lane());
    let (incoming, _fds) = service.incoming();
    service.accept(incoming.channel, &lane());
    let (connected, fds) = service.connected(9);
    assert_eq!((connected.peer, fds.len()), (incoming.dest, descriptors()));
}

#[test]
fn bad_lanes_are_refused_and_the_client_may_go_on() {
    let (_runtime, service, client, name) = pair();
    let bytes = Geometry::default().lane_bytes();
    let short = unsealed_lane(bytes - 4096);
    let long = unsealed_lane(bytes + 4096);
    let sparse = sparse_lane(bytes);
    [&short, &long, &sparse].into_iter().for_each(seal);
    let file: OwnedFd = tempfile::tempfile().expect("a file").into();
    let device: OwnedFd = std::fs::File::open("/dev/zero").expect("a device").into();
    for bad in [unsealed_lane(bytes), short, long, sparse, file, device] {
        client.connect_to(9, name, &bad);
        assert_eq!(client.answer(9), Reply::Refused(Status::INVALID));
    }
    let request = Request::Connect { dest: name, geometry: Geometry::default() };
    assert_eq!(client.ask(&request), Reply::Refused(Status::INVALID), "no lane");
    client.connect_to(9, ServiceId::new(4_000_000), &lane());
    assert_eq!(client.answer(9), Reply::Refused(Status::NOT_FOUND));
    client.connect_to(9, name, &lane());
    service.incoming();
}

#[test]
fn unexpected_descriptors_end_the_connection() {
    let (runtime, _service, observer, name) = pair();
    let lane = lane();
    let connect = Request::Connect { dest: name, geometry: Geometry::default() };
    for (request, count, sequence) in
        [(&connect, 3, 9), (&connect, 200, 0), (&Request::Ping, 1, 9), (&Request::Ping, 200, 0)]
    {
        let client = runtime.node();
        let fds: Vec<BorrowedFd<'_>> = (0..count).map(|_| lane.as_fd()).collect();
        client.send(9, request, &fds);
        client.expect_cut(sequence, Status::PROTOCOL);
    }
    until("they are forgotten", || observer.nodes_and_services() == (2, 1));
}

#[test]
fn the_services_lane_is_verified_likewise() {
    let (_runtime, service, client, name) = pair();
    client.connect_to(9, name, &lane());
    let (incoming, fds) = service.incoming();
    service.accept(incoming.channel, &unsealed_lane(Geometry::default().lane_bytes()));
    assert_eq!(client.answer(9), Reply::Refused(Status::PEER_CORRUPT));
    is_hung_up(&fds[1]);
    client.connect_to(10, name, &lane());
    let (incoming, _fds) = service.incoming();
    service.send(0, &Request::Accept { channel: incoming.channel, status: Status::OK }, &[]);
    assert_eq!(client.answer(10), Reply::Refused(Status::PEER_CORRUPT));
    service.expect_cut(0, Status::PROTOCOL);
}

#[test]
fn a_refusal_reaches_the_client() {
    let (_runtime, service, client, name) = pair();
    client.connect_to(9, name, &lane());
    let (incoming, _fds) = service.incoming();
    let status = Status::from_code(-1234);
    service.send(0, &Request::Accept { channel: incoming.channel, status }, &[]);
    assert_eq!(client.answer(9), Reply::Refused(status));
}

#[test]
fn a_silent_service_is_not_waited_for_forever() {
    let (_runtime, service, client, name) = pair();
    client.connect_to(9, name, &lane());
    let (incoming, fds) = service.incoming();
    assert_eq!(client.answer(9), Reply::Refused(Status::TIMED_OUT));
    is_hung_up(&fds[1]);
    service.accept(incoming.channel, &lane());
    assert_eq!(service.nodes_and_services(), (2, 1), "too late, and no harm");
}

#[test]
fn when_the_service_dies_the_next_replica_is_asked() {
    let (runtime, first, client, name) = pair();
    let second = runtime.node();
    let (instance, _) = second.register("echo");
    let theirs = lane();
    client.connect_to(9, name, &theirs);
    let _ = first.incoming();
    drop(first);
    let (incoming, fds) = second.incoming();
    assert_eq!((incoming.dest, inode(&fds[0])), (instance, inode(&theirs)));
    second.accept(incoming.channel, &lane());
    assert_eq!(client.connected(9).0.peer, instance);
    client.connect_to(10, name, &theirs);
    let _ = second.incoming();
    drop(second);
    assert_eq!(client.answer(10), Reply::Refused(Status::PEER_DIED));
}

#[test]
fn when_the_client_dies_the_service_hears_it_on_the_bell() {
    let (_runtime, service, client, name) = pair();
    client.connect_to(9, name, &lane());
    let (incoming, fds) = service.incoming();
    drop(client);
    is_hung_up(&fds[1]);
    service.accept(incoming.channel, &lane());
    until("the client is forgotten", || service.nodes_and_services() == (1, 1));
}

#[test]
fn channels_ids_are_not_repeated_by_the_next_runtime() {
    let (runtime, service, client, name) = pair();
    let held = service.ask(&crate::peer::register("other", 0));
    let Reply::Registered { instance, name: other, ticket } = held else { panic!("{held:?}") };
    client.connect_to(9, name, &lane());
    let before = service.incoming().0;
    let Runtime { kernel, directory } = runtime;
    kernel.stop();
    client.expect_closed();
    let kernel = kernel_services::Kernel::embedded(directory.path()).expect("starts again");
    let runtime = Runtime { kernel, directory };
    let (service, client) = (runtime.node(), runtime.node());
    let claim = |name: &str, ticket| Request::Register {
        flags: 0,
        claim_instance: instance.get(),
        claim_name: other.get(),
        ticket,
        name: name.to_owned(),
    };
    // Neither without the ticket, nor with another, nor for another name.
    for (name, ticket) in [("forged", [0; 32]), ("forged", [1; 32]), ("stolen", ticket)] {
        match client.ask(&claim(name, ticket)) {
            Reply::Registered { instance: new, name: id, .. } => {
                assert!(new > before.peer && id > before.peer, "{name}: {new:?} {id:?}");
                let done = client.ask(&Request::Unregister { instance: new });
                assert_eq!(done, Reply::Done);
            }
            other => panic!("{other:?}"),
        }
    }
    let claimed = service.ask(&claim("other", ticket));
    assert_eq!(claimed, Reply::Registered { instance, name: other, ticket });
    client.connect_to(9, other, &lane());
    let after = service.incoming().0;
    assert!(after.channel > before.channel);
    assert!(after.peer > before.peer, "nor are ids");
}
