//! Shared regions between real processes: published and seen, granted and taken back, and what is
//! left when somebody is killed.

use std::time::Duration;

use ipc::{
    NodeError, Region, RegionAccess, RegionError, RegionOptions, RegionRef, ServiceId, Spin,
    Status, bus::PublishOptions, control::regions::RegionEntry,
};
use tests::{Actor, LONG, World, proc, wait_until};

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const MIB: u64 = 1 << 20;

fn id(actor: &mut Actor) -> ServiceId {
    ServiceId::new(actor.ask("id", "id").parse().expect("a number"))
}

fn entries(world: &World) -> Vec<RegionEntry> {
    world.node(Spin::Never).regions().expect("a list")
}

fn make(node: &ipc::Node, size: u64) -> Region {
    node.create_region(size, &RegionOptions::default()).expect("a region")
}

/// A region of an actor, with what it is granted to.
fn made_by(actor: &mut Actor, size: u64, to: ServiceId, access: &str) -> u64 {
    let region = actor.ask(&format!("region make r {size}"), "region").parse().expect("an id");
    assert_eq!(actor.ask(&format!("region grant r {to} {access}"), "region"), "granted");
    region
}

#[test]
fn what_is_published_is_seen_by_all_who_wait_polling_or_asleep() {
    let world = World::new(ACTOR);
    let node = world.node(Spin::Never);
    let region = make(&node, 5000);
    let mut readers = [world.actor(&["spin=never"]), world.actor(&["spin=always"])];
    for reader in &mut readers {
        let mapped = format!("region map r {}", region.id());
        assert_eq!(reader.ask(&mapped, "region"), "IPC_EACCES", "not granted yet");
        region.grant(id(reader), RegionAccess::Read).expect("granted");
        assert_eq!(reader.ask(&mapped, "region"), "5000");
        assert_eq!(reader.ask("region write r 0 x", "region"), "IPC_EACCES");
        assert_eq!(reader.ask("region sync r", "region"), "IPC_EACCES");
    }
    for round in 1..50_u64 {
        for reader in &mut readers {
            reader.tell(&format!("region wait r {} 60000", round - 1));
            reader.hear("waiting");
        }
        region.write_at(4996, format!("{round:04}").as_bytes()).expect("inside");
        assert_eq!(region.sync().expect("published"), round);
        for reader in &mut readers {
            assert_eq!(reader.hear("region"), round.to_string());
            assert_eq!(reader.ask("region read r 4996 4", "region"), format!("{round:04}"));
        }
    }
    assert_eq!(readers[0].ask("region wait r 49 5", "waiting"), "");
    assert_eq!(readers[0].hear("region"), "IPC_ETIMEDOUT");
    assert_eq!(readers[0].ask("region read r 4997 4", "region"), "IPC_EINVAL");
    let entry = entries(&world)[0];
    assert_eq!((entry.holders, entry.grants, entry.size), (2, 2, 5000));
    let [one, other] = readers;
    one.kill();
    wait_until("its share is freed", || entries(&world)[0].holders == 1);
    other.quit();
    wait_until("so is the other's", || entries(&world)[0].holders == 0);
    drop(region);
    wait_until("nothing is left", || entries(&world).is_empty());
}

#[test]
fn a_killed_owner_s_region_stays_readable_and_then_is_gone() {
    let world = World::new(ACTOR);
    let node = world.node(Spin::Never);
    let mut owner = world.actor(&[]);
    let id = made_by(&mut owner, MIB, node.id(), "read");
    let region = node.map_region(id).expect("granted");
    owner.ask("region write r 7 last", "region");
    assert_eq!(owner.ask("region sync r", "region"), "1");
    assert_eq!(region.wait(0, Some(LONG)).expect("published"), 1);
    let waits = region.clone();
    let waiter = std::thread::spawn(move || waits.wait(1, Some(LONG)));
    owner.kill();
    let ended = waiter.join().expect("it ends");
    assert!(matches!(ended, Err(RegionError::OwnerGone)), "{ended:?}");
    assert!(matches!(region.wait(0, None), Ok(1)), "what was published was");
    let mut bytes = [0; 4];
    region.read_at(7, &mut bytes).expect("still there");
    assert_eq!(&bytes, b"last");
    wait_until("the runtime knows", || entries(&world)[0].owner == ServiceId::NONE);
    let late = world.node(Spin::Never).map_region(id).map(drop);
    let died = NodeError::Refused(Status::PEER_DIED).to_string();
    assert_eq!(late.map_err(|it| it.to_string()), Err(died));
    drop(region);
    wait_until("nothing is left", || entries(&world).is_empty());
}

