//! Bulk memory by hand, and everything about it that an honest end never says or does.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl},
    sys::socket::MsgFlags,
    unistd::ftruncate,
};
use tests::wait_until;

use crate::{
    Villain,
    descriptors::{self, LANE},
    end::{
        Cell, ERROR, End, FLAG_BULK, FLAG_MORE, Frame, ORDINARY, REQUEST, RESPONSE, at, memory,
        seals,
    },
    lies::{Lie, Role, lie, message},
    memory::{Map, READ, WRITE},
    say,
    wire::packet,
};

const SLOTS: usize = 32;
/// A payload that is sent in bulk if there is room for it.
const LARGE: usize = 20_000;
/// Numbers of an arena that was handed over, and of one that never was.
const KNOWN: u32 = 1;
const UNKNOWN: u32 = 9;

/// Where a message lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    arena: u32,
    slot: u32,
    offset: u64,
    length: u64,
    generation: u64,
}

impl Place {
    /// The first loan of a slot: the first bytes of an arena.
    fn of(arena: u32) -> Place {
        Place { arena, slot: 0, offset: 0, length: 100, generation: 1 }
    }

    fn words(self) -> [u64; 6] {
        let place = u64::from(self.slot) << 32 | u64::from(self.arena);
        [place, self.offset, self.length, self.generation, 0, 0]
    }

    fn from_words(words: [u64; 6]) -> Place {
        let [place, offset, length, generation, ..] = words;
        let (arena, slot) = (place as u32, (place >> 32) as u32);
        Place { arena, slot, offset, length, generation }
    }

    fn cell(self, kind: u32, id: u32) -> Cell {
        Cell { flags: FLAG_BULK, words: self.words(), ..Cell::new(kind, id, 32) }
    }
}

/// An arena as it should be.
fn arena(bytes: u64) -> (OwnedFd, Map) {
    let (fd, map) = memory(bytes as usize);
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals())).expect("sealed");
    (fd, map)
}

fn notice(kind: u32, number: u32, bytes: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &number.to_le_bytes(), &bytes.to_le_bytes()].concat()
}

impl End {
    /// Says something on the socket; false when it is full.
    fn tell(&self, bytes: &[u8], fds: &[RawFd]) -> bool {
        match packet(&self.bell, bytes, fds, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN) => false,
            // Who was cut hears it elsewhere.
            _ => true,
        }
    }

    fn hand_over(&self, number: u32, bytes: u64, fds: &[RawFd]) {
        assert!(self.tell(&notice(1, number, bytes), fds), "there is room");
    }

    /// Hands over an arena as it should be.
    fn lend(&self, number: u32, bytes: u64) -> (OwnedFd, Map) {
        let (fd, map) = arena(bytes);
        self.hand_over(number, bytes, &[fd.as_raw_fd()]);
        (fd, map)
    }

    /// Sends a request whose payload lies there, and waits for the answer.
    fn call_there(&mut self, place: Place, id: u32) -> Frame {
        self.push(&place.cell(REQUEST, id));
        self.ring();
        self.take_answer(id).0
    }

    /// Waits for the whole answer to a call: its first frame, and how many there were.
    fn take_answer(&mut self, id: u32) -> (Frame, u32) {
        let first = self.take_frame(ORDINARY);
        assert_eq!(first.id, id, "{first:?}");
        let (mut last, mut count) = (first, 1);
        while last.flags & FLAG_MORE != 0 {
            self.ring();
            last = self.take_frame(ORDINARY);
            count += 1;
        }
        self.ring();
        (first, count)
    }

    fn release(&self, slot: u32, generation: u32) {
        self.own.word(at::RELEASED + 4 * slot as usize).store(generation, WRITE);
    }

    fn released(&self, slot: u32) -> u32 {
        self.theirs.word(at::RELEASED + 4 * slot as usize).load(READ)
    }

    /// Waits until the other end has given a loan back.
    fn await_return(&self, slot: u32, generation: u32) {
        wait_until("it is given back", || {
            self.ring();
            self.released(slot) == generation
        });
    }
}

/// What no honest sender says of bulk memory, in a frame or on the socket.
pub(crate) fn lies(role: Role) -> Vec<Lie> {
    let mut lies = places(role);
    lies.extend(notices(role));
    lies.extend(arenas(role));
    lies.push(lie("a loan that was given back", move |end, id| {
        let (_fd, map) = end.lend(KNOWN, LANE);
        map.byte(0).store(b'x', WRITE);
        let place = Place { length: 1, ..Place::of(KNOWN) };
        let id = of_nobody(end, role, id);
        end.push(&place.cell(message(role), id));
        end.await_return(0, 1);
        end.push(&place.cell(message(role), id));
    }));
    lies
}

