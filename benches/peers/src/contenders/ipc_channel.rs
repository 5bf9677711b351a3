//! ipc-channel: its channels of bytes, which do without serde, one each way.

use std::io;

use ipc_channel::ipc::{self, IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcSender};

use crate::contender::{Caller, Contender, Place, Waits, check, ready};

/// A pair of byte channels.
#[derive(Debug)]
pub struct Bytes;

/// What the client sends first: where answers go, and where requests come from.
type Ends = (IpcBytesSender, IpcBytesReceiver);

struct Pair {
    requests: IpcBytesSender,
    answers: IpcBytesReceiver,
}

impl Contender for Bytes {
    fn name(&self) -> &'static str {
        "ipc-channel"
    }

    fn waits(&self) -> Waits {
        Waits::Sleeping
    }

    fn serve(&self, _: &Place) -> io::Result<()> {
        let (server, name) = IpcOneShotServer::<Ends>::new()?;
        ready(&name)?;
        let (_, (answers, requests)) = server.accept().map_err(io::Error::other)?;
        loop {
            let Ok(request) = requests.recv() else { benches::pair::rest() };
            answers.send(&request)?;
        }
    }

    fn connect(&self, place: &Place) -> io::Result<Box<dyn Caller>> {
        let (requests, taken) = ipc::bytes_channel()?;
        let (given, answers) = ipc::bytes_channel()?;
        IpcSender::<Ends>::connect(place.greeting.clone())?
            .send((given, taken))
            .map_err(io::Error::other)?;
        Ok(Box::new(Pair { requests, answers }))
    }
}

impl Caller for Pair {
    fn call(&mut self, request: &[u8], response: &mut [u8]) -> io::Result<()> {
        self.requests.send(request)?;
        let answer = self.answers.recv().map_err(io::Error::other)?;
        check(answer.len(), response.len())?;
        response.copy_from_slice(&answer);
        Ok(())
    }
}
