//! Gives libipc.so its soname and its symbols their version.
//!
//! rustc passes a version script of its own, without a version, which no second script can be
//! combined with: GNU ld refuses the pair, and lld leaves the symbols unversioned. GNU ld's
//! `--default-symver` adds the soname as the version of every exported symbol, and lld does not
//! know it: hence `-fuse-ld=bfd`, which every Linux toolchain has.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let major = std::env::var("CARGO_PKG_VERSION_MAJOR").expect("set by cargo");
    println!("cargo:rustc-cdylib-link-arg=-fuse-ld=bfd");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libipc.so.{major},--default-symver");
}
