//! An honest end of a channel before a peer that lies about arenas and loans: it reads what lies
//! inside of what it was handed, its own loans stay its own until they are sent, and that is all.
//!
//! Input: a byte for the honest end, then steps. See `step`.

#![no_main]

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::OnceLock,
    time::Duration,
};

use fuzz::Input;
use ipc::{
    CallError, Loan, Request, Retained, View,
    fuzzing::{Claims, End, MAX_PAYLOAD, Stage, arena},
};
use libfuzzer_sys::fuzz_target;

const STEPS: usize = 60;
const PAGE: u64 = 4096;

fuzz_target!(|input: &[u8]| {
    let mut input = Input::new(input);
    let honest = if input.u8() & 1 == 0 { End::Server } else { End::Client };
    let stage = Stage::lending(honest).expect("descriptors and memory");
    let last_id = stage.first_id();
    let mut play =
        Play { stage, honest, last_id, kept: Vec::new(), views: Vec::new(), loans: Vec::new() };
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        play.step(&mut input);
    }
    play.loans.iter().for_each(is_untouched);
    let Play { stage, kept, views, .. } = play;
    drop(kept);
    let (begun, ended) = stage.finish();
    assert_eq!(begun, ended, "calls begun, callbacks run");
    // A view outlives its channel.
    views.iter().for_each(read);
});

struct Play {
    stage: Stage,
    honest: End,
    last_id: u32,
    kept: Vec<Retained>,
    views: Vec<View>,
    /// Loans in the hands of the honest end, each full of one byte.
    loans: Vec<Loan>,
}

impl Play {
    fn step(&mut self, input: &mut Input) {
        let what = input.u8();
        let how = what >> 4;
        match what & 0x0F {
            0 | 1 => self.hand_over(how, input),
            2 => {
                let number = u32::from(input.u8() & 7);
                self.stage.say(&notice(2, number, 0), &[]);
            }
            3 => {
                let bytes = input.bytes(17);
                let fd = memory(usize::from(how));
                self.stage.say(&bytes, &[fd; 2][..usize::from(how) % 3]);
            }
            4..=6 => self.describe(how, input),
            7 => {
                let value = if how & 1 == 0 { u32::from(input.u8() & 7) } else { input.u32() };
                self.stage.release(input.u8(), value);
            }
            8 => (0..32).for_each(|slot| self.stage.release(slot, u32::from(how))),
            9 => self.stage.refuse_arena(u32::from(how)),
            10 => {
                let _ = self.stage.take(how & 1 == 0);
            }
            11 => self.stage.ring_bell(how == 15),
            12 => {
                self.kept.pop();
                self.views.pop();
                self.loans.truncate(usize::from(how));
            }
            _ => match self.honest {
                End::Server => self.serve(how, input),
                End::Client => self.call(how, input),
            },
        }
    }

    fn hand_over(&mut self, how: u8, input: &mut Input) {
        let number = u32::from(input.u8() & 7);
        let pages = u64::from(how & 3);
        // Mostly the truth.
        let claim = match how >> 2 {
            3 => input.u64(),
            _ => PAGE << pages,
        };
        self.stage.say(&notice(1, number, claim), &[memory(usize::from(how & 3))]);
    }

    fn describe(&mut self, how: u8, input: &mut Input) {
        let claim = input.u8();
        // Near the last, on either side.
        self.last_id = self.last_id.wrapping_add(u32::from(claim & 1));
        let is_answer = self.honest == End::Client;
        let claims = Claims {
            kind: if is_answer { 2 } else { claim >> 1 & 1 },
            priority: 2,
            urgent: false,
            id: self.last_id,
            deadline: 0,
        };
        let words = if how == 15 {
            std::array::from_fn(|_| input.u64())
        } else {
            let place = u64::from(input.u8() % 33) << 32 | u64::from(claim >> 5);
            let offset = u64::from(input.u16() & 0x3FFF);
            let length = u64::from(input.u16() & 0x1FFF);
            [place, offset, length, u64::from(input.u8())]
        };
        self.stage.describe(claims, words);
    }

    fn serve(&mut self, how: u8, input: &mut Input) {
        let size = usize::from(input.u16()) % (MAX_PAYLOAD as usize);
        let (kept, loans) = (&mut self.kept, &mut self.loans);
        let served = self.stage.serve(Duration::ZERO, |request: Request<'_>| {
            assert!(request.view().map_or(0, View::len) as u64 <= MAX_PAYLOAD, "over the limit");
            if let Some(view) = request.view() {
                read(view);
                let copy = request.payload().to_vec();
                assert_eq!(copy, request.payload());
            }
            match how & 3 {
                0 => {
                    if let Ok(loan) = request.loan(size) {
                        loans.push(filled(loan, loans.len()));
                    }
                }
                1 => {
                    if let Ok(loan) = request.loan(size) {
                        let loan = filled(loan, how.into());
                        is_untouched(&loan);
                        let _ = request.reply_loaned(loan);
                    }
                }
                2 => kept.push(request.retain()),
                _ => {
                    let _ = request.reply(&vec![2; size]);
                }
            }
        });
        assert!(served.is_ok(), "{served:?}");
        self.loans.iter().for_each(is_untouched);
    }

    fn call(&mut self, how: u8, input: &mut Input) {
        let size = usize::from(input.u16()) % (MAX_PAYLOAD as usize + 2);
        let Ok(loan) = self.stage.loan(size) else { return };
        let loan = filled(loan, self.loans.len());
        if how & 1 == 0 {
            self.loans.push(loan);
        } else {
            // The answer, if there is one, came before the call: so ids are guessed.
            match self.stage.call_loaned(loan, Duration::from_micros(u64::from(how))) {
                Ok(view) => {
                    assert!(view.len() as u64 <= MAX_PAYLOAD, "over the limit");
                    read(&view);
                    self.views.push(view);
                }
                Err(CallError::Node(error)) => panic!("{error}"),
                Err(_) => {}
            }
        }
        self.loans.iter().for_each(is_untouched);
    }
}

fn notice(kind: u32, number: u32, bytes: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &number.to_le_bytes(), &bytes.to_le_bytes()].concat()
}

/// Arenas of one, two, four and eight pages.
fn memory(which: usize) -> BorrowedFd<'static> {
    static MEMORY: OnceLock<[OwnedFd; 4]> = OnceLock::new();
    let all = MEMORY.get_or_init(|| {
        [1, 2, 4, 8].map(|pages| arena(PAGE * pages).expect("descriptors and memory"))
    });
    all[which % all.len()].as_fd()
}

fn filled(mut loan: Loan, with: usize) -> Loan {
    loan.fill(with as u8);
    loan
}

/// What was lent to the honest end is nobody else's.
fn is_untouched(loan: &Loan) {
    assert!(loan.iter().all(|byte| *byte == loan[0]), "a loan was lent twice");
}

fn read(view: &View) {
    let mut all = vec![0; view.len() + 8];
    assert_eq!(view.read_at(0, &mut all), view.len());
    assert_eq!(view.read_at(view.len(), &mut all), 0);
}
