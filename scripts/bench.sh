#!/usr/bin/env bash
# Measures everything beside the floor of this machine, from Rust and from C.
#   SECONDS_EACH   how long each single measurement takes (2)
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release -p benches
cargo build --release -p ipc-ffi
cargo build --release -p ipc-queue
. scripts/c-client.sh
IPC_BENCH_C_CLIENT=$client "$release/bench" all --seconds "${SECONDS_EACH:-2}" "$@"
# What has processes of its own beside it: queues, and names that change hands.
"$release/bench" queue --seconds "${SECONDS_EACH:-2}"
"$release/bench" failover
cargo bench -p benches --bench single
