#!/usr/bin/env bash
# Runs unit tests, tests with real processes and C programs as on kernels that lack something: a
# seccomp filter (tests/src/bin/without.rs) denies it to all of them.
#
#   scripts/features.sh [KERNEL...]    each kernel that libipc is to bear, or those named: lists,
#                                      with commas, of what they lack
#
# Everything is run without what sleepers and wakers rely on, and without all together. Without the
# rest, what it has to do with.
set -uo pipefail
cd "$(dirname "$0")/.."

kernels=("$@")
[ $# -gt 0 ] || kernels=(membarrier futex_waitv io_uring noexec_seal pidfd peerpidfd all)
everything='ipc kernel_services runtime calls loops tokio processes deaths restarts idle syscalls bad_input features sandboxed'
declare -A part=(
    [io_uring]='kernel_services runtime calls'
    [noexec_seal]='ipc kernel_services runtime calls processes'
    [pidfd]='ipc kernel_services runtime processes deaths restarts features'
    [peerpidfd]='kernel_services runtime deaths restarts'
)
programs=(async conventions death embedded epoll eventloop forked handlers names stop threads)
# Random inputs for each property: what they try does not depend on the kernel.
export PROPTEST_CASES=${CASES:-16}

# The tests as `scripts/test.sh tests` has built them; the library last and alone.
messages=$(cargo test --workspace --no-run --message-format json 2>/dev/null) &&
    cargo build --quiet -p ipc-ffi || exit 1
target=$(cargo metadata --format-version 1 --no-deps |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
without=$target/debug/without

# test_program CRATE NAME: the test program of that target of a crate
test_program() {
    python3 -c '
import json, os, sys
crate, name = sys.argv[1:]
for line in sys.stdin:
    built = json.loads(line)
    if built.get("executable") and built["profile"]["test"] and built["target"]["name"] == name \
            and os.path.dirname(built["manifest_path"]) == os.path.abspath(crate):
        print(built["executable"])
        break
else:
    sys.exit(f"features: {crate} has no tests {name}")' "$1" "$2" <<<"$messages"
}

declare -A crate=([ipc]=ipc [kernel_services]=kernel-services [runtime]=kernel-services)
declare -A program=()
for name in $everything; do
    program[$name]=$(test_program "${crate[$name]:-tests}" "$name") || exit 1
done

work=$(mktemp -d)
ipcd=
trap 'kill $ipcd 2>/dev/null; rm -rf "$work"' EXIT
ln -s "$target/debug/libipc.so" "$work/libipc.so"
ln -s libipc.so "$work/libipc.so.0"
export LD_LIBRARY_PATH=$work RUST_BACKTRACE=1
for name in "${programs[@]}"; do
    gcc -std=c11 -Wall -g -O1 -pthread -Iinclude -Itests/c "tests/c/$name.c" -o "$work/$name" \
        -L"$work" -lipc || exit 1
done

log=$work/log
bear() { # bear KERNEL WHAT COMMAND...: runs it on that kernel; what it printed, if badly
    local kernel=$1 what=$2 status
    shift 2
    timeout -k 5 180 "$without" "$kernel" -- "$@" >"$log" 2>&1
    status=$?
    [ $status -eq 0 ] && return
    echo "without $kernel, $what: $status"
    sed 's/^/    /' "$log"
    return 1
}

rust_tests() { # rust_tests KERNEL
    local name failed=0
    for name in ${part[$1]:-$everything}; do
        # In the directory of its crate, as cargo does.
        (cd "${crate[$name]:-tests}" && bear "$1" "$name" "${program[$name]}" --quiet) || failed=1
    done
    return $failed
}

c_programs() { # c_programs KERNEL: with a runtime of their own, which lacks the same
    local name line failed=0
    export IPC_RUNTIME_DIR=$work/run.$1 LIBIPC=$work/libipc.so.0 IPCD=$target/debug/ipcd
    # Its line "ready" ends the read; the pipe stays open for what it has to say later.
    exec 3< <(exec "$without" "$1" -- "$IPCD" 2>&1)
    ipcd=$!
    read -r -t 30 line <&3 && [[ $line == *ready* ]] || {
        echo "without $1, ipcd does not start: ${line:-no word from it}"
        return 1
    }
    for name in "${programs[@]}"; do bear "$1" "$name.c" "$work/$name" || failed=1; done
    kill "$ipcd"
    ipcd=
    return $failed
}

failed=0
for kernel in "${kernels[@]}"; do
    began=$SECONDS verdict=ok
    rust_tests "$kernel" || verdict=FAILED
    c_programs "$kernel" || verdict=FAILED
    [ $verdict = ok ] || failed=1
    echo "stage features $kernel: $verdict ($((SECONDS - began)) s)"
done
exit $failed