/// An id that leaves the call that waits as it is.
fn of_nobody(end: &End, role: Role, id: u32) -> u32 {
    if role == Role::Client { id } else { end.first_id }
}

fn places(role: Role) -> Vec<Lie> {
    let size = LANE;
    let place = Place::of(KNOWN);
    let all = [
        ("an arena that never was", Place { arena: UNKNOWN, ..place }),
        ("arena 0", Place { arena: 0, ..place }),
        ("an offset behind the end", Place { offset: size + 1, length: 0, ..place }),
        ("a byte behind the end", Place { offset: size, length: 1, ..place }),
        ("a length over the end", Place { length: size + 1, ..place }),
        ("an end over the end", Place { offset: size - 8, length: 16, ..place }),
        ("an offset of all bits", Place { offset: u64::MAX, length: 1, ..place }),
        ("a length of all bits", Place { length: u64::MAX, ..place }),
        ("a sum that overflows", Place { offset: 16, length: u64::MAX - 15, ..place }),
        (
            "a sum that overflows to what is inside",
            Place { offset: 1 << 63, length: 1 << 63, ..place },
        ),
        ("slot 32", Place { slot: 32, ..place }),
        ("a slot of all bits", Place { slot: u32::MAX, ..place }),
        ("generation 0", Place { generation: 0, ..place }),
        ("a generation of 33 bits", Place { generation: 1 << 32, ..place }),
        ("a generation of all bits", Place { generation: u64::MAX, ..place }),
    ];
    let mut lies: Vec<Lie> = all
        .into_iter()
        .map(|(name, place)| {
            lie(name, move |end, id| {
                end.lend(KNOWN, size);
                end.push(&place.cell(message(role), id));
            })
        })
        .collect();
    for length in [0, 8, 31, 33, 48, 100] {
        lies.push(lie(format!("a descriptor of {length} bytes"), move |end, id| {
            end.lend(KNOWN, size);
            end.push(&Cell { length, ..place.cell(message(role), id) });
        }));
    }
    lies
}

/// What is said on the socket, before a frame that makes its reader look there.
fn notices(role: Role) -> Vec<Lie> {
    let told = |name: &str, bytes: Vec<u8>, copies: usize| {
        lie(name, move |end, id| {
            let (fd, _) = arena(LANE);
            assert!(end.tell(&bytes, &vec![fd.as_raw_fd(); copies]));
            end.push(&Place::of(KNOWN).cell(message(role), id));
        })
    };
    let mut lies = vec![
        told("an arena without a descriptor", notice(1, KNOWN, LANE), 0),
        told("an arena with two", notice(1, KNOWN, LANE), 2),
        told("an arena with 253", notice(1, KNOWN, LANE), 253),
        told("an arena of no bytes", notice(1, KNOWN, 0), 1),
        told("an arena of half its bytes", notice(1, KNOWN, LANE / 2), 1),
        told("an arena of more bytes than it has", notice(1, KNOWN, LANE + 4096), 1),
        told("an arena of over a gigabyte", notice(1, KNOWN, (1 << 30) + 1), 1),
        told("an arena of 1 TiB", notice(1, KNOWN, 1 << 40), 1),
        told("an arena of all bits", notice(1, KNOWN, u64::MAX), 1),
        told("the end of what never was", notice(2, UNKNOWN, 0), 0),
        told("an end with bytes", notice(2, KNOWN, 1), 0),
        told("an end with a descriptor", notice(2, KNOWN, 0), 1),
        told("notice 0", notice(0, KNOWN, LANE), 1),
        told("notice 3", notice(3, KNOWN, LANE), 1),
        told("a notice of all bits", vec![255; 16], 1),
        told("a notice that is too long", [notice(1, KNOWN, LANE), vec![0]].concat(), 1),
    ];
    lies.push(lie("an arena twice", move |end, id| {
        let (fd, _) = end.lend(KNOWN, LANE);
        end.hand_over(KNOWN, LANE, &[fd.as_raw_fd()]);
        end.push(&Place::of(UNKNOWN).cell(message(role), id));
    }));
    lies.push(lie("257 arenas", move |end, id| {
        let (fd, _) = arena(4096);
        for number in 1..=257 {
            end.hand_over(number, 4096, &[fd.as_raw_fd()]);
            if number % 64 == 0 {
                // A socket does not hold all of them; this makes its reader look there.
                let generation = number.into();
                let place = Place { length: 0, generation, ..Place::of(number) };
                end.push(&place.cell(message(role), of_nobody(end, role, id)));
                end.await_return(0, number);
            }
        }
        end.push(&Place::of(500).cell(message(role), id));
    }));
    lies.push(lie("more than a gigabyte of them", move |end, id| {
        // The quota is looked at before the descriptors are.
        let fd = descriptors::sealed(1 << 29, true);
        for number in 1..=3 {
            end.hand_over(number, 1 << 29, &[fd.as_raw_fd()]);
        }
        end.push(&Place::of(UNKNOWN).cell(message(role), id));
    }));
    lies
}

