#!/usr/bin/env bash
# Runs the Rust examples as a newcomer would: the runtime, a server, a client, each a process. Those
# in C and Python are run by c-tests.sh.
set -uo pipefail
cd "$(dirname "$0")/.."
cargo build --quiet -p kernel-services -p examples -p echo -p ipctl || exit 1
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
exit $failed
