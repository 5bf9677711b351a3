//! Calls the service of `shelf.rs`.
//!
//!     rust-shelf-client [NAME]      calls NAME ("shelf" unless given)

use std::{env, error::Error, time::Duration};

use ipc::{Config, Node, civil::RetryConfig};

use shelf::{Book, Everything, ShelfClient, Title};

ipc::include_proto! { mod shelf = "shelf"; }

/// For each call.
const PATIENCE: Duration = Duration::from_secs(1);

fn main() -> Result<(), Box<dyn Error>> {
    let name = env::args().nth(1).unwrap_or_else(|| "shelf".to_owned());
    let node = Node::connect(&Config::default())?;
    let service = node.wait_service(&name, Some(Duration::from_secs(5)))?;
    // What the file says may be repeated is, when the service dies and another takes its place.
    let shelf = ShelfClient::new(node.client(service)?).with_retry(RetryConfig::default());

    for (title, year, author) in
        [("Emma", 1815, "Jane Austen"), ("Candide", 1759, "Voltaire"), ("Medea", -431, "Euripides")]
    {
        let authors = vec![author.to_owned()];
        let book = Book { title: title.to_owned(), year, authors, first_page: Vec::new() };
        let place = shelf.put(&book, PATIENCE)?;
        println!("{title} stands at {}", place.index);
    }
    let emma = shelf.find(&Title { title: "Emma".to_owned() }, PATIENCE)?;
    println!("Emma is of {}", emma.year);
    if let Err(error) = shelf.find(&Title { title: "Ulysses".to_owned() }, PATIENCE) {
        println!("{error}");
    }
    for book in shelf.list(&Everything {}, PATIENCE)? {
        let book = book?;
        println!("{} ({}) by {}", book.title, book.year, book.authors.join(", "));
    }
    Ok(())
}