#[test]
fn an_owner_that_lets_go_in_order_ends_the_waits_too() {
    let world = World::new(ACTOR);
    let node = world.node(Spin::Never);
    let mut owner = world.actor(&[]);
    let id = made_by(&mut owner, 100, node.id(), "read");
    let region = node.map_region(id).expect("granted");
    let waits = region.clone();
    let waiter = std::thread::spawn(move || waits.wait(0, Some(LONG)));
    owner.ask("region drop r", "region");
    let ended = waiter.join().expect("it ends");
    assert!(matches!(ended, Err(RegionError::OwnerGone)), "{ended:?}");
    owner.quit();
}

#[test]
fn a_grant_that_is_taken_back_ends_waits_reads_and_maps() {
    let world = World::new(ACTOR);
    let (owner, node) = (world.node(Spin::Never), world.node(Spin::Never));
    let mut other = world.actor(&[]);
    let region = make(&owner, 3 * MIB);
    region.write_at(3 * MIB as usize - 3, b"end").expect("inside");
    region.grant(node.id(), RegionAccess::Read).expect("granted");
    region.grant(id(&mut other), RegionAccess::Read).expect("granted");
    let mapped = node.map_region(region.id()).expect("granted");
    assert_eq!(
        other.ask(&format!("region map r {}", region.id()), "region"),
        (3 * MIB).to_string()
    );
    let waits = mapped.clone();
    let waiter = std::thread::spawn(move || waits.wait(0, Some(LONG)));
    region.revoke(node.id()).expect("taken back");
    let ended = waiter.join().expect("it ends");
    assert!(matches!(ended, Err(RegionError::Revoked)), "{ended:?}");
    let read = mapped.read_at(0, &mut [0; 4]);
    assert!(matches!(read, Err(RegionError::Revoked)), "{read:?}");
    let again = node.map_region(region.id()).map(drop);
    assert!(matches!(again, Err(RegionError::Node(NodeError::Forbidden))), "{again:?}");
    // Memory that was mapped once cannot be taken away: the others go on with other memory.
    let fresh = region.rotate().expect("other memory");
    assert_ne!(fresh.id(), region.id());
    assert_eq!(other.ask(&format!("region map f {}", fresh.id()), "region"), (3 * MIB).to_string());
    let end = format!("region read f {} 3", 3 * MIB - 3);
    assert_eq!(other.ask(&end, "region"), "end");
    assert!(node.map_region(fresh.id()).is_err());
}

#[test]
fn a_region_for_writing_is_everybody_s_and_a_hostile_writer_harms_nobody() {
    let world = World::new(ACTOR);
    let node = world.node(Spin::Never);
    let region = make(&node, 64 * 1024);
    let mut writer = world.actor(&[]);
    let to = id(&mut writer);
    region.grant(to, RegionAccess::Write).expect("granted");
    let both = region.grant(to, RegionAccess::Read);
    assert!(matches!(both, Err(RegionError::Node(NodeError::Config(_)))), "{both:?}");
    writer.ask(&format!("region map r {}", region.id()), "region");
    writer.ask("region write r 0 mine", "region");
    assert_eq!(writer.ask("region sync r", "region"), "1");
    assert_eq!(region.wait(0, Some(LONG)).expect("published"), 1);
    // From here on it writes all of it all the time, while this reads and writes, too.
    writer.ask("region storm r", "region");
    let mut version = 1;
    for _ in 0..200 {
        version = region.wait(version, Some(LONG)).expect("published");
        let mut bytes = Vec::new();
        region.copy_to(0, region.size(), &mut bytes).expect("inside");
        assert_eq!(bytes.len(), region.size());
        region.write_at(100, b"and me").expect("inside");
    }
    writer.kill();
    region.sync().expect("the owner is not disturbed");
}

