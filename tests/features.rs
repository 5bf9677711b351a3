//! Kernels and sandboxes that lack something: calls go on, deaths are heard of, and
//! `ipctl doctor` says what is used instead.

const ACTOR: &str = env!("CARGO_BIN_EXE_actor");
const WITHOUT: &str = env!("CARGO_BIN_EXE_without");

/// What can be lacking, and libipc works all the same.
const FEATURES: [&str; 7] =
    ["membarrier", "futex_waitv", "io_uring", "noexec_seal", "pidfd", "peerpidfd", "all"];

#[test]
fn x() {}
