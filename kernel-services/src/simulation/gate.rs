//! A service's memory of what it answered: the real gate, before memory that stays where it is
//! when its process dies.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use ipc::once::{LogError, Memory};

const SIZE: usize = 4096;

#[derive(Clone, Debug)]
pub(super) struct Words(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes: RefCell<Vec<u8>>,
    /// Whether its writer was killed.
    dead: Cell<bool>,
}

impl Words {
    pub(super) fn new() -> Words {
        Words(Rc::new(Inner { bytes: RefCell::new(vec![0; SIZE]), dead: Cell::new(false) }))
    }

    /// From here on nothing is written any more.
    pub(super) fn die(&self) {
        self.0.dead.set(true);
    }
}

impl Memory for Words {
    fn size(&self) -> usize {
        SIZE
    }

    fn read(&self, at: usize, into: &mut [u8]) -> Result<(), LogError> {
        into.copy_from_slice(&self.0.bytes.borrow()[at..at + into.len()]);
        Ok(())
    }

    fn write(&self, at: usize, bytes: &[u8]) -> Result<(), LogError> {
        if !self.0.dead.get() {
            self.0.bytes.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        }
        Ok(())
    }

    fn load(&self, at: usize) -> Result<u64, LogError> {
        let mut word = [0; 8];
        self.read(at, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    fn store(&self, at: usize, word: u64) -> Result<(), LogError> {
        self.write(at, &word.to_le_bytes())
    }
}
