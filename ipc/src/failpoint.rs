//! Places before and after each store into shared memory at which a test has this process die.
//!
//! Without the feature `failpoints`, which nothing that is delivered has, [`shared`] is the store
//! that it is given, and nothing else: no code, and no name. With it, a process that is started
//! with `IPC_DIES_AT=POINT SIDE COUNT` kills itself as it comes to that side (`before` or `after`)
//! of that point for the so manieth time, and one that is started with `IPC_PASSES_TO=FILE` counts
//! there how often it came by each.
//!
//! `ipcd` and `ipc-queue` have steps of their own, at which [`obey`] has them die.

#[cfg(not(feature = "failpoints"))]
macro_rules! shared {
    ($point:ident, $store:expr) => {
        $store
    };
}

#[cfg(feature = "failpoints")]
macro_rules! shared {
    ($point:ident, $store:expr) => {
        $crate::failpoint::around($crate::failpoint::At::$point, || $store)
    };
}

pub(crate) use shared;

#[cfg(feature = "failpoints")]
pub(crate) use armed::around;
#[cfg(feature = "failpoints")]
pub use armed::{At, Side, obey, passes};

#[cfg(feature = "failpoints")]
mod armed {
    use std::{
        env, fs,
        fs::{File, OpenOptions},
        io,
        os::unix::fs::FileExt,
        path::Path,
        sync::OnceLock,
    };

    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    use crate::sync::{AtomicU64, Ordering};

