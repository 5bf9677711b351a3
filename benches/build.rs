//! Makes the service of the typed benchmarks of its `.proto` file.

fn main() -> Result<(), ipc_build::BuildError> {
    ipc_build::compile(&["proto/bench.proto"], &["proto"])
}
