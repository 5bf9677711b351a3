//! Makes `tests::probe` of its `.proto` file.

fn main() -> Result<(), ipc_build::BuildError> {
    ipc_build::Builder::new().tokio(true).compile(&["proto/probe.proto"], &["proto"])
}
