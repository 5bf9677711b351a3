#!/usr/bin/env bash
# Installs libipc, its header, its pkg-config file, and the programs. `make install` builds first.
#
#   PREFIX    where they will be found (/usr/local)
#   DESTDIR   put before PREFIX here and now, for packagers
set -euo pipefail
cd "$(dirname "$0")/.."

PREFIX=${PREFIX:-/usr/local}
root=${DESTDIR:-}$PREFIX
target=$(cargo metadata --format-version 1 --no-deps |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
soname=libipc.so.${version%%.*}

install -d "$root/lib/pkgconfig" "$root/include" "$root/bin"
install -m 755 "$target/release/libipc.so" "$root/lib/libipc.so.$version"
ln -sf "libipc.so.$version" "$root/lib/$soname"
ln -sf "$soname" "$root/lib/libipc.so"
install -m 644 "$target/release/libipc.a" "$root/lib/libipc.a"
install -m 644 include/ipc.h "$root/include/ipc.h"
install -m 755 "$target"/release/{ipcd,ipctl,ipc-queue} "$root/bin/"

sed -e "s|@PREFIX@|$PREFIX|" -e "s|@VERSION@|$version|" libipc.pc.in >"$root/lib/pkgconfig/libipc.pc"

echo "installed libipc $version under $root"
