//! A hostile process, written against `docs/layout.md` and `docs/control.md` alone, and what it
//! cannot do: whatever it tries, an honest client is served, and of the attacker nothing stays.

#[path = "hostile/bulk.rs"]
mod bulk;
#[path = "hostile/callers.rs"]
mod callers;
#[path = "hostile/channels.rs"]
mod channels;
#[path = "hostile/descriptors.rs"]
mod descriptors;
#[path = "hostile/siege.rs"]
mod siege;
#[path = "hostile/slow.rs"]
mod slow;
