#!/usr/bin/env bash
# Looks for the places at which tests have a process die in what is delivered: the C library, the
# Rust one, and the programs. Nothing of them may be there, neither code nor name.
#
# absence.sh [PROFILE]: looks at what `cargo build --release` made, or at that profile.
set -euo pipefail
cd "$(dirname "$0")/.."
profile=${1:-release}
target=$(cargo metadata --format-version 1 --no-deps |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')

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

looked=0
for file in "$target/$profile"/lib{ipc,ipc_ffi,kernel_services,ipc_queue}.{so,a,rlib} \
    "$target/$profile"/deps/lib{ipc,kernel_services,ipc_queue}-*.rlib \
    "$target/$profile"/{ipcd,ipctl,ipc-queue}; do
    [ -f "$file" ] || continue
    looked=$((looked + 1))
    judge "$file"
done
[ "$looked" -gt 0 ] || {
    echo "absence: nothing is built in $target/$profile" >&2
    exit 1
}
[ "$status" -eq 0 ] && echo "stage absence: ok, $looked files"
exit "$status"
