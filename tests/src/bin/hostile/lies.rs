//! Frames and words that an honest end never writes: each must cost the liar its channel.

use crate::{
    bulk,
    end::{
        CONTINUE, Cell, ERROR, End, FLAG_MORE, FLAG_SLAB, ORDINARY, PING, PONG, REQUEST, RESPONSE,
        SLAB, URGENT, at,
    },
    memory::{READ, WRITE},
};

/// Who lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// What is done with an end, and the id of a call.
type Tell = dyn Fn(&mut End, u32);

/// A lie, told about a call: as a client with a fresh id, as a server with the id that waits.
pub(crate) struct Lie {
    pub(crate) name: String,
    pub(crate) tell: Box<Tell>,
}

pub(crate) fn lie(name: impl Into<String>, tell: impl Fn(&mut End, u32) + 'static) -> Lie {
    Lie { name: name.into(), tell: Box::new(tell) }
}

/// Every lie of one side.
pub(crate) fn all(role: Role) -> Vec<Lie> {
    let mut lies = stamps(role);
    lies.extend(kinds(role));
    lies.extend(heads(role));
    lies.extend(places(role));
    lies.extend(fragments(role));
    lies.extend(lives());
    lies.extend(bulk::lies(role));
    match role {
        Role::Client => lies.extend(progress()),
        Role::Server => lies.extend(answers()),
    }
    lies
}

pub(crate) fn message(role: Role) -> u32 {
    match role {
        Role::Client => REQUEST,
        Role::Server => RESPONSE,
    }
}

/// Something small on the urgent ring that makes the other end look at the ordinary one, too.
fn attract(end: &mut End, role: Role) {
    let old = end.first_id;
    end.push(&match role {
        Role::Client => Cell::new(PING, old, 0).urgent(),
        Role::Server => Cell::new(RESPONSE, old, 8).urgent(),
    });
}

fn stamps(role: Role) -> Vec<Lie> {
    let told = |lap: u32| {
        lie(format!("a stamp {lap:#x} laps ahead"), move |end, id| {
            end.write(&Cell { lap, ..Cell::new(message(role), id, 8) });
            attract(end, role);
        })
    };
    [1, 2, 1000, 1 << 27, 0x0FFF_FFFE].map(told).into()
}

fn kinds(role: Role) -> Vec<Lie> {
    let wrong: &[u32] = match role {
        Role::Client => &[0, RESPONSE, ERROR, PONG, 9, 10, 15],
        Role::Server => &[0, REQUEST, 2, 6, PING, 9, 15],
    };
    let told = |kind: &u32| {
        let kind = *kind;
        lie(format!("kind {kind}"), move |end, id| end.write(&Cell::new(kind, id, 8)))
    };
    wrong.iter().map(told).collect()
}

fn heads(role: Role) -> Vec<Lie> {
    let kind = message(role);
    let mut lies = Vec::new();
    for priority in [0, 1, 5, 6, 7] {
        lies.push(lie(format!("priority {priority}, ordinary"), move |end, id| {
            end.write(&Cell { priority, ..Cell::new(kind, id, 8) });
        }));
    }
    for priority in [2, 3, 4, 5, 7] {
        lies.push(lie(format!("priority {priority}, urgent"), move |end, id| {
            end.write(&Cell { priority, ring: URGENT, ..Cell::new(kind, id, 8) });
        }));
    }
    for length in [49, 64, 4096, 0xFF_FFFF] {
        lies.push(lie(format!("{length} bytes in a cell"), move |end, id| {
            end.write(&Cell::new(kind, id, length));
        }));
    }
    for length in [0, 40, 40 + SLAB / 2 + 1, 40 + SLAB, 0xFF_FFFF] {
        lies.push(lie(format!("{length} bytes with a slab"), move |end, id| {
            let mut cell = Cell { flags: FLAG_SLAB, ..Cell::new(kind, id, length) };
            cell.words[0] = 0;
            end.write(&cell);
        }));
    }
    // More without a slab, an extension too long for the cell, what is not defined, and all at
    // once.
    for flags in [FLAG_MORE, 4, 4 | FLAG_MORE, 8, 16, 16 | FLAG_SLAB, 31] {
        lies.push(lie(format!("flags {flags}"), move |end, id| {
            let mut cell = Cell { flags, ..Cell::new(kind, id, 100) };
            cell.words[..2].copy_from_slice(&[0, 200]);
            end.write(&cell);
        }));
    }
    // An extension in a payload that is shorter, and where there can be none.
    for length in [0, 31] {
        lies.push(lie(format!("{length} bytes with an extension"), move |end, id| {
            end.write(&Cell { flags: 4, ..Cell::new(kind, id, length) });
        }));
    }
    let plain = match role {
        Role::Client => PING,
        Role::Server => ERROR,
    };
    for flags in [FLAG_SLAB, FLAG_SLAB | FLAG_MORE, 4] {
        lies.push(lie(format!("flags {flags} on kind {plain}"), move |end, id| {
            end.push(&Cell { flags, ..Cell::new(plain, id, 100) });
        }));
    }
    lies
}

