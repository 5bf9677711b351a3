//! Which payloads of traced requests an operator may see: what the runtime has told this process.

use std::sync::{Mutex, PoisonError};

use crate::ServiceId;

/// Most bytes of one payload that are shown.
pub const MOST_SHOWN: usize = 1024;
/// Instances of one process that can be told of at a time.
const MOST: usize = 64;

/// What may be shown of the requests to an instance.
#[derive(Clone, Copy, Debug)]
struct Leave {
    instance: ServiceId,
    /// Of each payload, from its beginning.
    bytes: usize,
    until_ns: u64,
}

/// Looked at for traced requests alone.
static LEAVES: Mutex<Vec<Leave>> = Mutex::new(Vec::new());

/// Lets that many bytes of each payload be shown until then; none any more with 0. The last word
/// on an instance stands; beyond the most instances nothing is shown. Says whether any are left.
pub(crate) fn allow(instance: ServiceId, bytes: u32, until_ns: u64, now_ns: u64) -> bool {
    let mut leaves = LEAVES.lock().unwrap_or_else(PoisonError::into_inner);
    leaves.retain(|it| it.instance != instance && now_ns < it.until_ns);
    let bytes = MOST_SHOWN.min(bytes as usize);
    if bytes > 0 && leaves.len() < MOST {
        leaves.push(Leave { instance, bytes, until_ns });
    }
    !leaves.is_empty()
}

/// Tells how many bytes of a payload may be shown now; 0 for none.
pub(crate) fn shown(instance: ServiceId, now_ns: u64) -> usize {
    let leaves = LEAVES.lock().unwrap_or_else(PoisonError::into_inner);
    let it = leaves.iter().find(|it| it.instance == instance && now_ns < it.until_ns);
    it.map_or(0, |it| it.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leave_is_for_an_instance_and_a_time_and_ends() {
        let (one, other) = (ServiceId::new(70), ServiceId::new(71));
        assert_eq!(shown(one, 0), 0);
        assert!(allow(one, 64, 100, 0));
        assert_eq!((shown(one, 99), shown(one, 100), shown(other, 0)), (64, 0, 0));
        assert!(allow(one, u32::MAX, 100, 0), "the last word stands");
        assert_eq!(shown(one, 0), MOST_SHOWN);
        assert!(allow(other, 1, 200, 150), "what is over is forgotten");
        assert!(!allow(other, 0, 300, 150));
        assert_eq!(shown(other, 150), 0);
        for instance in 0..100 {
            allow(ServiceId::new(1000 + instance), 1, 100, 0);
        }
        assert_eq!((shown(ServiceId::new(1000), 0), shown(ServiceId::new(1099), 0)), (1, 0));
        allow(one, 0, 100, 100);
    }
}
