//! How the targets read their input: as numbers one after another, zero when it is used up, so that
//! whatever libFuzzer makes of it means something.
#![deny(missing_docs)]

/// What is left of an input.
#[derive(Clone, Debug)]
pub struct Input {
    bytes: Vec<u8>,
    at: usize,
}

impl Input {
    /// Starts at the beginning.
    pub fn new(bytes: &[u8]) -> Input {
        Input { bytes: bytes.to_vec(), at: 0 }
    }

    /// Whether it is used up.
    pub fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// Takes a byte.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    /// Takes two bytes, the low one first.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    /// Takes four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    /// Takes eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// Takes up to so many bytes.
    pub fn bytes(&mut self, most: usize) -> Vec<u8> {
        let end = (self.at + most).min(self.bytes.len());
        let taken = self.bytes.get(self.at..end).unwrap_or_default().to_vec();
        self.at = end;
        taken
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let there = self.bytes.get(self.at..).unwrap_or_default();
        for (byte, from) in taken.iter_mut().zip(there) {
            *byte = *from;
        }
        self.at += N;
        taken
    }
}
