#!/usr/bin/env bash
# Measures libipc beside what else there is, and writes tables and plots.
#   PEERS_DIR      where they go (target/peers)
#   SECONDS_EACH   how long each single measurement takes (0.5)
#   ROUNDS         how many interleaved rounds (5)
# Arguments go to the program: `--only iceoryx2`, `--size 64`, `--no-crowds`.
set -euo pipefail
cd "$(dirname "$0")/.."

# ZeroMQ is the one contender that is no crate; without its library the rest is measured.
ldconfig -p | grep -q 'libzmq\.so\.5' || {
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo -n)
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install --yes \
        --no-install-recommends libzmq5 ||
        echo 'bench-peers: libzmq5 cannot be installed: ZeroMQ will be skipped' >&2
}

target=$(cargo metadata --format-version 1 --no-deps |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
out=${PEERS_DIR:-$target/peers}
cargo build --release --locked --manifest-path benches/peers/Cargo.toml --target-dir "$target"
"$target/release/peers" --seconds "${SECONDS_EACH:-0.5}" --rounds "${ROUNDS:-5}" \
    --json "$out/peers.json" --markdown "$out/peers.md" --plots "$out" "$@"
echo "bench-peers: peers.json, peers.md and plots are in $out"
