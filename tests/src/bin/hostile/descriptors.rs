//! Descriptors that are no lanes, and lanes that one tries to get at.

use std::{
    fs::{File, OpenOptions},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl},
    sys::{prctl, stat},
    unistd::{Uid, ftruncate, setresuid},
};

use crate::{
    end::{CELLS, End, SLAB, at, lane, memfd, seals},
    memory::{self, Map, WRITE},
    wire::{Wire, verb},
};

pub(crate) const LANE: u64 = 16_384;
/// Nobody.
const STRANGER: u32 = 65_534;

pub(crate) fn sealed(bytes: u64, allocated: bool) -> OwnedFd {
    let fd = memfd(bytes);
    if allocated {
        fallocate(&fd, FallocateFlags::empty(), 0, bytes as i64).expect("memory");
    }
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals())).expect("sealed");
    fd
}

/// Everything that somebody may offer for a lane.
pub(crate) fn impostors() -> Vec<(String, OwnedFd)> {
    let mut all: Vec<(String, OwnedFd)> = Vec::new();
    let mut add = |name: &str, fd: OwnedFd| all.push((name.to_owned(), fd));
    for seal in seals() {
        // Without SEAL one could be added later; without one of the others a reader could fault.
        add(&format!("a lane without {seal:?}"), lane(seals() & !seal).0);
    }
    add("an unsealed lane", lane(SealFlag::empty()).0);
    add("a short one", sealed(LANE - 4096, true));
    add("a long one", sealed(LANE + 4096, true));
    add("an empty one", sealed(0, false));
    add("a sparse one", sealed(LANE, false));
    add("a sparse one of 1 TiB", sealed(1 << 40, false));
    let holed = memfd(LANE);
    fallocate(&holed, FallocateFlags::empty(), 0, LANE as i64).expect("memory");
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&holed, punch, 4096, 4096).expect("a hole");
    fcntl(&holed, FcntlArg::F_ADD_SEALS(seals())).expect("sealed");
    add("one with a hole", holed);
    let file = tempfile::tempfile().expect("a file");
    file.set_len(LANE).expect("of that length");
    add("a regular file", file.into());
    add("a directory", File::open("/proc").expect("it is there").into());
    add("a device", File::open("/dev/zero").expect("it is there").into());
    add("a pipe", nix::unistd::pipe().expect("a pipe").0);
    add("an eventfd", nix::sys::eventfd::EventFd::new().expect("an eventfd").into());
    let own = i64::from(std::process::id());
    add("a pidfd", memory::descriptor_of(libc::SYS_pidfd_open, own).expect("ours"));
    if let Ok(fuse) = OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        add("fuse's device", fuse.into());
    }
    for (name, call, argument) in [
        ("a userfaultfd", libc::SYS_userfaultfd, i64::from(libc::O_CLOEXEC)),
        ("secret memory", libc::SYS_memfd_secret, 0),
    ] {
        if let Some(fd) = memory::descriptor_of(call, argument) {
            add(name, fd);
        }
    }
    let ours = lane(seals()).0;
    add("a lane by its path only", {
        let path = format!("/proc/self/fd/{}", ours.as_raw_fd());
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
        nix::fcntl::open(path.as_str(), flags, stat::Mode::empty()).expect("opened")
    });
    all
}

/// Offers them all as a client, none of which may reach the service; returns how many.
pub(crate) fn offer(wire: &Wire, to: u32) -> usize {
    let all = impostors();
    for (name, fd) in &all {
        let answer = wire.offer(to, CELLS, SLAB, &[fd.as_raw_fd()]);
        assert_eq!(answer.verb, verb::REFUSED, "{name}");
        assert!(answer.fds.is_empty() && answer.status < 0, "{name}");
    }
    all.len()
}

/// Accepts the next clients with them; returns how many.
pub(crate) fn accept(wire: &Wire) -> usize {
    let all = impostors();
    for (_, fd) in &all {
        let offer = wire.receive();
        assert_eq!(offer.verb, verb::INCOMING);
        wire.accept(offer.u64(0), fd.as_raw_fd());
    }
    all.len()
}

