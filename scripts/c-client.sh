# Sourced: builds the C side of the benchmarks against the optimized library of this tree.
#   release   where the programs are
#   client    the benchmarks' C client
#   build_c SOURCE PROGRAM
target=$(cargo metadata --format-version 1 --no-deps |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
release=$target/release
ln -sf libipc.so "$release/libipc.so.0"
build_c() {
    cc -O2 -Wall -Wextra -Iinclude "$1" -o "$2" -L"$release" -lipc -Wl,-rpath,"$release"
}
client=$release/bench-client
build_c benches/c/client.c "$client"
