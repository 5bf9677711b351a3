//! A service of typed calls, as `proto/shelf.proto` declares it. Start `ipcd`, then this, then
//! `rust-shelf-client`, or `shelf.py`, which has the same file.
//!
//!     rust-shelf [NAME]      serves as NAME ("shelf" unless given)

use std::{
    env,
    error::Error,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ipc::{
    Config, Node, Status,
    rpc::{Context, Fault, Router, Stream},
};

use shelf::{Book, Everything, Place, Title};

ipc::include_proto! { mod shelf = "shelf"; }

/// No book has that title.
const NO_BOOK: Status = Status::from_code(-1001);

#[derive(Default)]
struct Shelf(Mutex<Vec<Book>>);

impl Shelf {
    fn books(&self) -> MutexGuard<'_, Vec<Book>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl shelf::Shelf for Shelf {
    fn put(&self, _: &Context, book: Book) -> Result<Place, Fault> {
        let mut books = self.books();
        let same = books.iter().position(|other| other.title == book.title);
        let index = same.unwrap_or(books.len());
        match books.get_mut(index) {
            Some(other) => *other = book,
            None => books.push(book),
        }
        Ok(Place { index: u32::try_from(index).unwrap_or(u32::MAX) })
    }

    fn find(&self, _: &Context, request: Title) -> Result<Book, Fault> {
        let books = self.books();
        let book = books.iter().find(|book| book.title == request.title);
        book.cloned()
            .ok_or_else(|| Fault::new(NO_BOOK, format!("no book is called {:?}", request.title)))
    }

    fn list(&self, _: &Context, _: Everything) -> Result<Stream<Book>, Fault> {
        // As they stand now; the caller fetches them as fast as it reads.
        let books = self.books().clone();
        Ok(Box::new(books.into_iter().map(Ok)))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let name = env::args().nth(1).unwrap_or_else(|| "shelf".to_owned());
    let node = Node::connect(&Config::default())?;
    let server = node.server()?;
    let router = Router::new().with(shelf::ShelfServer::new(Shelf::default()))?;
    // All its methods may be repeated, so what a shelf that died had taken may be sent to another.
    server.register(&name, router.flags())?;
    server.run(|request| router.handle(&request))?;
    Ok(())
}