fn places(role: Role) -> Vec<Lie> {
    let slab = u64::from(SLAB);
    let told = |place: u64| {
        lie(format!("place {place:#x}"), move |end, id| {
            let mut cell = Cell { flags: FLAG_SLAB, ..Cell::new(message(role), id, 100) };
            cell.words[0] = place;
            end.write(&cell);
        })
    };
    // The first piece begins at 0.
    [1, 8, slab / 2, slab - 8, slab, slab + 8, 1 << 32, 1 << 63, u64::MAX - 7, u64::MAX]
        .map(told)
        .into()
}

fn fragments(role: Role) -> Vec<Lie> {
    let kind = message(role);
    let begin = move |id, total| Cell::new(kind, id, 100).first(total);
    let more =
        |id, length| Cell { flags: FLAG_SLAB | FLAG_MORE, ..Cell::new(CONTINUE, id, length) };
    vec![
        lie("the end of nothing", |end, id| end.push(&Cell::new(CONTINUE, id, 8))),
        lie("the middle of nothing", move |end, id| end.push(&more(id, 100))),
        lie("a message begun twice", move |end, id| {
            end.push(&begin(id, 1000));
            end.push(&begin(id, 1000));
        }),
        lie("a total of nothing", move |end, id| end.push(&begin(id, 0))),
        lie("a total below the length", move |end, id| end.push(&begin(id, 99))),
        lie("a total of one frame", move |end, id| end.push(&begin(id, 100))),
        lie("the last one too early", move |end, id| {
            end.push(&begin(id, 1000));
            end.push(&Cell::new(CONTINUE, id, 10));
        }),
        lie("the last one too long", move |end, id| {
            end.push(&begin(id, 120));
            end.push(&Cell::new(CONTINUE, id, 40));
        }),
        lie("more than the total", move |end, id| {
            end.push(&begin(id, 120));
            end.push(&more(id, 100));
        }),
        lie("more to come of what is complete", move |end, id| {
            end.push(&begin(id, 200));
            end.push(&more(id, 100));
        }),
        lie("too many half messages", move |end, id| {
            for number in 0..65 {
                let id = if role == Role::Client { id + number } else { id - number };
                end.push_paced(&begin(id, 1 << 40));
            }
        }),
    ]
}

fn lives() -> Vec<Lie> {
    let told = |life: u32| {
        lie(format!("life word {life:#x}"), move |end, _| {
            end.own.word(at::LIFE).store(life, WRITE);
            end.own.wake(at::LIFE);
        })
    };
    [0, 0x4000_0000, 0xC000_0001, u32::MAX].map(told).into()
}

