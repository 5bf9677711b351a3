#!/usr/bin/env bash
# Runs the Rust examples as a newcomer would: the runtime, a server, a client, each a process. Those
# in C and Python are run by c-tests.sh.
set -uo pipefail
cd "$(dirname "$0")/.."
cargo build --quiet -p kernel-services -p examples -p echo -p ipctl -p ipc-queue || exit 1
target=$(cargo metadata --format-version 1 --no-deps |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
bin=$target/debug
directory=$(mktemp -d)
export IPC_RUNTIME_DIR=$directory/runtime
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; wait "${pids[@]}" 2>/dev/null; rm -rf "$directory"' EXIT

failed=0
check() { # check NAME COMMAND...
    local name=$1
    shift
    if timeout -k 5 60 "$@"; then
        echo "stage $name: ok"
    else
        echo "stage $name: FAILED"
        failed=1
    fi
}

"$bin/ipcd" &
pids+=($!)
# The runtime may take a moment to be there: asked until it answers.
for _ in $(seq 600); do "$bin/ipctl" ping >/dev/null 2>&1 && break; done
"$bin/rust-server" examples-rust &
pids+=($!)
"$bin/echo" --name examples-echo &
pids+=($!)
"$bin/rust-shelf" examples-shelf &
pids+=($!)
says() { "$@" | grep -q 'hello there'; }
export -f says
check 'rust example' bash -c 'says "$@"' _ "$bin/rust-client" examples-rust 'hello there'
check 'rust client, echo service' bash -c 'says "$@"' _ "$bin/rust-client" examples-echo 'hello there'
check 'rust tokio' bash -c '"$@" | grep -q "1000 calls answered"' _ "$bin/rust-tokio" examples-tokio
check 'rust typed calls' bash -c '"$@" | grep -q "Medea (-431) by Euripides"' _ "$bin/rust-shelf-client" examples-shelf
check 'ipctl call' bash -c 'says "$@"' _ "$bin/ipctl" call examples-echo --wait 10s --text 'hello there'
check 'ipctl ls' "$bin/ipctl" ls

# Reliable queues: a runtime of their own, by its node file, with a journal in a directory of its own.
orders=$directory/orders
mkdir -p "$orders/journal" && cp examples/orders*.toml "$orders" && ln -s "$bin" "$orders/bin"
export IPC_RUNTIME_DIR=$orders/runtime
"$bin/ipcd" --config "$orders/orders.toml" 2>"$orders/log" &
pids+=($!)
for _ in $(seq 600); do "$bin/ipctl" ping >/dev/null 2>&1 && break; done
orders_go_through() {
    "$1" put 'a dozen eggs' 'bread' >/dev/null && "$1" work 2 | grep -q 'done, at attempt 1: bread'
}
export -f orders_go_through
check 'rust orders' bash -c 'orders_go_through "$@"' _ "$bin/rust-orders"
check 'ipctl queues' bash -c '"$@" | grep -q orders' _ "$bin/ipctl" queues --interval 1ms
exit $failed
