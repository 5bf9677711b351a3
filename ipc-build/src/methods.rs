//! The ids of methods, and what is not allowed of them.

use std::collections::HashMap;

use prost_build::{Method, Service};
use prost_types::{FileDescriptorSet, MethodDescriptorProto};

use crate::BuildError;

/// Ids below this are of the protocol itself.
const RESERVED: u32 = 16;

/// Gives the id of a method, by its path `/package.Service/Method`: 32 bits of FNV-1a. It stays as
/// long as the names do.
///
/// ```
/// assert_eq!(ipc_build::method_id("/greet.Greeter/Greet"), 0x456C_AC41);
/// ```
pub fn method_id(path: &str) -> u32 {
    path.bytes().fold(0x811C_9DC5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Two methods have the same id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{first} and {second} have the same id, {id:#010x}, since their names have the same hash: \
     rename one of them"
)]
pub struct Collision {
    /// The one, or the protocol itself.
    pub first: String,
    /// The other.
    pub second: String,
    /// Their id.
    pub id: u32,
}

pub(crate) fn path(service: &Service, method: &Method) -> String {
    join(&service.package, &service.proto_name, &method.proto_name)
}

fn join(package: &str, service: &str, method: &str) -> String {
    let dot = if package.is_empty() { "" } else { "." };
    format!("/{package}{dot}{service}/{method}")
}

/// Refuses what cannot be served.
pub(crate) fn check(set: &FileDescriptorSet) -> Result<(), BuildError> {
    let mut known = HashMap::new();
    for (path, method) in methods(set) {
        if method.client_streaming() {
            return Err(BuildError::ClientStream(path));
        }
        claim(&mut known, path)?;
    }
    Ok(())
}

fn methods(set: &FileDescriptorSet) -> impl Iterator<Item = (String, &MethodDescriptorProto)> {
    set.file.iter().flat_map(|file| {
        file.service.iter().flat_map(move |service| {
            service
                .method
                .iter()
                .map(move |method| (join(file.package(), service.name(), method.name()), method))
        })
    })
}

fn claim(known: &mut HashMap<u32, String>, second: String) -> Result<(), Collision> {
    let id = method_id(&second);
    if id < RESERVED {
        let first = "the protocol of streams".to_owned();
        return Err(Collision { first, second, id });
    }
    match known.insert(id, second.clone()) {
        Some(first) => Err(Collision { first, second, id }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        // From the test vectors of the draft of Fowler, Noll, Vo and Eastlake.
        assert_eq!(method_id(""), 0x811C_9DC5);
        assert_eq!(method_id("a"), 0xE40C_292C);
        assert_eq!(method_id("foobar"), 0xBF9C_F968);
    }

    #[test]
    fn one_id_for_two_methods_is_refused_with_both_names() {
        let mut known = HashMap::new();
        let collision = (0..)
            .find_map(|number| claim(&mut known, format!("/a.B/M{number}")).err())
            .expect("32 bits are few");
        assert_ne!(collision.first, collision.second);
        assert_eq!(method_id(&collision.first), method_id(&collision.second));
        let text = collision.to_string();
        assert!(text.contains(&collision.first) && text.contains(&collision.second));
    }

    #[test]
    fn the_ids_of_the_protocol_are_refused() {
        let path = reserved();
        let collision = claim(&mut HashMap::new(), path.clone()).expect_err("reserved");
        assert_eq!(collision.second, path);
    }

    /// Inverts the last steps of the hash to reach a reserved id by four bytes at the end.
    fn reserved() -> String {
        let begin = "/a.B/M";
        let alphabet = || b'0'..=b'z';
        let state = method_id(begin);
        let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        // The inverse of the prime modulo 2^32.
        let back = |hash: u32, byte: u8| hash.wrapping_mul(0x359C_449B) ^ u32::from(byte);
        let mut halfway = HashMap::new();
        for a in alphabet() {
            for b in alphabet() {
                for c in alphabet() {
                    halfway.insert(step(step(step(state, a), b), c), [a, b, c]);
                }
            }
        }
        for id in 0..RESERVED {
            for f in alphabet() {
                for e in alphabet() {
                    for d in alphabet() {
                        if let Some(abc) = halfway.get(&back(back(back(id, f), e), d)) {
                            let bytes = [abc, &[d, e, f][..]].concat();
                            return format!("{begin}{}", String::from_utf8_lossy(&bytes));
                        }
                    }
                }
            }
        }
        unreachable!("421,875 halves on either side, 16 ends: 660 pairs meet")
    }
}
