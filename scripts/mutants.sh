#!/usr/bin/env bash
# Makes each small mistake of mutants.txt in turn, and sees whether the tests notice. Not part of any
# stage: each one compiles a crate or two again.
#
# mutants.sh [PATTERN]: those whose line matches it.
set -uo pipefail
cd "$(dirname "$0")/.."

# A mistake may make a test wait for ever.
limit=${MUTANT_SECONDS:-600}

builds() { # builds FILE: whether its crate compiles; a mistake that does not is none
    cargo test -q --no-run -p "${1%%/*}" --lib >/dev/null 2>&1
}

judge() { # judge FILE: whether the tests of what decides, or the histories, pass
    case $1 in
        ipc/*)
            timeout "$limit" cargo test -q -p ipc --lib -- failover mark >/dev/null 2>&1 || return
            ;;
    esac
    case $1 in
        # What two ends see of each other's marks is for the models to say.
        ipc/src/mark.rs)
            RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom" \
                timeout "$limit" cargo test -q -p ipc --release --lib loom_who_begins \
                >/dev/null 2>&1 || return
            ;;
    esac
    timeout "$limit" cargo test -q -p kernel-services --lib -- broker::tests no_history \
        >/dev/null 2>&1
}

caught=0 lived=() stale=()
while IFS= read -r line; do
    case $line in '' | '#'*) continue ;; esac
    [[ $line =~ ${1:-.} ]] || continue
    file=${line%% ;; *} rest=${line#* ;; }
    before=${rest%% ;; *} after=${rest#* ;; }
    whole=$(<"$file")
    # Only what stands there once is a place.
    without=${whole/"$before"/}
    if [ "$without" = "$whole" ] || [ "${without/"$before"/}" != "$without" ]; then
        stale+=("$line")
        continue
    fi
    trap 'printf "%s\n" "$whole" >"$file"; exit 1' INT TERM
    printf '%s\n' "${whole/"$before"/"$after"}" >"$file"
    if ! builds "$file"; then
        stale+=("$line")
    elif judge "$file"; then
        lived+=("$line")
        echo "lives:  $line"
    else
        caught=$((caught + 1))
        echo "caught: $line"
    fi
    printf '%s\n' "$whole" >"$file"
    trap - INT TERM
done <scripts/mutants.txt

for line in "${stale[@]+"${stale[@]}"}"; do
    echo "not there, more than once, or no code: $line"
done
printf '%d caught, %d live, %d could not be made\n' "$caught" "${#lived[@]}" "${#stale[@]}"
[ "${#lived[@]}" -eq 0 ] && [ "${#stale[@]}" -eq 0 ]