/// What is no arena.
fn arenas(role: Role) -> Vec<Lie> {
    let all = descriptors::impostors();
    let told = |(name, fd): (String, OwnedFd)| {
        lie(format!("{name} for an arena"), move |end, id| {
            end.hand_over(KNOWN, LANE, &[fd.as_raw_fd()]);
            end.push(&Place::of(KNOWN).cell(message(role), id));
        })
    };
    let mut lies: Vec<Lie> = all.into_iter().map(told).collect();
    lies.push(lie("a sparse gigabyte for an arena", move |end, id| {
        let fd = descriptors::sealed(1 << 30, false);
        end.hand_over(KNOWN, 1 << 30, &[fd.as_raw_fd()]);
        end.push(&Place::of(KNOWN).cell(message(role), id));
    }));
    lies
}

impl Villain {
    /// As a client:
    /// - `arenas`: what is strange about arenas and loans, and no lie
    /// - `parade COUNT`: so many arenas, each taken back before the next
    /// - `throng`: the same without pause, of many bytes, until `rest`
    /// - `hoard COUNT`: has itself sent so many large answers, and gives none back; says how many
    ///   came in bulk, and how many in pieces
    /// - `misreturn`: gives back what it has not got; `return`: gives back what it has
    /// - `flap COUNT`: so many large answers, while it gives back whatever there may ever be
    /// - `steady COUNT`: so many requests in bulk that change while they are read
    /// - `sink COUNT`: so many, of an arena that it tries to take away meanwhile
    /// - `hold`: a request in bulk that the service keeps; the arena is said to be gone
    /// - `hold-again`: another one in the same slot
    ///
    /// As a service:
    /// - `keep COUNT`: takes so many large one-way messages of a client, and gives none back
    /// - `answer-there`: answers in bulk, and changes the answer for ever
    pub(crate) fn handle_bulk(&mut self, command: &str, rest: &str) {
        let count = || rest.parse().expect("a number");
        match command {
            "arenas" => {
                let count = oddities(self.end());
                say(&format!("odd {count}"));
            }
            "parade" => {
                let end = self.end();
                for number in 1..=count() {
                    let (fd, _) = arena(4096);
                    let said = [(1, 4096, vec![fd.as_raw_fd()]), (2, 0, vec![])];
                    for (kind, bytes, fds) in said {
                        wait_until("there is room", || {
                            end.ring();
                            end.tell(&notice(kind, number, bytes), &fds)
                        });
                    }
                    // Nothing of the other 10,000 is known then.
                }
                end.lend(u32::MAX, LANE);
                let answer = end.call_there(Place::of(u32::MAX), 77);
                assert_eq!(answer.kind, RESPONSE);
                say("paraded");
            }
            "throng" => self.throng(),
            "hoard" => self.hoard(count()),
            "misreturn" => self.misreturn(),
            "return" => self.give_all_back(),
            "flap" => self.flap(count()),
            "steady" => self.steady(count()),
            "sink" => self.sink(count()),
            "hold" => {
                let end = self.end();
                let (_fd, map) = end.lend(KNOWN, LANE);
                write(map, 0, b"!hold");
                let place = Place { length: 5, ..Place::of(KNOWN) };
                end.push(&place.cell(REQUEST, 50));
                end.ring();
                // What is answered next was sent behind it.
                end.call(51);
                end.tell(&notice(2, KNOWN, 0), &[]);
                end.call(52);
                say("holding");
            }
            "hold-again" => {
                let end = self.end();
                end.lend(KNOWN + 1, LANE);
                let place = Place { generation: 2, ..Place::of(KNOWN + 1) };
                end.push(&place.cell(REQUEST, 53));
                end.await_cut("a slot that is lent twice");
                say("cut");
            }
            "keep" => self.keep(count()),
            "answer-there" => self.answer_there(),
            other => panic!("no such command: {other} {rest}"),
        }
    }

