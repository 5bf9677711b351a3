//! Poly1305 (RFC 8439, 2.5) for the few blocks of a short record, in 64-bit limbs.
//!
//! The `poly1305` crate takes its AVX2 backend wherever it finds AVX2, and that costs more to set
//! up than a whole short record; only a setting of the final build can turn it off, which a library
//! cannot give. See `docs/adr/0015-keystream-ahead-of-time.md` for the figures.

/// Sixteen bytes, as two little-endian words.
pub(crate) type Half = [u64; 2];

/// A tag in the making.
#[derive(Clone, Copy)]
pub(crate) struct Poly {
    /// The sum so far, below 2^131.
    sum: [u64; 3],
    /// The multiplier, clamped.
    r: [u64; 2],
    /// 5/4 of its high limb: what 2^128 times that limb is modulo 2^130 - 5.
    folded: u64,
    /// What is added at the end.
    s: [u64; 2],
}

impl Poly {
    /// Begins with a one-time key.
    #[inline(always)]
    pub(crate) fn new(key: [u64; 4]) -> Poly {
        let r = [key[0] & 0x0FFF_FFFC_0FFF_FFFF, key[1] & 0x0FFF_FFFC_0FFF_FFFC];
        Poly { sum: [0; 3], r, folded: r[1] + (r[1] >> 2), s: [key[2], key[3]] }
    }

    /// Takes a whole block. A short one is filled up with zeros by the caller, as the AEAD wants.
    #[inline(always)]
    pub(crate) fn block(&mut self, block: Half) {
        let [h0, h1, h2] = self.sum;
        let (h0, carry) = h0.overflowing_add(block[0]);
        let (h1, carry) = carrying_add(h1, block[1], carry);
        // At most 7 + 1 + 1.
        let h2 = h2 + 1 + u64::from(carry);
        let ([r0, r1], folded) = (self.r, self.folded);
        // r's limbs are below 2^60: no sum below reaches 2^128.
        let low = wide(h0, r0) + wide(h1, folded);
        let high = wide(h0, r1) + wide(h1, r0) + u128::from(h2.wrapping_mul(folded));
        let top = h2.wrapping_mul(r0);
        let (d0, high) = (low as u64, high + (low >> 64));
        let (d1, top) = (high as u64, top.wrapping_add((high >> 64) as u64));
        // What is at 2^130 and above counts five times at the bottom.
        let (d0, carry) = d0.overflowing_add((top & !3) + (top >> 2));
        let (d1, carry) = d1.overflowing_add(u64::from(carry));
        self.sum = [d0, d1, (top & 3) + u64::from(carry)];
    }

    /// Ends: the tag.
    #[inline(always)]
    pub(crate) fn tag(self) -> Half {
        let [h0, h1, h2] = self.sum;
        // Subtract 2^130 - 5 if that leaves something: add 5, and look whether it reached 2^130.
        let (g0, carry) = h0.overflowing_add(5);
        let (g1, carry) = h1.overflowing_add(u64::from(carry));
        let g2 = h2 + u64::from(carry);
        let reduced = 0_u64.wrapping_sub(g2 >> 2 & 1);
        let h0 = h0 & !reduced | g0 & reduced;
        let h1 = h1 & !reduced | g1 & reduced;
        let (t0, carry) = h0.overflowing_add(self.s[0]);
        [t0, h1.wrapping_add(self.s[1]).wrapping_add(u64::from(carry))]
    }
}

#[inline(always)]
fn wide(a: u64, b: u64) -> u128 {
    u128::from(a) * u128::from(b)
}

#[inline(always)]
fn carrying_add(a: u64, b: u64, carry: bool) -> (u64, bool) {
    let (sum, first) = a.overflowing_add(b);
    let (sum, second) = sum.overflowing_add(u64::from(carry));
    (sum, first | second)
}