#[test]
fn a_region_is_passed_in_a_message() {
    let world = World::new(ACTOR);
    let node = world.node(Spin::Never);
    let (service, clients) = (world.node(Spin::Never), world.node(Spin::Never));
    let server = service.server().expect("a server");
    server.register("sums", 0).expect("served");
    let sums = clients.client(node.discover("sums").expect("served")).expect("a channel");
    let region = make(&clients, 1000);
    region.write_at(0, &[3; 1000]).expect("inside");
    region.sync().expect("published");
    let thread = std::thread::spawn({
        let service = service.clone();
        move || {
            server.run(|request| {
                let passed = RegionRef::from_bytes(request.payload()).expect("a region");
                let region = service.map_region(passed.id).expect("granted as it was passed");
                let mut bytes = Vec::new();
                region.copy_to(0, region.size(), &mut bytes).expect("inside");
                let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
                request.reply(&sum.to_le_bytes()).expect("answered");
            })
        }
    });
    let passed = region.pass_to(sums.dest(), RegionAccess::Read).expect("granted");
    let sum = sums.call(&passed.to_bytes(), LONG).expect("an answer");
    assert_eq!(sum, 3000_u32.to_le_bytes());
    assert!(RegionRef::from_bytes(&passed.to_bytes()[1..]).is_err());
    service.interrupter().fire();
    let _ = thread.join().expect("it ends");
}

#[test]
fn a_region_is_passed_in_an_event_to_those_to_whom_it_is_granted() {
    let world = World::new(ACTOR);
    let node = world.node(Spin::Never);
    let mut hearers = [world.actor(&[]), world.actor(&[]), world.actor(&[])];
    for hearer in &mut hearers {
        hearer.ask("event-subscribe pictures now", "subscribed");
    }
    let region = make(&node, 5000);
    region.write_at(0, b"a picture").expect("inside");
    region.sync().expect("published");
    let publisher = node.publisher("pictures", PublishOptions::default()).expect("advertised");
    let [one, other, stranger] = &mut hearers;
    let passed = region.pass_to(id(one), RegionAccess::Read).expect("granted");
    assert_eq!(region.pass_to(id(other), RegionAccess::Read).expect("granted"), passed);
    publisher.publish(&passed.to_bytes()).expect("published");
    for (hearer, mapped) in [(one, "5000"), (other, "5000"), (stranger, "IPC_EACCES")] {
        // What an actor shows of an event: its number, and its first eight bytes as one.
        assert_eq!(hearer.ask("event-next pictures 60000", "event"), format!("0 {}", region.id()));
        assert_eq!(hearer.ask(&format!("region map r {}", passed.id), "region"), mapped);
        if mapped == "5000" {
            assert_eq!(hearer.ask("region read r 0 9", "region"), "a picture");
        }
    }
}

#[test]
fn regions_outlive_the_runtime() {
    let world = World::without_runtime(ACTOR);
    let runtime = world.runtime();
    let mut owner = world.actor(&[]);
    let mut reader = world.server("reader", &[]);
    let name = reader.ask("find reader", "found").parse().expect("an id");
    let region = made_by(&mut owner, 100, ServiceId::new(name), "read");
    let map = format!("region map r {region}");
    assert_eq!(reader.ask(&map, "region"), "100");
    runtime.kill();
    reader.tell("region wait r 0 60000");
    reader.hear("waiting");
    assert_eq!(owner.ask("region write r 0 on", "region"), "written");
    assert_eq!(owner.ask("region sync r", "region"), "1");
    assert_eq!(reader.hear("region"), "1");
    let again = world.runtime();
    wait_until("both have told of it", || {
        let all = entries(&world);
        all.len() == 1 && all[0].region == region && all[0].holders == 1 && all[0].grants == 1
    });
    // Who comes to serve the name now may map it like the one before.
    reader.kill();
    wait_until("its share is freed", || entries(&world)[0].holders == 0);
    let mut next = world.server("reader", &[]);
    assert_eq!(next.ask(&map, "region"), "100");
    assert_eq!(next.ask("region read r 0 2", "region"), "on");
    owner.kill();
    next.tell("region wait r 1 60000");
    assert_eq!(next.hear("region"), "IPC_EPEERDIED");
    next.quit();
    wait_until("nothing is left", || entries(&world).is_empty());
    again.quit();
}

