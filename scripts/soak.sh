#!/usr/bin/env bash
# Runs everything under load, with misfortunes, for DURATION (10m), and until KILLS of those who
# serve have died and MESSAGES took effect: see docs/soak.md. Further arguments go to the program:
# --seed N, --json FILE. PROFILE=debug takes the build of the tests.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=${PROFILE:-release}
flags=(--release)
[ "$profile" = release ] || flags=()
cargo build "${flags[@]}" -p tests --bins
target=$(cargo metadata --format-version 1 --no-deps |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
if "$target/$profile/soak" --duration "${DURATION:-10m}" --kills "${KILLS:-0}" \
    --messages "${MESSAGES:-0}" "$@"; then
    echo 'stage soak: ok'
else
    echo 'stage soak: FAILED'
    exit 1
fi
