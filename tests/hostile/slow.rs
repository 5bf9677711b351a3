//! Descriptors that are slow to close. Whoever closed one of these in its loop would answer nobody
//! until the attacker relents, which it does when all others were served.

use tests::{Actor, proc, wait_for, wait_until};

use super::siege::Siege;

/// Threads that wait in `close`, at most; and descriptors that wait for one, about.
const THREADS: usize = 4;
const FULL: usize = 64;

/// Has the attacker make so many sockets that linger; their ports.
fn ports(villain: &mut Actor, count: usize) -> Vec<u16> {
    let ports = villain.ask(&format!("linger {count}"), "lingering");
    ports.split(',').map(|port| port.parse().expect("a port")).collect()
}

fn lingering(ports: &[u16]) -> usize {
    let all = proc::lingering();
    ports.iter().filter(|port| all.contains(port)).count()
}

/// Has the attacker send what it made while the victim stands still: then nobody else has it.
fn slip(villain: &mut Actor, how: &str, victim: &Actor) {
    slip_all(std::slice::from_mut(villain), how, victim);
}

/// As several at a time: a victim that is stopped does not go on waiting in `close` after that.
fn slip_all(villains: &mut [Actor], how: &str, victim: &Actor) {
    for villain in &mut *villains {
        villain.ask("approach echo", "near");
    }
    victim.stop();
    for villain in villains {
        villain.ask(&format!("slip {how}"), "slipped");
    }
    victim.go_on();
}

impl Siege {
    /// Everybody is served: by the runtime, who is there and who comes; by the service likewise.
    fn goes_on(&mut self) {
        self.is_served();
        let node = self.world.node(ipc::Spin::Never);
        for _ in 0..50 {
            node.state().expect("the runtime answers");
        }
        let mut newcomer = self.world.actor(&[]);
        newcomer.ask("calls echo 1 50 8,20000", "called");
        newcomer.quit();
    }

    /// Somebody waits in `close`; nobody waits for that; it is over when the attacker relents.
    fn is_not_held_up(&mut self, villain: &mut Actor, ports: &[u16]) {
        wait_until("somebody waits in close", || lingering(ports) > 0);
        self.goes_on();
        assert!(lingering(ports) > 0, "it was waited for");
        villain.ask("relent", "relented");
        wait_until("nobody waits", || lingering(ports) == 0);
    }
}

#[test]
fn a_socket_that_lingers_is_no_lane_and_holds_up_nobody() {
    let mut siege = Siege::of(&[]);
    let mut villain = siege.villain();
    let ports = ports(&mut villain, 1);
    slip(&mut villain, "lane", &siege.runtime);
    siege.is_not_held_up(&mut villain, &ports);
    villain.ask("refused", "refused");
    siege.end(villain);
}

#[test]
fn sockets_that_linger_hold_up_no_runtime() {
    for how in ["bomb", "buried"] {
        let mut siege = Siege::of(&[]);
        let mut villain = siege.villain();
        let ports = ports(&mut villain, 8);
        slip(&mut villain, how, &siege.runtime);
        siege.is_not_held_up(&mut villain, &ports);
        siege.end(villain);
    }
}

#[test]
fn sockets_that_linger_hold_up_no_service() {
    for spin in ["spin=never", "spin=learned"] {
        for how in ["bell", "bells", "arena", "buried-bell"] {
            let mut siege = Siege::of(&[spin]);
            let mut villain = siege.intruder();
            let ports = ports(&mut villain, if how == "bell" || how == "arena" { 1 } else { 8 });
            slip(&mut villain, how, &siege.server);
            villain.ask("end", "cut");
            siege.is_not_held_up(&mut villain, &ports);
            siege.end(villain);
        }
    }
}

#[test]
fn what_is_slow_and_has_no_descriptor_to_come_to_holds_up_nobody() {
    for how in ["bell", "pair", "buried-bell"] {
        let mut siege = Siege::of(&["spin=never"]);
        let mut villain = siege.intruder();
        let ports = ports(&mut villain, if how == "bell" { 1 } else { 2 });
        siege.server.ask("starve", "starved");
        slip(&mut villain, how, &siege.server);
        villain.ask("end", "cut");
        wait_until("somebody waits in close", || lingering(&ports) > 0);
        siege.is_served();
        assert!(lingering(&ports) > 0, "it was waited for");
        siege.server.ask("feed", "fed");
        siege.is_not_held_up(&mut villain, &ports);
        siege.end(villain);
    }
}

#[test]
fn who_sends_more_than_can_be_closed_is_cut_and_what_waits_has_bounds() {
    const ROUNDS: usize = 8;
    let mut siege = Siege::of(&[]);
    let runtime = siege.runtime.pid();
    let before = proc::holdings(runtime);
    let mut villains: Vec<_> = (0..ROUNDS).map(|_| siege.villain()).collect();
    let mut ports = Vec::new();
    for villain in &mut villains {
        ports.extend(self::ports(villain, FULL + THREADS + 8));
    }
    slip_all(&mut villains, "bomb", &siege.runtime);
    wait_for("all threads wait in close", &THREADS, || lingering(&ports));
    siege.goes_on();
    let held = proc::holdings(runtime);
    assert_eq!(held.threads, before.threads + THREADS);
    // Once they are many, what an attacker sends stays in its socket, which waits for it.
    let most = before.descriptors + 2 * (FULL + 253) + 4 * ROUNDS;
    assert!(held.descriptors < most, "{held:?}, {before:?}");
    assert_eq!(lingering(&ports), THREADS);
    // One that was there before, or comes now, is let in, and may send no such thing.
    let mut last = siege.villain();
    ports.extend(self::ports(&mut last, 1));
    slip(&mut last, "lane", &siege.runtime);
    last.ask("refused", "refused");
    wait_for("all threads wait in close", &THREADS, || lingering(&ports));
    siege.goes_on();
    for villain in &mut villains {
        villain.ask("relent", "relented");
    }
    last.ask("relent", "relented");
    wait_until("nobody waits", || lingering(&ports) == 0);
    villains.into_iter().for_each(Actor::kill);
    siege.end(last);
}

#[test]
fn a_file_whose_server_keeps_silent_holds_up_nobody() {
    for how in ["lane", "bell", "arena"] {
        let mut siege = Siege::of(&["spin=never"]);
        let mut villain = siege.intruder();
        let mounted = villain.ask("fuse", "fuse");
        if mounted != "mounted" {
            eprintln!("SKIPPED: no file system of one's own can be mounted here: {mounted}");
            return siege.end(villain);
        }
        villain.ask("approach echo", "near");
        villain.ask(&format!("slip {how}"), "slipped");
        villain.hear("flushing");
        siege.goes_on();
        if how == "lane" {
            villain.ask("refused", "refused");
        } else {
            villain.ask("end", "cut");
        }
        siege.goes_on();
        villain.ask("answer-flush", "flushed");
        siege.end(villain);
    }
}
