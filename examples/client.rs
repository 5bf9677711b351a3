//! The shortest useful client. Start `ipcd`, then `rust-server`, then this.
//!
//!     rust-client [NAME [TEXT]]      sends TEXT to NAME ("hello" to "echo" unless given)

use std::{env, process::ExitCode, time::Duration};

use ipc::{CallError, Config, Node};

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "echo".to_owned());
    let text = arguments.next().unwrap_or_else(|| "hello".to_owned());
    match talk(&name, &text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rust-client: {error}");
            ExitCode::FAILURE
        }
    }
}

fn talk(name: &str, text: &str) -> Result<(), CallError> {
    let node = Node::connect(&Config::default())?;

    // From a name to its id, waiting up to five seconds for somebody to serve it; `discover` would
    // answer at once. The id stays good when the service restarts or a standby takes over.
    let service = node.wait_service(name, Some(Duration::from_secs(5)))?;

    // A channel: two rings in shared memory. From here on the two processes talk alone.
    let client = node.client(service)?;

    // A call ends exactly once: with the answer, or with an error that says what is known.
    match client.call(text.as_bytes(), Duration::from_secs(1)) {
        Ok(answer) => println!("{name} answered {:?}", String::from_utf8_lossy(&answer)),
        Err(CallError::PeerDied { taken: false }) => {
            // It never saw the request, so repeating does no harm.
            let answer = client.call(text.as_bytes(), Duration::from_secs(1))?;
            println!("{name} answered, asked twice, {:?}", String::from_utf8_lossy(&answer));
        }
        Err(error) => return Err(error),
    }

    // A one-way message asks for no answer; this waits only for room in the ring.
    client.send(b"and goodbye", Duration::from_secs(1))?;
    Ok(())
}
