#!/usr/bin/env bash
# Runs every check, or the stages named as arguments, and sums up what passed and what failed.
#
# A stage is a function below. What it prints is counted: cargo's `test result:` lines, and the
# lines `stage NAME: ok` and `stage NAME: FAILED` of the scripts beside this one. A stage without
# such lines counts as one by its exit status.
set -uo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

all=(fmt clippy build tests soak failpoints features loom simulation flips header c-test examples
    fuzz doc)

target=$(cargo metadata --format-version 1 --no-deps |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
[ -n "$target" ] || {
    echo 'test: cargo metadata names no target directory' >&2
    exit 1
}
mkdir -p "$target"

# The fuzz targets are a workspace of their own; without libFuzzer they can be looked at, too.
stage_fmt() {
    cargo fmt --all -- --check --color never &&
        cargo fmt --manifest-path fuzz/Cargo.toml --all -- --check --color never
}

stage_clippy() {
    cargo clippy --workspace --all-targets -- -D warnings &&
        cargo clippy -p ipc -p ipc-queue -p kernel-services -p tests \
            --features tests/failpoints --all-targets -- -D warnings &&
        CARGO_TARGET_DIR="$target" cargo clippy --manifest-path fuzz/Cargo.toml --locked \
            --no-default-features --lib --bins -- -D warnings
}

# The programs and the library that multi-process and C tests start: `cargo test` would not build
# them. libipc comes last and alone, so that no other member's features are in it; absence.sh builds
# the optimized one.
stage_build() {
    cargo build --workspace --all-targets &&
        cargo build -p ipc-ffi &&
        script absence.sh
}

# Unit, multi-process and doc tests, and the house rules of tests/tidy.rs.
stage_tests() { cargo test --workspace --no-fail-fast; }

# A minute of what `make soak` does for as long as one likes, with the build of the tests.
stage_soak() { DURATION=60s PROFILE=debug script soak.sh; }

# Processes die at every step, and before and after every store into shared memory. Alone, so that
# no other build has the places where they may.
stage_failpoints() {
    cargo test -p tests --features failpoints --test failpoints --test queue_failpoints \
        --test stores
}

# The same tests on kernels that lack something.
stage_features() { script features.sh; }

# A directory of its own: the flag would rebuild everything, here and again afterwards.
stage_loom() {
    RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR="$target/loom" \
        cargo test -p ipc --release --lib loom
}

# Optimized: 100,000 histories of failover take less than half a minute then.
stage_simulation() {
    cargo test -p kernel-services --release --lib no_history -- --nocapture
}

# Optimized: then every bit of every frame of up to 256 bytes is flipped, where a build for debugging
# flips some.
stage_flips() { cargo test -p ipc --release --lib every_flip_of_one_bit; }

stage_header() { script header.sh --check; }

stage_c-test() { script c-tests.sh; }

stage_examples() { script examples.sh; }

stage_fuzz() { script fuzz.sh; }

stage_doc() { RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps; }

script() { # script NAME ARGUMENT...: the script of that name beside this one
    local path=scripts/$1
    shift
    bash "$path" "$@"
}

count() { # count LOG: sets good and bad to the results that the log shows
    read -r good bad < <(awk '
        /^test result: / {
            for (i = 2; i <= NF; i++) {
                if ($i ~ /^passed/) good += $(i - 1)
                if ($i ~ /^failed/) bad += $(i - 1)
            }
        }
        /^stage .*: ok/ { good++ }
        /^stage .*: FAILED/ { bad++ }
        END { print good + 0, bad + 0 }' "$1")
}

stages=("${@:-${all[@]}}")
for stage in "${stages[@]}"; do
    declare -F "stage_$stage" >/dev/null || {
        echo "test: no stage $stage; there are: ${all[*]}" >&2
        exit 2
    }
done

log=$(mktemp)
trap 'rm -f "$log"' EXIT
started=$SECONDS
passed=0 failed=0 broken=()
for stage in "${stages[@]}"; do
    printf '\n== stage: %s ==\n' "$stage"
    began=$SECONDS
    "stage_$stage" 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    count "$log"
    if [ "$status" -eq 0 ] && [ "$bad" -eq 0 ]; then
        [ "$good" -gt 0 ] || good=1
        verdict=ok
    else
        [ "$bad" -gt 0 ] || bad=1
        verdict=FAILED
        broken+=("$stage")
    fi
    passed=$((passed + good)) failed=$((failed + bad))
    printf '== %s: %s, %d s ==\n' "$stage" "$verdict" $((SECONDS - began))
done

printf '\n'
[ ${#broken[@]} -eq 0 ] || printf 'failed stages: %s\n' "${broken[*]}"
printf '%d stages in %d s\n' ${#stages[@]} $((SECONDS - started))
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
