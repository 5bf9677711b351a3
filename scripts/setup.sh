#!/usr/bin/env bash
# Installs what building and testing need and the machine lacks: Debian packages, by name.
set -euo pipefail

say() { printf 'setup: %s\n' "$*"; }

# The sanitizer's run-time library has no command of its own: it is there when a program links.
links_with_asan() {
    local out
    out=$(mktemp)
    echo 'int main(void) { return 0; }' | cc -fsanitize=address -x c -o "$out" - 2>/dev/null
    local status=$?
    rm -f "$out"
    return $status
}

# Bindings of RocksDB, for a test, are made from its header by libclang, when that is built.
has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] || compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' ||
        compgen -G '/usr/lib*/libclang*.so*'
}

missing=()
need() { # need PACKAGE COMMAND...: the package, unless the command succeeds
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

need gcc command -v cc
need g++ command -v g++
need make command -v make
need pkg-config command -v pkg-config
need valgrind command -v valgrind
need python3 command -v python3
need git command -v git
need strace command -v strace
need libclang-dev has_libclang
# Debian's gcc depends on the library; elsewhere a compiler may come without it.
if command -v cc >/dev/null; then
    need "libgcc-$(cc -dumpversion | cut -d. -f1)-dev" links_with_asan
fi

if [ ${#missing[@]} -gt 0 ]; then
    say "missing: ${missing[*]}"
    command -v apt-get >/dev/null || {
        say "this is not a Debian: install what provides them, and run this again"
        exit 1
    }
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || {
            say "run as root: apt-get install ${missing[*]}"
            exit 1
        }
        as_root=(sudo)
    fi
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get update
    "${as_root[@]}" apt-get install --yes --no-install-recommends "${missing[@]}" libc6-dev
fi

command -v cargo >/dev/null || {
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
    say "cargo is missing, and Debian's is too old: install Rust $wanted or later,"
    say "for example by https://rustup.rs, and put cargo on the PATH"
    exit 1
}
component() { # component NAME COMMAND: the part of Rust that brings cargo's COMMAND
    if ! cargo "$2" --version >/dev/null 2>&1; then
        command -v rustup >/dev/null || {
            say "cargo $2 is missing: install the Rust component $1"
            exit 1
        }
        rustup component add "$1"
    fi
}
component rustfmt fmt
component clippy clippy
say "everything is there"
