#!/usr/bin/env bash
# Feeds random bytes, for a short time, to whatever parses a peer's bytes: control packets, frames,
# rings. The properties are those of the unit tests, with many more cases and another seed.
#   CASES   random inputs for each property (20000)
set -uo pipefail
cd "$(dirname "$0")/.."
export PROPTEST_CASES=${CASES:-20000}
failed=0
for property in any_bytes_are_decoded_or_refused whatever_a_peer_writes_is_refused_or_in_bounds \
    pieces_never_overlap_and_never_wrap payload_survives_the_cell; do
    if cargo test --quiet -p ipc --lib "$property" >/dev/null; then
        echo "stage fuzz $property: ok"
    else
        echo "stage fuzz $property: FAILED"
        failed=1
    fi
done
exit $failed
