//! What a log does with segments.
