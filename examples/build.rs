//! Makes Rust of the service's `.proto` file.

fn main() -> Result<(), ipc_build::BuildError> {
    ipc_build::compile(&["proto/shelf.proto"], &["proto"])
}