#[test]
fn a_forked_or_interrupted_waiter_does_not_hang() {
    let world = World::new(ACTOR);
    let node = world.node(Spin::Never);
    let region = make(&node, 100);
    let waits = region.clone();
    let (tell, told) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        tell.send(()).expect("heard");
        waits.wait(0, Some(LONG))
    });
    told.recv().expect("told");
    let interrupter = node.interrupter();
    while !waiter.is_finished() {
        interrupter.fire();
        std::thread::yield_now();
    }
    let ended = waiter.join().expect("it ends");
    assert!(matches!(ended, Err(RegionError::Canceled)), "{ended:?}");
    let early = region.wait(0, Some(Duration::from_millis(1)));
    assert!(matches!(early, Err(RegionError::TimedOut)), "{early:?}");
}

#[test]
fn a_region_that_is_closed_ends_the_waits_of_all_though_clones_are_kept() {
    let world = World::new(ACTOR);
    let (owner, node) = (world.node(Spin::Never), world.node(Spin::Never));
    let region = make(&owner, 100);
    region.grant(node.id(), RegionAccess::Read).expect("granted");
    let mapped = node.map_region(region.id()).expect("granted");
    let wait = |region: &Region| {
        let (tell, told) = std::sync::mpsc::channel();
        let waits = region.clone();
        let waiter = std::thread::spawn(move || {
            tell.send(nix::unistd::gettid().as_raw() as u32).expect("heard");
            waits.wait(0, None)
        });
        let thread = told.recv().expect("told");
        wait_until("it sleeps", || proc::is_asleep(std::process::id(), thread));
        waiter
    };
    // Who has mapped it closes it for itself alone.
    let waiter = wait(&mapped);
    mapped.close();
    let ended = waiter.join().expect("it ends");
    assert!(matches!(ended, Err(RegionError::Closed)), "{ended:?}");
    let again = node.map_region(region.id()).expect("it is granted still");
    assert!(mapped.is_closed() && !again.is_closed() && !region.is_closed());
    let (here, there) = (wait(&region), wait(&again));
    region.close();
    let ended = here.join().expect("it ends");
    assert!(matches!(ended, Err(RegionError::Closed)), "{ended:?}");
    let ended = there.join().expect("it ends");
    assert!(matches!(ended, Err(RegionError::OwnerGone)), "{ended:?}");
    for failed in [
        region.write_at(0, b"x").map(drop),
        region.sync().map(drop),
        region.wait(0, None).map(drop),
        region.grant(node.id(), RegionAccess::Read),
        region.rotate().map(drop),
    ] {
        assert!(matches!(failed, Err(RegionError::Closed)), "{failed:?}");
    }
    region.close();
    assert_eq!(entries(&world).len(), 1, "its memory is there, and counts");
    drop((region, mapped, again));
    wait_until("nothing is left", || entries(&world).is_empty());
}

#[test]
fn a_sync_wakes_waits_of_the_same_process_before_any_grant() {
    let world = World::new(ACTOR);
    let region = make(&world.node(Spin::Never), 100);
    for version in 0..50 {
        let waits = region.clone();
        let waiter = std::thread::spawn(move || waits.wait(version, None));
        (0..20).for_each(|_| std::thread::yield_now());
        region.sync().expect("published");
        assert_eq!(waiter.join().expect("it ends").expect("published"), version + 1);
    }
}

#[test]
fn what_a_region_was_made_with_its_other_memory_has_too() {
    let world = World::new(ACTOR);
    let node = world.node(Spin::Never);
    let options = RegionOptions { huge_pages: false, numa_node: Some(0) };
    let region = node.create_region(MIB, &options).expect("a region");
    let fresh = region.rotate().expect("other memory");
    // The head is the page before the data.
    let is_bound = |region: &Region| {
        let maps = std::fs::read_to_string("/proc/self/numa_maps").expect("readable");
        let head = format!("{:08x} ", region.address().as_ptr() as usize - 4096);
        let line = maps.lines().find(|line| line.starts_with(&head)).expect("mapped");
        line.contains(" bind:0 ")
    };
    assert!(is_bound(&region));
    assert!(is_bound(&fresh));
}