/// How many there are.
pub(crate) fn count() -> usize {
    impostors().len()
}

/// Lanes that are sealed as they should be, and say that they are something else.
fn strangers() -> Vec<OwnedFd> {
    let told = [
        (at::MAGIC, 0),
        (at::MAGIC + 4, 0x0265_6E61),
        (at::VERSION, 0),
        (at::VERSION, 2),
        (at::CELLS, CELLS * 2),
        (at::CELLS, 0),
        (at::CELLS, u32::MAX),
        (at::SLAB, SLAB / 2),
        (at::SLAB, u32::MAX),
    ];
    let lanes = told.map(|(at, value)| {
        let (fd, map) = lane(seals());
        map.word(at).store(value, WRITE);
        fd
    });
    lanes.into()
}

/// Offers lanes that lie about what they are; returns how many were refused.
pub(crate) fn offer_strangers(wire: &Wire, to: u32) -> usize {
    let lanes = strangers();
    for lane in &lanes {
        let answer = wire.offer(to, CELLS, SLAB, &[lane.as_raw_fd()]);
        assert!(answer.verb == verb::REFUSED && answer.status < 0, "{answer:?}");
    }
    lanes.len()
}

/// Accepts the next clients with such lanes; returns how many.
pub(crate) fn accept_strangers(wire: &Wire) -> usize {
    let lanes = strangers();
    for lane in &lanes {
        let offer = wire.receive();
        assert_eq!(offer.verb, verb::INCOMING);
        wire.accept(offer.u64(0), lane.as_raw_fd());
    }
    lanes.len()
}

/// Tries to change the other end's lane, or its own behind its seals; returns how often it failed.
pub(crate) fn break_in(end: &End) -> u32 {
    let mut tried = 0;
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
    for fd in [&end.their_fd, &end.fd] {
        let again = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let again = OpenOptions::new().read(true).write(true).open(again);
        // As the same user one may open it, and has the same seals before one.
        let again = again.ok().map(OwnedFd::from);
        for fd in [Some(fd), again.as_ref()].into_iter().flatten() {
            for length in [0, 4096, LANE as i64 + 4096] {
                assert!(ftruncate(fd, length).is_err());
            }
            assert!(fallocate(fd, punch, 0, 4096).is_err());
            assert!(fallocate(fd, punch, 0, LANE as i64).is_err());
            assert!(fallocate(fd, zero, 0, 4096).is_err());
            assert!(fallocate(fd, FallocateFlags::empty(), LANE as i64, 4096).is_err());
            assert!(nix::unistd::write(fd, b"written").is_err());
            assert!(nix::sys::uio::pwrite(fd, b"written", 128).is_err());
            assert!(Map::new(fd, LANE as usize, true).is_err());
            let more = FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE);
            assert_eq!(fcntl(fd, more), Err(Errno::EPERM));
            tried += 11;
        }
    }
    assert!(end.theirs.make_writable().is_err());
    assert!(end.theirs.remove().is_err());
    // Made before the seals, and still there.
    assert!(end.own.remove().is_err());
    tried + 3
}

/// Becomes another user, and tries to open the other end's lane; `None` when that is not allowed.
pub(crate) fn break_in_as_a_stranger(end: &End) -> Option<()> {
    let open_to_all = memfd(4096);
    stat::fchmod(&open_to_all, stat::Mode::from_bits_truncate(0o777)).expect("it is ours");
    let stranger = Uid::from_raw(STRANGER);
    setresuid(stranger, stranger, stranger).ok()?;
    prctl::set_dumpable(true).expect("then /proc/self is ours again");
    let open = |fd: &OwnedFd, write: bool| {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        OpenOptions::new().read(true).write(write).open(path)
    };
    // This way in is open, where the mode is.
    open(&open_to_all, true).expect("as the mode says");
    for write in [false, true] {
        let refused = open(&end.their_fd, write).expect_err("it is another user's");
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    }
    assert!(stat::fchmod(&end.their_fd, stat::Mode::S_IRWXO).is_err());
    assert!(Map::new(&end.their_fd, LANE as usize, true).is_err());
    assert!(ftruncate(&end.their_fd, 0).is_err());
    Some(())
}