/// `taken` words that cannot be: read by a sender that is out of credit.
fn progress() -> Vec<Lie> {
    let ahead = |taken: u64| {
        lie(format!("{taken:#x} frames taken"), move |end, id| {
            end.own.long(at::TAKEN[ORDINARY]).store(taken, WRITE);
            end.push_until_cut(id);
        })
    };
    let mut lies: Vec<_> = [1 << 20, 1 << 40, 1 << 63, u64::MAX].map(ahead).into();
    lies.push(lie("progress backwards", |end, id| {
        // Twice round the ring: the other end has looked once.
        for number in 0..130 {
            end.push_paced(&Cell::new(REQUEST, id + number, 8));
            end.ring();
            end.take(ORDINARY);
        }
        end.own.long(at::TAKEN[ORDINARY]).store(3, WRITE);
        end.push_until_cut(id + 130);
    }));
    lies
}

fn answers() -> Vec<Lie> {
    let mut lies = Vec::new();
    for ahead in [1, 256, 1 << 20, 1 << 31] {
        lies.push(lie(format!("an answer to what is {ahead} ahead"), move |end, id| {
            end.push(&Cell::new(RESPONSE, id.wrapping_add(ahead), 8));
        }));
    }
    lies.push(lie("an error for nobody", |end, id| {
        let mut cell = Cell::new(ERROR, id.wrapping_add(256), 4);
        cell.words[0] = u64::from(u32::MAX);
        end.push(&cell);
    }));
    for status in [0, 1, i32::MAX] {
        lies.push(lie(format!("error {status}"), move |end, id| {
            let mut cell = Cell::new(ERROR, id, 4);
            cell.words[0] = u64::from(status.unsigned_abs());
            end.push(&cell);
        }));
    }
    lies
}

/// What is strange, and no lie: the channel must go on. Returns how many strange things were done.
pub(crate) fn oddities(end: &mut End) -> u32 {
    let mut count = 0;
    // Ids and deadlines are the caller's own business.
    for id in [0, 1, 7, 1 << 30, u32::MAX, 1 << 31, 12] {
        end.call(id);
        count += 1;
    }
    for deadline in [1, 1000, 1 << 30, (1 << 31) - 1, 1 << 31, u32::MAX] {
        end.push(&Cell { deadline, ..Cell::new(REQUEST, 50, 8) });
        end.ring();
        let (kind, id, _) = end.take(ORDINARY);
        assert!(id == 50 && (kind == RESPONSE || kind == ERROR), "deadline {deadline}: {kind}");
        count += 1;
    }
    // Words that only cost their reader a wake-up.
    for value in [1, 2, 3, 4, 5, 6, 0x7FFF_FFFF, u32::MAX - 1, u32::MAX] {
        end.own.word(at::PARKED).store(value, WRITE);
        for want in at::WANT {
            end.own.long(want).store(u64::from(value) << 20 | u64::from(value), WRITE);
        }
        end.own.word(at::EVENT).store(value, WRITE);
        end.own.long(at::BUSY).store(u64::MAX - u64::from(value), WRITE);
        end.own.word(at::LIFE).store((value | 0x8000_0000) & !0x4000_0000, WRITE);
        end.call(value);
        count += 1;
    }
    // What the owner wrote once is read once.
    for once in [at::MAGIC, at::VERSION, at::CELLS, at::SLAB] {
        end.own.word(once).store(u32::MAX, WRITE);
        end.call(9);
        count += 1;
    }
    // The withdrawal of what was never asked for, and of what was half said.
    end.push(&Cell::new(6, 77, 0));
    end.push(&Cell::new(REQUEST, 78, 100).first(1 << 20));
    end.push(&Cell::new(6, 78, 0));
    end.call(78);
    // Claims of very long messages, of which only the beginning comes: 60 stay open.
    for id in 100..160 {
        end.push_paced(&Cell::new(REQUEST, id, 100).first(u64::MAX - u64::from(id)));
        count += 1;
    }
    end.call(99);
    assert_eq!(end.theirs.word(at::LIFE).load(READ) & 0x4000_0000, 0);
    count
}
