//! Places at which a test has ipc-queue die, as if it were killed there.
//!
//! Without the feature `failpoints`, which no program that is delivered has, this is nothing. With
//! it, the process looks at each place whether the file that the test has named says just
//! that; then it removes the file, and kills itself.

/// A step of what ipc-queue does. It dies right after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// A message is read.
    PutHeard,
    /// It is decided upon, and nobody was answered.
    PutDecided,
    /// Its producer was answered.
    PutAnswered,
    /// A wish for messages is read.
    TakeHeard,
    /// Messages are leased, and nobody was answered.
    TakeDecided,
    /// The consumer was answered.
    TakeAnswered,
    /// An acknowledgement is read.
    AckHeard,
    /// It is decided upon, and nobody was answered.
    AckDecided,
    /// The consumer was answered.
    AckAnswered,
    /// A record is written to memory, but for the word that makes it one.
    MemoryHalfWritten,
    /// Half of a batch is written to the journal.
    BatchHalfWritten,
    /// All of it is, and not synced.
    BatchWritten,
    /// It is synced, and nobody was told.
    BatchSynced,
    /// A segment is made, and nobody knows of it.
    SegmentMade,
    /// It has its name, or is kept.
    SegmentKept,
    /// A segment is deleted.
    SegmentRemoved,
    /// What a predecessor left is read, and nothing is served.
    Recovered,
}

impl At {
    /// All of them.
    pub const ALL: [At; 17] = [
        At::PutHeard,
        At::PutDecided,
        At::PutAnswered,
        At::TakeHeard,
        At::TakeDecided,
        At::TakeAnswered,
        At::AckHeard,
        At::AckDecided,
        At::AckAnswered,
        At::MemoryHalfWritten,
        At::BatchHalfWritten,
        At::BatchWritten,
        At::BatchSynced,
        At::SegmentMade,
        At::SegmentKept,
        At::SegmentRemoved,
        At::Recovered,
    ];
}

/// What there is of it in a program that is delivered.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn reach(_: At) {}

/// Dies here if a test wants it.
#[cfg(feature = "failpoints")]
pub fn reach(at: At) {
    ipc::failpoint::obey("IPC_QUEUE_DIES_AT", &format!("{at:?}"));
}
