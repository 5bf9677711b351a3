//! What processes show of their traffic: exact, still while nothing happens, gone when they are.

use ipc::{Board, EndStats, Node, Spin};
use tests::{World, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");

fn board_of(node: &Node, pid: u32) -> Option<Board> {
    node.boards().expect("boards").into_iter().find(|board| board.pid == pid)
}

fn only(ends: Vec<EndStats>) -> EndStats {
    let [end] = <[EndStats; 1]>::try_from(ends).expect("one end");
    end
}

#[test]
fn both_ends_count_what_passed_between_them_and_rest_when_nothing_does() {
    let world = World::new(ACTOR);
    let server = world.server("echo", &[]);
    let mut caller = world.actor(&[]);
    caller.ask("calls echo 1 1000 8,100,5000,50000", "called");
    let node = world.node(Spin::Learned);
    let callers = board_of(&node, caller.pid()).expect("it has a channel");
    let servers = board_of(&node, server.pid()).expect("it has a channel");
    let (client, service) = (only(callers.ends()), only(servers.ends()));
    assert_eq!((client.channel, client.dest), (service.channel, service.dest));
    assert!(service.role.serves() && !client.role.serves());
    let (client, service) = (client.stats, service.stats);
    assert_eq!(client.messages_sent, client.messages_received);
    assert!(client.messages_sent >= 1000, "{client:?}");
    assert_eq!(client.messages_sent, service.messages_received);
    assert_eq!(client.messages_received, service.messages_sent);
    assert_eq!(client.bytes_sent, service.bytes_received);
    assert_eq!(client.bytes_sent, client.bytes_received);
    assert_eq!((client.errors, service.errors, client.drops, service.drops), (0, 0, 0, 0));
    assert!(client.latency.count() > 0 && client.latency.quantile(0.5) > 0);
    // Those who spun come to rest; from then on nothing changes.
    let mut before = (callers.ends(), servers.ends());
    wait_until("both are at rest", || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        let now = (callers.ends(), servers.ends());
        now == std::mem::replace(&mut before, now.clone())
    });
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!((callers.ends(), servers.ends()), before, "an idle process counts");
    // The same memory shows what comes.
    caller.ask("calls echo 1 10 8", "called");
    assert!(only(callers.ends()).stats.messages_sent >= client.messages_sent + 10);
}

#[test]
fn the_board_of_a_killed_process_goes_and_that_of_the_other_end_stays() {
    let world = World::new(ACTOR);
    let server = world.server("echo", &[]);
    let mut caller = world.actor(&[]);
    caller.ask("calls echo 1 100 8", "called");
    let node = world.node(Spin::Learned);
    let sent = only(board_of(&node, caller.pid()).expect("a board").ends()).stats.messages_sent;
    let pid = caller.pid();
    caller.kill();
    wait_until("its board is gone", || board_of(&node, pid).is_none());
    let servers = board_of(&node, server.pid()).expect("it lives");
    wait_until("the end is counted among those that are gone", || {
        only(servers.ends()).role == ipc::Role::GoneServers
    });
    assert_eq!(only(servers.ends()).stats.messages_received, sent);
}

#[test]
fn a_client_and_a_server_know_their_own_counts() {
    let world = World::new(ACTOR);
    let mut server = world.server("echo", &[]);
    let (node, client) = world.client("echo", Spin::Learned);
    for _ in 0..100 {
        client.call(b"12345678", tests::LONG).expect("an answer");
    }
    for _ in 0..50 {
        client.send(b"87654321", tests::LONG).expect("room");
    }
    client
        .burst(|burst| {
            (0..600).try_for_each(|_| {
                burst.send(b"with more than 48 bytes, so that it is not in the cell alone")
            })
        })
        .expect("sent");
    let stats = client.stats();
    assert_eq!((stats.messages_sent, stats.messages_received), (750, 100));
    assert_eq!((stats.bytes_sent, stats.bytes_received), (800 + 400 + 600 * 60, 800));
    assert_eq!(stats.depth, 0);
    assert_eq!(node.stats().messages_sent, 750);
    // The answer to this comes behind all of those.
    client.call(b"last", tests::LONG).expect("an answer");
    let servers = board_of(&node, server.pid()).expect("a board");
    wait_until("the last batch is counted", || only(servers.ends()).stats.messages_received == 751);
    drop(client);
    assert_eq!(node.stats().messages_sent, 751, "what is gone counts");
    server.ask("find echo", "found");
}

#[test]
fn boards_are_shown_to_the_next_runtime_too() {
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let mut server = world.server("echo", &[]);
    let mut caller = world.actor(&[]);
    caller.ask("calls echo 1 10 8", "called");
    runtime.kill();
    let _runtime = world.runtime();
    server.ask("find echo", "found");
    let node = world.node(Spin::Learned);
    wait_until("the server is back", || board_of(&node, server.pid()).is_some());
}
