//! Who owns a region dies at a store.

use ipc::{RegionError, Spin, failpoint::At};
use tests::{LONG, World, wait_until};

use super::{ACTOR, Doom, die_everywhere};

#[test]
fn the_owner_of_a_region_may_die_at_every_store() {
    let changes = [At::RegionBytes, At::RegionVersion, At::RegionEvent];
    let must = [&changes[..], &[At::RegionIdentity, At::RegionEnded]].concat();
    die_everywhere("owning", &must, |_| true, trial);
}

/// A reader sees with each version at least what was written before it, and hears of the end.
fn trial(doom: &Doom) -> bool {
    let world = World::new(ACTOR);
    let node = world.node(Spin::Never);
    let mut owner = world.actor_under(&doom.words(), &["spin=never"]);
    let reader = node.id();
    let region = owner.ask_or_end("region make it 8192", "region").and_then(|id| {
        owner.ask_or_end(&format!("region grant it {reader} read"), "region")?;
        // It may be dead by now.
        node.map_region(id.parse().expect("a number")).ok()
    });
    let was_killed = std::thread::scope(|scope| {
        let reading = region.as_ref().map(|region| {
            scope.spawn(|| {
                let mut seen = 0;
                loop {
                    match region.wait(seen, Some(LONG)) {
                        Ok(version) => {
                            assert!(version > seen);
                            seen = version;
                            let mut digit = [0];
                            region.read_at(4000, &mut digit).expect("inside");
                            assert!(u64::from(digit[0].saturating_sub(b'0')) >= seen, "{digit:?}");
                        }
                        Err(RegionError::OwnerGone) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        });
        for digit in 1..=9 {
            let order = format!("region write it 4000 {digit}");
            let written = owner.ask_or_end(&order, "region");
            if written.is_none() || owner.ask_or_end("region sync it", "region").is_none() {
                break;
            }
        }
        let _ = owner.ask_or_end("region drop it", "region");
        let was_killed = owner.finish();
        if let Some(reading) = reading {
            reading.join().expect("no panic");
        }
        was_killed
    });
    drop(region);
    wait_until("the runtime has forgotten it", || node.regions().expect("a list").is_empty());
    was_killed
}
