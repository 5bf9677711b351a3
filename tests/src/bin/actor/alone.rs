//! A service with a store that one process at a time has open: a file, and its lock. It closes the
//! store when it lets go of its name, and opens it when a request comes again.

use std::{
    fs::{File, OpenOptions},
    sync::{Arc, Mutex},
};

use ipc::{Server, Status};

use crate::say;

/// Serves a name, behind whoever serves it now.
pub(crate) fn serve(server: &Server, name: &str, path: &str) {
    let store: Arc<Mutex<Option<File>>> = Arc::default();
    let closed = Arc::clone(&store);
    let is_first = server.on_demoted(move |_, epoch| {
        assert!(epoch > 0);
        drop(closed.lock().expect("nobody panicked").take());
    });
    assert!(is_first);
    let path = path.to_owned();
    let registration = server.register(name, 0).expect("registered");
    let server = server.clone();
    std::thread::spawn(move || {
        server.run(|request| {
            let mut store = store.lock().expect("nobody panicked");
            let open = store.is_some() || {
                let file = OpenOptions::new().append(true).open(&path).expect("a file");
                let is_free = file.try_lock().is_ok();
                *store = is_free.then_some(file);
                is_free
            };
            // A caller that is gone needs no answer.
            let _ = if open {
                request.reply(std::process::id().to_string().as_bytes())
            } else {
                request.reply_error(Status::ALREADY)
            };
        })
    });
    say(&format!("serving {} {}", registration.instance, registration.name));
}
