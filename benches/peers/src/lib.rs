//! The same exchange through libipc and through what else there is, between the same two pinned
//! processes, each beside the floor of the machine.
//!
//! A [`contender`] is a server and a client; [`contenders`] are all of them. [`run`] measures them
//! in interleaved rounds, [`figures`] takes the medians, [`table`] and [`plot`] show them.

pub mod contender;
pub mod contenders;
pub mod figures;
pub mod plot;
pub mod run;
pub mod table;
