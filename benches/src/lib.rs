//! Measures libipc beside the *floor* of the machine: what the hardware and the kernel charge for
//! the bare exchange, taken from the same two CPUs in the same run.
//!
//! A benchmark is a [`report::Group`]: the floor, the rows, the floor again. All but the bare
//! [`ring`]'s measure between two processes, not two threads: [`pair`] starts the second one,
//! [`pin`] places both, [`measure`] times every single exchange, [`shm`] and [`futex`] are the bare
//! means of exchange.

pub mod c;
pub mod calls;
pub mod events;
pub mod failover;
pub mod floor;
pub mod futex;
pub mod many;
pub mod measure;
pub mod pair;
pub mod pin;
pub mod queues;
pub mod regions;
pub mod report;
pub mod ring;
pub mod scale;
pub mod seal;
pub mod sealed;
pub mod shm;
pub mod sockets;
pub mod tour;
pub mod typed;

ipc::include_proto! {
    /// The service that [`typed`] calls.
    pub mod echo = "bench";
}
