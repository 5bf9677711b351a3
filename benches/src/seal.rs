//! Sealing and opening a record, within one thread: our core beside the libraries.

use std::hint::black_box;
use std::io;

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
use ipc::bare::seal::Seals;
use ipc::session::{Binding, Handshake, Pattern, StaticKey, Then};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use crate::floor::Setting;
use crate::measure::{Latency, Throughput, latency, throughput};
use crate::report::Group;

/// What fits a cell beside a tag, what fits a cell, one block, and what is called bulk.
const SIZES: [usize; 6] = [16, 32, 48, 64, 1024, 64 << 10];
/// Longest text that keystream made ahead serves.
const SHORT: usize = 64;
/// Bytes sealed between two looks at the clock.
const BATCH_BYTES: usize = 1 << 18;
/// Records between two looks at the clock, when they are short.
const MOST_BATCH: usize = 2048;

const KEY: [u8; 32] = [7; 32];
const HEAD: [u8; 32] = [3; 32];

/// Runs the group. A rate counts records that were sealed *and* opened.
///
/// # Errors
/// Those of the measurements.
pub fn group(setting: &Setting, _: &[usize]) -> io::Result<Group> {
    Group::measure(
        "seal and open",
        || setting.beside(),
        |ruler| {
            ruler.latency("handshake, both ends", None, || handshakes(setting))?;
            for size in SIZES {
                let mut row = |name: &str, step: &mut dyn FnMut(&mut [u8]) -> bool| {
                    ruler.throughput(name, Some(size), || rate(setting, size, step))
                };
                row("chacha20poly1305", &mut by_the_crate())?;
                row("ring", &mut by_ring()?)?;
                let mut seals = Seals::all(&KEY);
                row("a long record", &mut |text| seals[0].seal_and_open(text))?;
                for mut seals in seals.into_iter().filter(|_| size <= SHORT) {
                    let name = seals.name();
                    {
                        let mut nth = 0;
                        row(&format!("{name}, ahead, counted"), &mut |text| {
                            nth += 1;
                            let ready = nth % 8;
                            if ready == 0 {
                                // Each end makes its own.
                                seals.prepare();
                                seals.prepare();
                            }
                            with_ready(&mut seals, ready, text)
                        })?;
                        row(&format!("{name}, ready"), &mut |text| {
                            with_ready(&mut seals, 3, text)
                        })?;
                    }
                }
            }
            Ok(())
        },
    )
}

/// Measures whole handshakes by keys that both ends know, one end after the other in one thread.
fn handshakes(setting: &Setting) -> io::Result<Latency> {
    let key = || StaticKey::generate().map_err(io::Error::other);
    let (ours, theirs) = (key()?, key()?);
    let binding = Binding {
        client: "client",
        service: "service",
        client_id: 1,
        service_id: 2,
        epoch: 3,
        channel: 4,
    };
    latency(&setting.clock, setting.plan, || {
        let client = Handshake::client(Pattern::Kk, &ours, Some(theirs.public()), &binding);
        let server = Handshake::server(Pattern::Kk, &theirs, Some(ours.public()), &binding);
        let first = client.and_then(Handshake::begin).map_err(io::Error::other)?;
        let message = first.send.unwrap_or_default();
        let answer = server.and_then(|it| it.receive(&message)).map_err(io::Error::other)?;
        let Then::Receive(client) = first.then else { return Err(io::ErrorKind::Other.into()) };
        let last = client.receive(&answer.send.unwrap_or_default()).map_err(io::Error::other)?;
        match (last.then, answer.then) {
            (Then::Done(_), Then::Done(_)) => Ok(()),
            _ => Err(io::ErrorKind::Other.into()),
        }
    })
}

fn with_ready(seals: &mut Seals, nth: usize, text: &mut [u8]) -> bool {
    let tag = seals.seal_ready(nth, text);
    seals.open_ready(nth, text, tag)
}

fn by_the_crate() -> impl FnMut(&mut [u8]) -> bool {
    let cipher = ChaCha20Poly1305::new(&KEY.into());
    let nonce = [0; 12].into();
    move |text| {
        let sealed = cipher.encrypt_inout_detached(&nonce, &HEAD, (&mut *text).into());
        sealed.is_ok_and(|tag| {
            cipher.decrypt_inout_detached(&nonce, &HEAD, text.into(), &tag).is_ok()
        })
    }
}

/// Seals and opens with `ring`: what bulk costs by itself.
///
/// # Errors
/// That `ring` refuses the key.
pub fn by_ring() -> io::Result<impl FnMut(&mut [u8]) -> bool> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, &KEY)
        .map_err(|_| io::Error::other("ring refused the key"))?;
    let key = LessSafeKey::new(key);
    let nonce = || Nonce::assume_unique_for_key([0; 12]);
    Ok(move |text: &mut [u8]| {
        let sealed = key.seal_in_place_separate_tag(nonce(), Aad::from(HEAD), text);
        sealed.is_ok_and(|tag| {
            key.open_in_place_separate_tag(nonce(), Aad::from(HEAD), tag, text, 0..).is_ok()
        })
    })
}

fn rate(
    setting: &Setting,
    size: usize,
    step: &mut dyn FnMut(&mut [u8]) -> bool,
) -> io::Result<Throughput> {
    let mut text = vec![5; size];
    let batch = (BATCH_BYTES / size).clamp(1, MOST_BATCH);
    throughput(&setting.clock, setting.plan, || {
        for _ in 0..batch {
            if !step(black_box(&mut text)) {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok(batch as u64)
    })
}
