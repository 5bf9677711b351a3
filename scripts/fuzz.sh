#!/usr/bin/env bash
# Fuzzes whatever parses what a peer or a C program passes, with libFuzzer and AddressSanitizer, and
# runs the unit tests' properties with more cases.
#
#   scripts/fuzz.sh [TARGET...]          all targets: frames lanes arenas rings control exports
#   scripts/fuzz.sh --merge [TARGET...]  instead: adds to fuzz/corpus what an earlier run found and
#                                        reaches code that nothing there does
#
#   FUZZ_SECONDS  seconds for each target (60)
#   FUZZ_CORPUS   where new inputs are kept (corpus in the fuzz directory of cargo's target)
#   CASES         random inputs for each property (5000)
#
# Stable Rust, no cargo-fuzz: RUSTC_BOOTSTRAP and the flags below are what that one uses.
set -uo pipefail
cd "$(dirname "$0")/.."
export PROPTEST_CASES=${CASES:-5000}
seconds=${FUZZ_SECONDS:-60}

merge=
if [ "${1:-}" = --merge ]; then
    merge=yes
    shift
fi
targets=("$@")
[ $# -gt 0 ] || targets=(frames lanes arenas rings control exports)

target=$(cargo metadata --format-version 1 --no-deps |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
host=$(rustc -vV | sed -n 's/^host: //p')
work=$target/fuzz
programs=$work/$host/release
found=${FUZZ_CORPUS:-$work/corpus}
artifacts=$work/artifacts
mkdir -p "$artifacts"

# Programs that are killed leave their directories behind: in memory, where there is such a place,
# and taken away here.
shared=/dev/shm
[ -w "$shared" ] || shared=${TMPDIR:-/tmp}
TMPDIR=$(mktemp -d "$shared/ipc-fuzz.XXXXXX") || exit 1
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

build() {
    local flags=(-Zsanitizer=address -Ccodegen-units=1 -Cpasses=sancov-module)
    local option
    for option in level=4 inline-8bit-counters pc-table trace-compares; do
        flags+=("-Cllvm-args=-sanitizer-coverage-$option")
    done
    # With --target, so that build scripts and macros have none of these flags.
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="${flags[*]}" CARGO_TARGET_DIR="$work" cargo build --release \
        --locked --manifest-path fuzz/Cargo.toml --target "$host" --bins
}

fuzz() { # fuzz TARGET LOG: first all that is known, then new inputs
    local name=$1 log=$2 options
    mkdir -p "$found/$name"
    # Long inputs soon: what matters takes several steps.
    options=(-artifact_prefix="$artifacts/$name-" -timeout=10 -print_final_stats=1
        -len_control=10 -max_len="$(longest "$name")")
    "$programs/$name" "${options[@]}" -runs=0 "fuzz/corpus/$name" >"$log" 2>&1 &&
        "$programs/$name" "${options[@]}" -max_total_time="$seconds" \
            "$found/$name" "fuzz/corpus/$name" >>"$log" 2>&1
}

longest() { # longest TARGET: bytes of its longest input
    case $1 in
        frames) echo 33 ;;
        control) echo 4096 ;;
        *) echo 600 ;;
    esac
}

merge() { # merge TARGET: by the code reached alone, so that there are dozens, not thousands
    "$programs/$1" -set_cover_merge=1 -use_counters=0 "fuzz/corpus/$1" "$found/$1" 2>&1 |
        tail -n 1
}

watch() { # watch TARGET PID LOG: says every 15 s how far it is, and in the end how it went
    local name=$1 pid=$2 log=$3 rest=15
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        if ((--rest == 0)); then
            rest=15
            echo "fuzz $name: $(grep -a '^#' "$log" | tail -n 1)"
        fi
    done
}

report() { # report TARGET STATUS LOG
    local name=$1 status=$2 log=$3
    if [ "$status" -eq 0 ]; then
        echo "fuzz $name: $(grep -a '^#.*DONE' "$log" | tail -n 1)"
        echo "stage fuzz $name: ok"
        return
    fi
    tail -n 60 "$log" | sed 's/^/    /'
    echo "fuzz $name: once more: $programs/$name $artifacts/$name-*"
    echo "stage fuzz $name: FAILED"
    failed=1
}

if ! build; then
    echo 'stage fuzz build: FAILED'
    exit 1
fi
if [ -n "$merge" ]; then
    for name in "${targets[@]}"; do merge "$name"; done
    exit
fi

failed=0
at_once=$(nproc)
[ "$at_once" -le 2 ] || at_once=2
for ((first = 0; first < ${#targets[@]}; first += at_once)); do
    names=("${targets[@]:first:at_once}") pids=() watches=()
    for name in "${names[@]}"; do
        fuzz "$name" "$work/$name.log" &
        pids+=($!)
        watch "$name" "$!" "$work/$name.log" &
        watches+=($!)
    done
    for index in "${!names[@]}"; do
        wait "${pids[index]}"
        status=$?
        wait "${watches[index]}"
        report "${names[index]}" "$status" "$work/${names[index]}.log"
    done
done

[ $# -eq 0 ] || exit $failed
for property in fuzzing::tests any_bytes_are_decoded_or_refused \
    whatever_a_peer_writes_is_refused_or_in_bounds pieces_never_overlap_and_never_wrap \
    payload_survives_the_cell; do
    if cargo test --quiet -p ipc --features fuzzing --lib "$property" >/dev/null; then
        echo "stage fuzz $property: ok"
    else
        echo "stage fuzz $property: FAILED"
        failed=1
    fi
done
exit $failed
