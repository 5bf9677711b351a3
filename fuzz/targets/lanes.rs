//! An honest end of a channel before a lane whose words lie, and change between its steps: it gives
//! what was sent or an error, and nothing else happens.
//!
//! Input: a byte for the honest end, then steps. See `step`.

#![no_main]

use std::time::Duration;

use fuzz::Input;
use ipc::{
    CallError, Request, Retained,
    fuzzing::{Claims, End, MAX_PAYLOAD, Stage, Word},
};
use libfuzzer_sys::fuzz_target;

/// Steps of one input: enough to go round a ring of 16 cells, few enough for 1000 inputs a second.
const STEPS: usize = 100;

fuzz_target!(|input: &[u8]| {
    let mut input = Input::new(input);
    let honest = if input.u8() & 1 == 0 { End::Server } else { End::Client };
    let mut play = Play {
        stage: Stage::new(honest).expect("descriptors and memory"),
        honest,
        kept: Vec::new(),
        last_id: 0,
    };
    play.last_id = play.stage.first_id().into();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        play.step(&mut input);
    }
    drop(play.kept);
    let (begun, ended) = play.stage.finish();
    assert_eq!(begun, ended, "calls begun, callbacks run");
});

struct Play {
    stage: Stage,
    honest: End,
    kept: Vec<Retained>,
    /// The call begun last, or the first id.
    last_id: u64,
}

impl Play {
    fn step(&mut self, input: &mut Input) {
        let what = input.u8();
        let urgent = what & 0x80 != 0;
        match what & 0x0F {
            0..=3 => self.push(urgent, what >> 4 & 3, input),
            4 => self.stage.tamper(urgent, input.u8() % 17, input.u8(), input.u64()),
            5 => self.stage.tamper(urgent, 0, 0, u64::from(input.u32()) << 32),
            6 => {
                let index = input.u8();
                self.stage.write_cell(urgent, index, std::array::from_fn(|_| input.u64()));
            }
            7 => self.stage.write_slab(urgent, input.u16(), input.u16(), input.u8()),
            8 => {
                let word = word(input.u8());
                // A little more or less than what an honest peer writes, or anything.
                let value = if urgent { input.u64() } else { u64::from(input.u8() % 34) };
                self.stage.write_word(word, value);
            }
            9 => {
                // A lie about what was taken shows here, too: the honest end wrote over it.
                let _ = self.stage.take(urgent);
            }
            10 => self.stage.ring_bell(urgent),
            11 => {
                self.kept.pop();
            }
            12 | 13 => self.serve(what >> 4, input),
            _ => self.client(what >> 4, input),
        }
    }

    fn push(&mut self, urgent: bool, size: u8, input: &mut Input) {
        let claim = input.u8();
        let (kind, priority) = (claim & 7, claim >> 3 & 7);
        // Near the last, on either side.
        let offset = i32::from(input.u8() as i8) as u32;
        let claims = Claims {
            kind: self.usual(kind),
            // 7 stands for what is usual on the ring.
            priority: if priority == 7 { 2 * u8::from(!urgent) } else { priority },
            urgent,
            id: (self.last_id as u32).wrapping_add(offset),
            deadline: if size == 3 { input.u32() } else { 0 },
        };
        let length = match size {
            0 => usize::from(input.u8()) % 49,
            1 => usize::from(input.u8()) * 4,
            _ => usize::from(input.u16()) % (MAX_PAYLOAD as usize + 100),
        };
        self.stage.push(claims, &vec![kind; length]);
    }

    /// Kinds in an order in which the first are those that the liar's end may send.
    fn usual(&self, kind: u8) -> u8 {
        match self.honest {
            End::Server => kind,
            End::Client => [2, 3, 4, 7, 0, 1, 5, 6][usize::from(kind)],
        }
    }

    fn serve(&mut self, how: u8, input: &mut Input) {
        let (answer, kept) = (usize::from(input.u16()), &mut self.kept);
        let patience = Duration::from_micros(if how == 7 { 20 } else { 0 });
        let served = self.stage.serve(patience, |request: Request<'_>| {
            assert!(request.payload().len() as u64 <= MAX_PAYLOAD, "over the limit");
            match how & 3 {
                0 => {
                    let _ = request.reply(&vec![1; answer % 60]);
                }
                1 => {
                    let _ = request.reply(&vec![2; answer]);
                }
                2 => kept.push(request.retain()),
                _ => {}
            }
        });
        assert!(served.is_ok(), "{served:?}");
    }

    fn client(&mut self, how: u8, input: &mut Input) {
        let priority = input.u8();
        let length = usize::from(input.u16()) % (MAX_PAYLOAD as usize + 100);
        let payload = vec![3; if how & 8 == 0 { length % 60 } else { length }];
        let timeout = Duration::from_micros(u64::from(priority >> 4));
        match how & 7 {
            0..=3 => {
                // No longer: it waits for room as long as it has time.
                match self.stage.start(priority, &payload, timeout) {
                    Ok(id) => self.last_id = id,
                    Err(error) => is_known(&error),
                }
            }
            4 | 5 => match self.stage.call(priority, &payload, timeout) {
                Ok(answer) => assert!(answer.len() as u64 <= MAX_PAYLOAD, "over the limit"),
                Err(error) => is_known(&error),
            },
            6 => {
                if let Err(error) = self.stage.send(priority, &payload, timeout) {
                    is_known(&error);
                }
            }
            _ => {
                self.stage.cancel(self.last_id);
            }
        }
    }
}

fn word(number: u8) -> Word {
    match number % 8 {
        0 => Word::TakenUrgent,
        1 => Word::TakenOrdinary,
        2 => Word::Parked,
        3 => Word::WantUrgent,
        4 => Word::WantOrdinary,
        5 => Word::Event,
        6 => Word::Busy,
        _ => Word::Life,
    }
}

/// The errors that a call may end with here. Others were for something that cannot have happened.
fn is_known(error: &CallError) {
    match error {
        CallError::TimedOut
        | CallError::PeerDied { .. }
        | CallError::PeerCorrupt(_)
        | CallError::Full
        | CallError::TooLarge { .. }
        | CallError::Canceled
        | CallError::Remote(_)
        | CallError::Invalid("the honest end is the server") => {}
        CallError::Invalid(_)
        | CallError::AlreadyAnswered
        | CallError::Forked
        | CallError::Reentrant
        | CallError::Node(_) => panic!("{error}"),
    }
}