    fn throng(&mut self) {
        const BYTES: u64 = 256 << 20;
        let (fd, _) = arena(BYTES);
        let end = self.end();
        let bell = end.bell.try_clone().expect("a descriptor");
        let mut next = 0_u32;
        self.noise.repeat(move || {
            let (kind, bytes, fds) = match next % 2 {
                0 => (1, BYTES, vec![fd.as_raw_fd()]),
                _ => (2, 0, vec![]),
            };
            let said = notice(kind, next / 2 + 1, bytes);
            let is_said = packet(&bell, &said, &fds, MsgFlags::MSG_DONTWAIT).is_ok();
            next += u32::from(is_said);
            is_said
        });
        say("thronging");
    }

    /// Asks for a large answer: where it lies, if it came in bulk.
    fn ask_large(&mut self) -> Option<Place> {
        self.id += 1;
        let id = self.id;
        let end = self.end();
        end.push_bytes(REQUEST, id, format!("!grow {LARGE}").as_bytes());
        end.ring();
        let (first, count) = end.take_answer(id);
        assert_eq!(first.kind, RESPONSE);
        if first.flags & FLAG_BULK == 0 {
            assert!(count > 1, "in pieces");
            return None;
        }
        let place = Place::from_words(first.words);
        assert_eq!((count, place.length), (1, LARGE as u64));
        Some(place)
    }

    fn hoard(&mut self, count: u32) {
        let mut pieces = 0;
        for _ in 0..count {
            match self.ask_large() {
                Some(place) => {
                    let is_apart = |kept: &Place| {
                        kept.slot != place.slot
                            && (kept.arena != place.arena
                                || kept.offset + kept.length <= place.offset
                                || place.offset + place.length <= kept.offset)
                    };
                    assert!(self.hoard.iter().all(is_apart), "{place:?} of {:?}", self.hoard);
                    self.hoard.push(place);
                }
                None => pieces += 1,
            }
        }
        say(&format!("hoarded {} {pieces}", self.hoard.len()));
    }

    /// Of each slot every generation but the one that was lent, and of some all one after another.
    fn misreturn(&mut self) {
        assert_eq!(self.hoard.len(), SLOTS, "all are lent");
        let lent: Vec<(u32, u32)> =
            self.hoard.iter().map(|place| (place.slot, place.generation as u32)).collect();
        for lie in [|_| 0, |it| it + 1, |it| it - 1, |it: u32| !it, |it| it + 1000, |_| u32::MAX] {
            for (slot, generation) in &lent {
                self.end().release(*slot, lie(*generation));
            }
            assert!(self.ask_large().is_none(), "nothing was given back");
        }
        say("misreturned");
    }

    fn give_all_back(&mut self) {
        let places = std::mem::take(&mut self.hoard);
        for place in &places {
            self.end().release(place.slot, place.generation as u32);
        }
        say(&format!("returned {}", places.len()));
    }

    fn flap(&mut self, count: u32) {
        let own = self.end().own;
        let mut generation = 0_u32;
        self.noise.repeat(move || {
            generation = (generation + 1) % 64;
            for slot in 0..SLOTS {
                own.word(at::RELEASED + 4 * slot).store(generation, WRITE);
            }
            true
        });
        for _ in 0..count {
            self.ask_large();
        }
        self.noise.stop();
        say("flapped");
    }

    fn steady(&mut self, count: u32) {
        const BYTES: u64 = 60_000;
        let mut end = self.ends.pop().expect("a channel");
        let (_fd, map) = end.lend(KNOWN, 1 << 16);
        write(map, 0, b"!steady ");
        let mut random = 0x9E37_79B9_u64;
        self.noise.repeat(move || {
            for _ in 0..64 {
                random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
                // Behind the command; in letters, so that it is one all the time.
                let at = 8 + (random >> 33) % (BYTES - 8);
                map.byte(at as usize).store(b'a' + (random >> 20 & 15) as u8, WRITE);
            }
            true
        });
        for round in 1..=count {
            let place = Place { length: BYTES, generation: round.into(), ..Place::of(KNOWN) };
            let answer = end.call_there(place, self.id + round);
            assert_eq!(answer.words[0].to_le_bytes(), *b"steady\0\0");
            end.await_return(0, round);
        }
        self.id += count;
        self.noise.stop();
        self.ends.push(end);
        say("steady");
    }

    fn sink(&mut self, count: u32) {
        let mut end = self.ends.pop().expect("a channel");
        let (fd, map) = end.lend(KNOWN, LANE);
        self.noise.repeat(move || {
            take_away(&fd, map);
            true
        });
        for round in 1..=count {
            // Not beginning with what its reader takes for a command.
            let payload = u64::from(round) << 8 | u64::from(b'a');
            write(map, 0, &payload.to_le_bytes());
            let place = Place { length: 8, generation: round.into(), ..Place::of(KNOWN) };
            let answer = end.call_there(place, self.id + round);
            assert_eq!((answer.kind, answer.words[0]), (RESPONSE, payload));
        }
        self.id += count;
        say(&format!("sunk {}", self.noise.stop()));
        self.ends.push(end);
    }