    macro_rules! points {
        ($($(#[$meaning:meta])+ $name:ident,)+) => {
            /// A store that others act on, or a step that changes what later stores mean.
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
            pub enum At {
                $($(#[$meaning])+ $name,)+
            }

            impl At {
                /// All of them.
                pub const ALL: &'static [At] = &[$(At::$name),+];
            }
        };
    }

    points! {
        /// The identity of an own lane.
        LaneIdentity,
        /// The life word says that the owner lives.
        LifeEntered,
        /// The kernel finds the life word when the keeper dies.
        LifeLinked,
        /// The life word says that the channel is closed.
        LifeClosed,
        /// All words of a cell but the one that opens it.
        CellWords,
        /// The word that opens a cell.
        CellStamp,
        /// A piece of the slab.
        SlabPiece,
        /// Frames are given back.
        Taken,
        /// A sleep is announced.
        Parked,
        /// That is taken back.
        Unparked,
        /// A wait for room is announced.
        Want,
        /// That is taken back.
        Unwant,
        /// The event word moves on.
        Event,
        /// Where the ids of a client begin that goes on by this channel.
        FirstHigh,
        /// Frames are being handled, or are no more.
        Busy,
        /// Where this end stands: it serves at an epoch, stands by, or has left.
        Mark,
        /// A span of bulk memory is given back.
        Released,
        /// An arena cannot be mapped.
        Unmapped,
        /// The identity of a ring of events.
        BusIdentity,
        /// What is older may be overwritten.
        Horizon,
        /// A record of a ring of events.
        Record,
        /// The record is shown.
        Head,
        /// Where it begins is.
        Last,
        /// Nothing more comes.
        BusClosed,
        /// The event word of a ring of events moves on.
        BusEvent,
        /// The identity of a cursor page.
        CursorIdentity,
        /// How far a reliable subscriber has come.
        Cursor,
        /// The identity of a region.
        RegionIdentity,
        /// Bytes of a region.
        RegionBytes,
        /// A word of a region, as a log of answers has them.
        RegionWord,
        /// The version of a region.
        RegionVersion,
        /// Its event word moves on.
        RegionEvent,
        /// Its owner lets go of it.
        RegionEnded,
        /// A record of a log of answers, in whichever memory.
        LogRecord,
        /// The record is shown.
        LogHead,
        /// Older ones may be overwritten.
        LogTail,
        /// The identity of a segment of a board.
        BoardIdentity,
        /// A slot of a board is taken.
        SlotTaken,
        /// It is given back.
        SlotGivenBack,
        /// Counts move to the sum of those that are gone.
        CountsMoved,
        /// An instance serves from now on: each channel is told by its mark.
        Promoted,
        /// The runtime is told that it does.
        PromotionTold,
        /// A message of a handshake is sent.
        Hello,
        /// A handshake is done: every frame is sealed.
        Sealed,
        /// The keys of what is sent change.
        Rekeyed,
        /// Those of what is received do.
        PeerRekeyed,
        /// What was under way by a channel that has ended goes by another.
        HandedOver,
    }

    /// On which side of a store.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum Side {
        /// Before it.
        Before,
        /// After it.
        After,
    }

    impl Side {
        /// Both.
        pub const ALL: [Side; 2] = [Side::Before, Side::After];
    }

    const SIDES: usize = At::ALL.len() * 2;

    static PASSES: [AtomicU64; SIDES] = [const { AtomicU64::new(0) }; SIDES];

    /// What this process was told at its start.
    #[derive(Debug, Default)]
    struct Told {
        dies: Option<(usize, u64)>,
        counts: Option<File>,
    }

    fn told() -> &'static Told {
        static TOLD: OnceLock<Told> = OnceLock::new();
        TOLD.get_or_init(|| {
            let counts = env::var_os("IPC_PASSES_TO");
            let counts = counts.and_then(|path| OpenOptions::new().write(true).open(path).ok());
            Told { dies: env::var("IPC_DIES_AT").ok().and_then(|text| order(&text)), counts }
        })
    }

    /// The place that an order names, and how often it is passed by.
    fn order(text: &str) -> Option<(usize, u64)> {
        let mut words = text.split(' ');
        let (at, side, count) = (words.next()?, words.next()?, words.next()?);
        let at = *At::ALL.iter().find(|it| format!("{it:?}") == at)?;
        let side = *Side::ALL.iter().find(|it| format!("{it:?}") == side)?;
        Some((index(at, side), count.parse().ok()?))
    }

    fn index(at: At, side: Side) -> usize {
        at as usize * 2 + side as usize
    }

    /// Makes a store, and dies before or after it if a test wants that.
    #[inline]
    pub(crate) fn around<T>(at: At, store: impl FnOnce() -> T) -> T {
        pass(at, Side::Before);
        let done = store();
        pass(at, Side::After);
        done
    }

    fn pass(at: At, side: Side) {
        let told = told();
        if told.dies.is_none() && told.counts.is_none() {
            return;
        }
        let index = index(at, side);
        let count = PASSES[index].fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(file) = &told.counts {
            // A test that finds too few of them says so.
            let _ = file.write_all_at(&count.to_le_bytes(), index as u64 * 8);
        }
        if told.dies == Some((index, count)) {
            let _ = kill(Pid::this(), Signal::SIGKILL);
        }
    }

    /// Reads how often a process that was told to count came by each side of each point; those
    /// that it did not come by are left out.
    ///
    /// # Errors
    /// As for reading a file.
    pub fn passes(path: &Path) -> io::Result<Vec<(At, Side, u64)>> {
        let bytes = fs::read(path)?;
        let counts = bytes.as_chunks::<8>().0.iter().map(|count| u64::from_le_bytes(*count));
        let places = At::ALL.iter().flat_map(|at| Side::ALL.map(|side| (*at, side)));
        let all = places.zip(counts).map(|((at, side), count)| (at, side, count));
        Ok(all.filter(|(_, _, count)| *count > 0).collect())
    }

    /// Dies here if the file that the variable names says just this step. The file is removed
    /// first, so that the test sees that it came to this. A file, because a test arms one step
    /// after another in a process that runs.
    pub fn obey(variable: &str, step: &str) {
        let Some(path) = env::var_os(variable) else { return };
        if fs::read_to_string(&path).is_ok_and(|told| told.trim() == step) {
            let _ = fs::remove_file(&path);
            let _ = kill(Pid::this(), Signal::SIGKILL);
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn an_order_names_one_side_of_one_point() {
            assert_eq!(order("Mark After 3"), Some((index(At::Mark, Side::After), 3)));
            for wrong in ["", "Mark", "Mark After", "Mark after 3", "Nothing After 3"] {
                assert_eq!(order(wrong), None, "{wrong}");
            }
        }

        #[test]
        fn a_store_that_nobody_is_told_about_is_made_once() {
            let mut made = 0;
            around(At::Mark, || made += 1);
            assert_eq!(made, 1);
        }
    }
}
