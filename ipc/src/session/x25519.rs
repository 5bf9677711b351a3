//! X25519 (RFC 7748), by the fastest library that this processor can run.
//!
//! Both libraries leave copies of keys on the stack below their callers, who sweep it
//! ([`sweep_stack`](super::vault::sweep_stack)).

use zeroize::Zeroizing;

/// Who computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Curve {
    /// `graviola`: the assembly of `s2n-bignum`, proved to compute what it should.
    #[cfg(target_arch = "x86_64")]
    Graviola,
    /// `x25519-dalek`: Rust, on every processor.
    Dalek,
}

impl Curve {
    /// The fastest that this processor can run.
    pub(super) fn detect() -> Curve {
        #[cfg(target_arch = "x86_64")]
        if can_run_graviola() {
            return Curve::Graviola;
        }
        Curve::Dalek
    }

    /// All that this processor can run, for tests.
    #[cfg(test)]
    pub(super) fn all() -> impl Iterator<Item = Curve> {
        let fastest = Curve::detect();
        [fastest, Curve::Dalek].into_iter().take(if fastest == Curve::Dalek { 1 } else { 2 })
    }

    /// Computes the public half of a key.
    pub(super) fn public_of(self, private: &[u8; 32]) -> [u8; 32] {
        match self {
            #[cfg(target_arch = "x86_64")]
            Curve::Graviola => by_graviola::public_of(private),
            Curve::Dalek => by_dalek::public_of(private),
        }
    }

    /// Computes what two keys have in common; nothing for a point of low order, with which every
    /// private key makes zeros.
    pub(super) fn agree(
        self,
        private: &[u8; 32],
        public: &[u8; 32],
    ) -> Option<Zeroizing<[u8; 32]>> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Curve::Graviola => by_graviola::agree(private, public),
            Curve::Dalek => by_dalek::agree(private, public),
        }
    }
}

/// Whether `graviola` does its work here, which it asks itself before each computation, and panics
/// where it does not. It needs BMI2 as well, which every processor with ADX has, without asking.
#[cfg(target_arch = "x86_64")]
fn can_run_graviola() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("adx")
        && has!("aes")
        && has!("avx")
        && has!("avx2")
        && has!("bmi1")
        && has!("bmi2")
        && has!("pclmulqdq")
}

#[cfg(target_arch = "x86_64")]
mod by_graviola {
    use graviola::key_agreement::x25519::{PublicKey, StaticPrivateKey};
    use zeroize::Zeroizing;

    pub(super) fn public_of(private: &[u8; 32]) -> [u8; 32] {
        StaticPrivateKey::from_array(private).public_key().as_bytes()
    }

    pub(super) fn agree(private: &[u8; 32], public: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
        let private = StaticPrivateKey::from_array(private);
        // It refuses zeros itself.
        let shared = private.diffie_hellman(&PublicKey::from_array(public)).ok()?;
        Some(Zeroizing::new(shared.0))
    }
}

mod by_dalek {
    use x25519_dalek::{PublicKey, StaticSecret};
    use zeroize::Zeroizing;

    pub(super) fn public_of(private: &[u8; 32]) -> [u8; 32] {
        PublicKey::from(&StaticSecret::from(*private)).to_bytes()
    }

    pub(super) fn agree(private: &[u8; 32], public: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
        let shared = StaticSecret::from(*private).diffie_hellman(&PublicKey::from(*public));
        shared.was_contributory().then(|| Zeroizing::new(*shared.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The fastest of an ordinary x86-64 of the last ten years is not the fallback: without this
    /// a check that asks for too much would go unnoticed.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_assembly_is_used_where_the_processor_has_what_it_needs() {
        let has_all = can_run_graviola();
        let told = std::fs::read_to_string("/proc/cpuinfo").expect("the kernel tells");
        let flags = told.lines().find(|it| it.starts_with("flags")).expect("of a processor");
        let has = |flag| flags.split_whitespace().any(|it| it == flag);
        let needed = ["adx", "aes", "avx", "avx2", "bmi1", "bmi2", "pclmulqdq"];
        assert_eq!(has_all, needed.into_iter().all(has));
        assert_eq!(Curve::detect() == Curve::Graviola, has_all);
        assert_eq!(Curve::all().count(), 1 + usize::from(has_all));
        if has_all {
            // It would panic.
            by_graviola::public_of(&[7; 32]);
        }
    }

    /// The points of low order, as RFC 7748 and the libraries know them, whose top bit is ignored.
    #[test]
    fn every_point_of_low_order_is_refused() {
        let mut p = [0xFF_u8; 32];
        (p[0], p[31]) = (0xED, 0x7F);
        let near = |delta: i8| {
            let mut it = p;
            it[0] = it[0].wrapping_add_signed(delta);
            it
        };
        let mut one = [0; 32];
        one[0] = 1;
        let eighth = [
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        ]
        .map(|text| {
            std::array::from_fn(|at| {
                u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hexadecimal")
            })
        });
        for mut point in [[0; 32], one, near(-1), p, near(1), eighth[0], eighth[1]] {
            for top in [0, 0x80] {
                point[31] = point[31] & 0x7F | top;
                for curve in Curve::all() {
                    assert!(curve.agree(&[0x55; 32], &point).is_none(), "{curve:?} {point:x?}");
                }
            }
        }
    }

    proptest! {
        /// Whatever the keys: also such as no honest end has.
        #[test]
        fn all_agree(private: [u8; 32], other: [u8; 32], point: [u8; 32]) {
            let expected = Curve::Dalek;
            for curve in Curve::all() {
                prop_assert_eq!(curve.public_of(&private), expected.public_of(&private));
                prop_assert_eq!(
                    curve.agree(&private, &point), expected.agree(&private, &point)
                );
                let (ours, theirs) = (curve.public_of(&private), expected.public_of(&other));
                prop_assert_eq!(
                    curve.agree(&private, &theirs), expected.agree(&other, &ours)
                );
            }
        }
    }
}
