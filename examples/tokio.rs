//! A service and its client in tasks of a tokio runtime. Start `ipcd`, then this.
//!
//!     rust-tokio [NAME]      serves NAME ("upper" unless given), and calls it 1000 times at once
//!
//! Both could as well be in processes of their own, and any client may call the service.

use std::{env, process::ExitCode, time::Duration};

use ipc::{CallError, Config, Node, Retained, Server};
use tokio::runtime::Builder;

fn main() -> ExitCode {
    let name = env::args().nth(1).unwrap_or_else(|| "upper".to_owned());
    match run(&name) {
        Ok(answered) => {
            println!("{answered} calls answered");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("rust-tokio: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(name: &str) -> Result<usize, CallError> {
    // These wait for the runtime of this machine, so they stand before that of the tasks.
    let node = Node::connect(&Config::default())?;
    let server = node.server()?;
    server.register(name, 0)?;
    let client = node.client(node.discover(name)?)?;

    // One thread is enough, and more are no harm. libipc needs only its I/O.
    let built = Builder::new_current_thread().enable_io().build();
    built.expect("the system has what a runtime needs").block_on(async {
        let looping = tokio::spawn(serve(server.clone()));

        // As many calls as you like: those for which there is no room wait in line.
        let calls: Vec<_> = (0..1000)
            .map(|n| {
                let (server, client) = (server.clone(), client.clone());
                let text = format!("hello {n}");
                tokio::spawn(async move {
                    let timeout = Duration::from_secs(10);
                    let answer =
                        ipc::tokio::call(&server, &client, text.as_bytes(), timeout).await?;
                    assert_eq!(answer, text.to_ascii_uppercase().as_bytes());
                    Ok::<_, CallError>(())
                })
            })
            .collect();
        let mut answered = 0;
        for call in calls {
            call.await.expect("it neither panics nor is aborted")?;
            answered += 1;
        }

        // A stop, which may come from anywhere, ends the loop.
        node.interrupter().fire();
        match looping.await.expect("it neither panics nor is aborted") {
            Err(CallError::Canceled) => Ok(answered),
            ended => ended.map(|()| answered),
        }
    })
}

async fn serve(server: Server) -> Result<(), CallError> {
    ipc::tokio::serve(&server, |request| {
        // The loop must not be kept: what takes its time goes to a task.
        tokio::spawn(answer(request.retain()));
    })
    .await
}

async fn answer(request: Retained) {
    // Here one would wait for a file, a database, or another service.
    tokio::task::yield_now().await;
    if let Err(error) = request.reply(&request.payload().to_ascii_uppercase()) {
        eprintln!("rust-tokio: the caller is gone: {error}");
    }
}