    fn keep(&mut self, count: u32) {
        self.ends.push(End::accept(&self.wire));
        let end = self.end();
        let (mut bulk, mut pieces) = (0, 0);
        while bulk + pieces < count {
            let frame = end.take_frame(ORDINARY);
            bulk += u32::from(frame.flags & FLAG_BULK != 0);
            // The last of several frames.
            pieces += u32::from(frame.kind == 5 && frame.flags & FLAG_MORE == 0);
            end.ring();
        }
        say(&format!("kept {bulk} {pieces}"));
    }

    fn answer_there(&mut self) {
        let mut end = self.ends.pop().expect("a channel");
        let (fd, map) = end.lend(KNOWN, 1 << 20);
        let mut round = 0_u64;
        self.noise.repeat(move || {
            round += 1;
            for word in 0..1 << 17 {
                map.long(8 * word).store(round, WRITE);
            }
            take_away(&fd, map);
            true
        });
        let place = Place { length: 1 << 20, ..Place::of(KNOWN) };
        end.push(&place.cell(RESPONSE, self.id));
        end.ring();
        self.ends.push(end);
        say("answering");
    }
}

fn write(map: Map, at: usize, bytes: &[u8]) {
    for (offset, byte) in bytes.iter().enumerate() {
        map.byte(at + offset).store(*byte, WRITE);
    }
}

/// Tries to take memory away from under its reader, in every way.
fn take_away(fd: &OwnedFd, map: Map) {
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    for length in [0, 4096, 1 << 30] {
        assert_eq!(ftruncate(fd, length), Err(Errno::EPERM));
    }
    assert!(fallocate(fd, punch, 0, 4096).is_err());
    assert!(fallocate(fd, FallocateFlags::FALLOC_FL_ZERO_RANGE, 0, 4096).is_err());
    assert!(fallocate(fd, FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, 0, 4096).is_err());
    assert!(map.remove().is_err());
}

/// What is strange, and no lie; returns how many strange things were done.
fn oddities(end: &mut End) -> u32 {
    let (fd, map) = end.lend(KNOWN, LANE);
    let text: Vec<u8> = (0..64).collect();
    write(map, 0, &text);
    let all = Place::of(KNOWN);
    let places = [
        Place { length: 0, ..all },
        Place { offset: LANE, length: 0, generation: 2, ..all },
        Place { offset: LANE - 1, length: 1, generation: 9, ..all },
        // Not where an honest lender begins, and one over the other.
        Place { offset: 3, length: 5, slot: 1, ..all },
        Place { offset: 5, length: 9, slot: 2, ..all },
        Place { length: LANE, slot: 31, ..all },
        Place { slot: 3, generation: u32::MAX.into(), ..all },
        Place { slot: 3, generation: 7, ..all },
    ];
    let mut count = 0;
    for place in places {
        let answer = end.call_there(place, 200 + count);
        assert_eq!(answer.kind, RESPONSE, "{place:?}");
        if place.length <= 48 && place.offset < 32 {
            let begin = place.offset as usize;
            let words = answer.words.map(u64::to_le_bytes).concat();
            assert_eq!(words[..place.length as usize], text[begin..][..place.length as usize]);
        }
        count += 1;
    }
    // The same memory by another number, as long as the quota has room; and one number again.
    for number in [2, 3, 4, 4, 4, u32::MAX, 0] {
        end.hand_over(number, LANE, &[fd.as_raw_fd()]);
        let slot = 8 + count % 16;
        assert_eq!(end.call_there(Place { slot, ..Place::of(number) }, 200 + count).kind, RESPONSE);
        end.tell(&notice(2, number, 0), &[]);
        count += 1;
    }
    // More than the other end takes: refused, and given back.
    let (_fd, _) = end.lend(5, 2_000_000);
    let place = Place { slot: 30, length: 2_000_000, ..Place::of(5) };
    assert_eq!(end.call_there(place, 200 + count).kind, ERROR);
    assert_eq!(end.released(30), 1);
    // Words about what was never lent, or never refused.
    for value in [1, 7, u32::MAX] {
        (0..SLOTS as u32).for_each(|slot| end.release(slot, value));
        end.own.word(0x18).store(value, WRITE);
        end.call(900 + count);
        count += 1;
    }
    count
}
