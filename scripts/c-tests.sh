#!/usr/bin/env bash
# Compiles the C programs as C99, C11 and C++17, and runs them: as they are, with AddressSanitizer,
# and under Valgrind. Checks the header alone, what libipc.so exports, libipc.pc and the examples.
#
#   scripts/c-tests.sh [NAME...]    all programs of tests/c, or those named
set -uo pipefail
cd "$(dirname "$0")/.."

warnings=(-Wall -Wextra -pedantic -Werror)
dialects=(c99 c11 c++17)

cargo build -p kernel-services --bin ipcd --features node &&
    cargo build -p ipc-queue &&
    cargo build -p examples --bin rust-shelf && cargo build -p ipc-ffi || exit 1
target=$(cargo metadata --format-version 1 --no-deps |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
soname=libipc.so.${version%%.*}

work=$(mktemp -d)
mkdir "$work/lib" "$work/run"
ln -s "$target/debug/libipc.so" "$work/lib/$soname"
ln -s "$soname" "$work/lib/libipc.so"
ln -s "$target/debug/libipc.a" "$work/lib/libipc.a"
ln -s "$PWD/include" "$work/include"
sed -e "s|@PREFIX@|$work|" -e "s|@VERSION@|$version|" libipc.pc.in >"$work/lib/libipc.pc"

export IPC_RUNTIME_DIR=$work/run IPCD=$target/debug/ipcd
export PKG_CONFIG_PATH=$work/lib LD_LIBRARY_PATH=$work/lib LIBIPC=$work/lib/$soname
export RUST_BACKTRACE=1

# Its line "ready" ends the read; the pipe stays open for what it has to say later.
exec 3< <(exec "$IPCD" 2>&1)
ipcd=$!
trap 'kill "$ipcd" 2>/dev/null; rm -rf "$work"' EXIT
read -r -t 30 line <&3 && [[ $line == *ready* ]] || {
    echo "stage c-tests: FAILED (ipcd does not start: ${line:-no word from it})"
    exit 1
}

# For queue.c, whose programs each name a queue of their own.
printf 'on_demand = 1000\n[defaults]\nmessages = 3\nmessage_bytes = 1000\nattempts = 2\n' \
    >"$work/queues.toml"
"$target/debug/ipc-queue" --config "$work/queues.toml" 2>"$work/queues.log" &
queues=$!
trap 'kill "$queues" "$ipcd" 2>/dev/null; rm -rf "$work"' EXIT

good=0 bad=0

stage() { # stage WHAT COMMAND...: runs it, and says how it went; what it printed, if badly
    local what=$1 log=$work/log
    shift
    if "$@" >"$log" 2>&1; then
        echo "stage c-tests: $what: ok"
        good=$((good + 1))
    else
        echo "stage c-tests: $what: FAILED ($?)"
        sed 's/^/    /' "$log"
        bad=$((bad + 1))
    fi
}

compile() { # compile DIALECT SOURCE PROGRAM OPTION...
    local dialect=$1 source=$2 program=$3 compiler=(gcc -x c)
    shift 3
    [[ $dialect == c++* ]] && compiler=(g++ -x c++)
    "${compiler[@]}" "-std=$dialect" "${warnings[@]}" -g -O1 -pthread "$@" -Iinclude -Itests/c \
        "$source" -x none -o "$program" -L"$work/lib" -lipc
}

header_alone() {
    compile "$1" include/ipc.h "$work/header.o" -c
}

run() { # run DIALECT NAME
    compile "$1" "tests/c/$2.c" "$work/$2" && timeout -k 5 120 "$work/$2"
}

run_asan() { # run_asan NAME: the C program is instrumented; leaks of the library count, too
    compile c11 "tests/c/$1.c" "$work/$1" -fsanitize=address -fno-omit-frame-pointer &&
        ASAN_OPTIONS=detect_leaks=1 timeout -k 5 180 "$work/$1"
}

run_valgrind() { # run_valgrind NAME
    local leaks=full
    # A child of a process with threads has the memory that only those knew. AddressSanitizer looks
    # for leaks in the first process of this program.
    [ "$1" = forked ] && leaks=no
    compile c11 "tests/c/$1.c" "$work/$1" &&
        timeout -k 5 600 valgrind --quiet --error-exitcode=99 --leak-check=$leaks \
            --show-leak-kinds=definite --errors-for-leak-kinds=definite --fair-sched=yes \
            "$work/$1"
}

# Exactly the functions of the header, and each with a version.
exports() {
    local library=$work/lib/$soname
    readelf -d "$library" | grep -q "SONAME.*\[$soname\]" || { echo 'wrong soname' && return 1; }
    diff <(grep -o '\bipc_[a-z_]*(' include/ipc.h | tr -d '(' | sort -u) \
        <(readelf -W --dyn-syms "$library" |
            awk '$7 != "UND" && $7 != "ABS" && $5 ~ /GLOBAL|WEAK/ { print $8 }' |
            sed "s/@@$soname\$//" | sort -u)
}

# The two programs of the contract, as they stand, built as it says.
samples() { # samples OPTION...
    local flags server
    read -r -a flags < <(pkg-config --cflags --libs libipc)
    cc -o "$work/sample_server" tests/c/sample_server.c "$@" "${flags[@]}" &&
        cc -o "$work/sample_client" tests/c/sample_client.c "$@" "${flags[@]}" || return 1
    timeout -k 5 60 "$work/sample_server" &
    server=$!
    until_served echo
    timeout -k 5 60 "$work/sample_client" | diff - <(echo hello)
    local status=$?
    kill "$server" && wait "$server"
    return $status
}

# Linked into the program instead.
static_library() {
    local flags
    read -r -a flags < <(pkg-config --cflags --libs --static libipc)
    cc -o "$work/static" tests/c/names.c -Itests/c -pthread \
        "${flags[@]/-lipc/-l:libipc.a}" || return 1
    if ldd "$work/static" | grep -q libipc; then
        echo 'it needs libipc.so all the same'
        return 1
    fi
    timeout -k 5 60 "$work/static"
}

until_served() { # until_served NAME: returns when somebody serves it; 5 s at most
    python3 -c 'import sys; sys.path.insert(0, "examples"); import client
client._check(client._lib.ipc_init(None)); client.Service(sys.argv[1]); client._lib.ipc_shutdown()' "$1"
}

examples() {
    compile c99 examples/server.c "$work/server" &&
        compile c99 examples/client.c "$work/client" || return 1
    timeout -k 5 60 "$work/server" examples >"$work/served" &
    local server=$! status=0
    timeout -k 5 60 "$work/client" examples 'hello there' >"$work/said" || status=1
    diff "$work/said" - <<SAID || status=1
call: hello there
call_into: hello there
callback: hello there
SAID
    [ "$(timeout -k 5 60 python3 examples/client.py examples 'from Python')" = 'from Python' ] ||
        status=1
    timeout -k 5 60 python3 examples/client.py examples '' 2>"$work/said" && status=1
    grep -q -- '-1001' "$work/said" || status=1
    pkill -TERM -P "$server" && wait "$server" || status=1
    grep -q '4 calls served' "$work/served" || status=1
    cat "$work/served" "$work/said"
    return $status
}

# The examples that live in loops of their own, however they are built, called from C and Python.
in_a_loop() { # in_a_loop SAYS COMMAND...: what it makes of "Hello", and the server
    local says=$1 server status=0
    shift
    timeout -k 5 120 "$@" examples-loop >"$work/served" &
    server=$!
    timeout -k 5 60 "$work/client" examples-loop Hello >"$work/said" || status=1
    [ "$(grep -c ": $says\$" "$work/said")" = 3 ] || status=1
    [ "$(timeout -k 5 60 python3 examples/client.py examples-loop Hello)" = "$says" ] || status=1
    pkill -TERM -P "$server" && wait "$server" || status=1
    grep -q '4 calls served' "$work/served" || status=1
    cat "$work/served" "$work/said"
    return $status
}

loops() {
    local dialect
    compile c99 examples/client.c "$work/client" || return 1
    for dialect in "${dialects[@]}"; do
        compile "$dialect" examples/epoll_server.c "$work/epoll_server" &&
            in_a_loop Hello "$work/epoll_server" || return 1
    done
    compile c11 examples/epoll_server.c "$work/epoll_server_asan" -fsanitize=address &&
        in_a_loop Hello "$work/epoll_server_asan" &&
        in_a_loop Hello valgrind --quiet --error-exitcode=99 --leak-check=full \
            --show-leak-kinds=definite --errors-for-leak-kinds=definite --fair-sched=yes \
            "$work/epoll_server" &&
        in_a_loop HELLO python3 examples/asyncio_server.py
}

# A service in Rust, called from Python by its .proto file.
typed_calls() {
    local server status=0
    timeout -k 5 60 "$target/debug/rust-shelf" examples-shelf &
    server=$!
    timeout -k 5 60 python3 examples/shelf.py examples-shelf >"$work/said" || status=1
    diff <(tail -n 4 "$work/said") - <<SAID || status=1
Volume 299 stands at 299
Volume 200 is of -200 by Anonymous and Ämilie with 200
no book is called "Ulysses" (-1001)
300 volumes in a stream
SAID
    kill "$server" && wait "$server"
    return $status
}

names=("$@")
if [ ${#names[@]} -eq 0 ]; then
    for dialect in "${dialects[@]}"; do
        stage "header alone, $dialect" header_alone "$dialect"
    done
    stage 'exports' exports
    stage 'the sample programs' samples "${warnings[@]}"
    stage 'libipc.a' static_library
    stage 'examples' examples
    stage 'examples in loops of their own' loops
    stage 'typed calls from Python' typed_calls
    for source in tests/c/*.c; do
        name=$(basename "$source" .c)
        [[ $name == sample_* ]] || names+=("$name")
    done
fi
for name in "${names[@]}"; do
    for dialect in "${dialects[@]}"; do
        stage "$name, $dialect" run "$dialect" "$name"
    done
    stage "$name, AddressSanitizer" run_asan "$name"
    stage "$name, Valgrind" run_valgrind "$name"
done

echo "c-tests: $good passed, $bad failed"
[ "$bad" -eq 0 ]
