#!/usr/bin/env bash
# Generates include/ipc.h from ffi/. With --check it writes nothing, and fails when the file in the
# tree is not what would be generated.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in
--check) fresh=$(mktemp) && trap 'rm -f "$fresh"' EXIT ;;
'') fresh=include/ipc.h ;;
*)
    echo 'usage: scripts/header.sh [--check]' >&2
    exit 2
    ;;
esac

cargo run --quiet -p ipc-ffi --features header --bin ipc-header -- "$fresh"

if [ "${1:-}" = --check ]; then
    diff -u include/ipc.h "$fresh" || {
        echo 'stage header: FAILED'
        echo 'include/ipc.h is not what ffi/ says: run scripts/header.sh, and commit the result'
        exit 1
    }
    echo 'stage header: ok'
fi
