#!/usr/bin/env bash
# A first look at libipc: starts the runtime and example services as processes of their own, calls
# them from C and from Rust, and measures. Ends by itself.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

say 'building, optimized (the first time takes a minute or two)'
# What is run below, and not the tests' programs, which take longer to build than all of it.
cargo build --release -p kernel-services -p ipctl -p echo -p examples -p benches
# Alone and last, so that no other member's features are in the library.
cargo build --release -p ipc-ffi
. scripts/c-client.sh

directory=$(mktemp -d)
processes=()
cleanup() {
    for pid in "${processes[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${processes[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$directory"
}
trap cleanup EXIT
export IPC_RUNTIME_DIR=$directory/runtime

start() { # start WORD COMMAND...: starts it, and waits until it says WORD
    local word=$1 log=$directory/log.${#processes[@]}
    shift
    "$@" 2>"$log" &
    processes+=($!)
    for _ in $(seq 200); do
        if grep -q "$word" "$log"; then
            sed 's/^/   /' "$log"
            return
        fi
        kill -0 $! 2>/dev/null || break
        sleep 0.05
    done
    sed 's/^/   /' "$log" >&2
    echo "run: $1 did not start" >&2
    return 1
}

say 'starting the runtime, and services as processes of their own'
start ready "$release/ipcd"
start ready "$release/echo" --spin always
service=$!
build_c examples/server.c "$directory/c-server"
build_c examples/client.c "$directory/c-client"
"$directory/c-server" echo-c >"$directory/c-server.log" &
processes+=($!)
"$release/ipctl" ping echo-c --count 1 --wait 5s >/dev/null

say 'who is there: ipctl ls'
"$release/ipctl" ls

say 'a C client calls the C service, and a Rust client the Rust service'
"$directory/c-client" echo-c | sed 's/^/   C:    /'
"$release/rust-client" echo | sed 's/^/   Rust: /'

say 'measuring (half a minute)'
IPC_BENCH_C_CLIENT=$client "$release/bench" tour \
    --runtime-dir "$IPC_RUNTIME_DIR" --service echo --service-pid "$service"
