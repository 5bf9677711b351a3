//! Generates the gRPC client and server without `protoc`: what `payload.proto` says, in Rust.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let call = Method::builder()
        .name("call")
        .route_name("Call")
        .input_type("crate::contenders::grpc::Payload")
        .output_type("crate::contenders::grpc::Payload")
        .codec_path("tonic_prost::ProstCodec")
        .build();
    Builder::new().compile(&[Service::builder()
        .package("peers")
        .name("Echo")
        .method(call)
        .build()]);
    println!("cargo:rerun-if-changed=build.rs");
}
