#!/usr/bin/env bash
# Builds what is delivered, optimized: the programs, the Rust library and the C one. Looks there for
# the places at which tests have a process die: nothing of them may be there, neither code nor name.
#
# absence.sh [ARGUMENT...]: with arguments for cargo; `--features failpoints` shows what it finds.
set -euo pipefail
cd "$(dirname "$0")/.."

made() { # made ARGUMENT...: the files of this project that cargo build makes, or finds made
    cargo build --release --message-format=json-render-diagnostics "$@" |
        grep -oE '"[^"]*/(lib(ipc|kernel_services)[^"/]*\.(so|a|rlib)|ipcd|ipc-queue)"' |
        tr -d '"' | sort -u
}

# The points themselves, as their list has them, and by what they are told of.
points=$(sed -n '/^    points! {/,/^    }/s/^        \([A-Z][A-Za-z]*\),$/\1/p' ipc/src/failpoint.rs)
[ "$(wc -w <<<"$points")" -gt 20 ] || {
    echo 'absence: ipc/src/failpoint.rs has no list of points any more' >&2
    exit 1
}
names=(DIES_AT IPC_PASSES_TO 'failpoint5armed' 'failpoint5around' 'failpoint..armed')

status=0
judge() { # judge FILE: whether it has none of them
    local file=$1 name found=
    for name in "${names[@]}"; do
        grep -aq -e "$name" "$file" && found+=" $name"
    done
    # Names of variants stand next to each other where they are told: three of them in a row.
    local row
    row=$(head -3 <<<"$points" | tr -d '\n')
    grep -aq -e "$row" "$file" && found+=' points'
    if [ -n "$found" ]; then
        echo "absence: $file has:$found" >&2
        status=1
    fi
}

# libipc apart, so that no other member's features are in it.
files=$(
    made -p kernel-services -p ipc-queue "$@"
    made -p ipc-ffi
)
for kind in ipcd ipc-queue rlib so a; do
    grep -qE "[./]$kind\$" <<<"$files" || {
        echo "absence: nothing named $kind was built" >&2
        exit 1
    }
done
while IFS= read -r file; do
    judge "$file"
done <<<"$files"
[ "$status" -eq 0 ] && echo "stage absence: ok, $(wc -l <<<"$files") files"
exit "$status"
