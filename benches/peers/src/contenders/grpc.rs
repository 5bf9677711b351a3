//! tonic: a unary gRPC call over HTTP/2 on a Unix socket; one thread in each process.

use std::io;
use std::path::PathBuf;

use ::bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, async_trait};
use tower::service_fn;

use crate::contender::{Caller, Contender, LARGEST, Place, Waits, check, ready};
use generated::echo_client::EchoClient;
use generated::echo_server::{Echo, EchoServer};

/// What `build.rs` made.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/peers.Echo.rs"));
}

/// Bytes per direction that may be under way: so that no payload waits for a window.
const WINDOW: u32 = 4 << 20;

/// The message of `payload.proto`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Payload {
    /// The payload; taken out of the receive buffer without a copy.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
}

/// gRPC by tonic.
#[derive(Debug)]
pub struct Grpc;

struct Service;

struct Stub {
    runtime: Runtime,
    client: EchoClient<Channel>,
}

impl Contender for Grpc {
    fn name(&self) -> &'static str {
        "tonic (gRPC)"
    }

    fn waits(&self) -> Waits {
        Waits::Sleeping
    }

    fn takes_crowds(&self) -> bool {
        true
    }

    fn serve(&self, place: &Place) -> io::Result<()> {
        runtime()?.block_on(async {
            let listener = UnixListener::bind(place.path("grpc"))?;
            ready("")?;
            Server::builder()
                .initial_stream_window_size(WINDOW)
                .initial_connection_window_size(WINDOW)
                .add_service(EchoServer::new(Service))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .map_err(io::Error::other)
        })
    }

    fn connect(&self, place: &Place) -> io::Result<Box<dyn Caller>> {
        let runtime = runtime()?;
        let path = place.path("grpc");
        let channel = runtime
            .block_on(
                // The address is of no use on a Unix socket, but has to be one.
                Endpoint::from_static("http://peers")
                    .initial_stream_window_size(WINDOW)
                    .initial_connection_window_size(WINDOW)
                    .connect_with_connector(service_fn(move |_| dial(path.clone()))),
            )
            .map_err(io::Error::other)?;
        Ok(Box::new(Stub { runtime, client: EchoClient::new(channel) }))
    }
}

impl Caller for Stub {
    fn call(&mut self, request: &[u8], response: &mut [u8]) -> io::Result<()> {
        let payload = Payload { data: Bytes::copy_from_slice(request) };
        let answer = self
            .runtime
            .block_on(self.client.call(payload))
            .map_err(io::Error::other)?
            .into_inner();
        check(answer.data.len(), response.len())?;
        response.copy_from_slice(&answer.data);
        Ok(())
    }
}

#[async_trait]
impl Echo for Service {
    async fn call(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

async fn dial(path: PathBuf) -> io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(path).await.map(TokioIo::new)
}

fn runtime() -> io::Result<Runtime> {
    const { assert!(LARGEST < WINDOW as usize) };
    Builder::new_current_thread().enable_all().build()
}
