//! The only door between C and Rust: panics stop here, and pointers become references here.
//!
//! A C program's side of the contract, which the functions below number in their proofs:
//! 1. A pointer is NULL or points to as many bytes as `ipc.h` says (the size passed beside it, or
//!    the size of its type), readable, and writable for out-parameters, until the call returns.
//! 2. A string is NULL or ends with a NUL byte.
//! 3. No other thread writes to them meanwhile.
//!
//! Whatever can be checked is: NULL, sizes that no object can have, UTF-8.

#![allow(unsafe_code)] // the door

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr::NonNull,
};

use ipc_core::{Status, control::MAX_NAME};

use crate::error::Failure;

/// Runs the body of a C function: gives its number, or that of its failure, or `IPC_EPANIC`.
#[inline]
pub(crate) fn guard(body: impl FnOnce() -> Result<c_int, Failure>) -> c_int {
    // What a panic may leave half done is behind locks, whose poison is looked at, or belongs to
    // one call.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(number)) => number,
        Ok(Err(failure)) => failure.report(),
        Err(_) => Status::PANIC.code(),
    }
}

/// Runs the body of a C function that returns no status: gives `otherwise` after a panic.
#[inline]
pub(crate) fn guard_or<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(otherwise)
}

/// Takes `size` bytes that C lends; NULL is fine for none.
///
/// # Safety
/// C keeps clauses 1 and 3 for `'a`.
#[inline]
pub(crate) unsafe fn bytes<'a>(data: *const c_void, size: usize) -> Result<&'a [u8], Failure> {
    if size == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(Status::INVALID.into());
    }
    if size > isize::MAX as usize {
        return Err(Status::MESSAGE_SIZE.into());
    }
    // SAFETY: not NULL, of a size that an object can have, and readable by clause 1; nobody
    // writes to it by clause 3.
    Ok(unsafe { std::slice::from_raw_parts(data.cast(), size) })
}

/// Takes a buffer of `capacity` bytes that C lends for writing; NULL is fine for none.
///
/// # Safety
/// C keeps clauses 1 and 3 for `'a`, and lends these bytes for nothing else meanwhile.
#[inline]
pub(crate) unsafe fn buffer<'a>(
    data: *mut c_void,
    capacity: usize,
) -> Result<&'a mut [u8], Failure> {
    if capacity == 0 {
        return Ok(&mut []);
    }
    if data.is_null() || capacity > isize::MAX as usize {
        return Err(Status::INVALID.into());
    }
    // SAFETY: not NULL, of a size that an object can have, and writable by clause 1; exclusive by
    // the condition above. C need not have initialised the bytes: they are only written to, by
    // copies, and any byte is a valid u8 to the compiler that made the caller.
    Ok(unsafe { std::slice::from_raw_parts_mut(data.cast(), capacity) })
}

/// Tells whether `lent` has bytes in common with the `size` bytes at `other`.
#[inline]
pub(crate) fn overlaps(lent: &[u8], other: *const c_void, size: usize) -> bool {
    let (lent, other) = (lent.as_ptr_range(), other.cast::<u8>());
    lent.start < other.wrapping_add(size) && other < lent.end
}

/// Takes a string that C lends. At most one byte more than the longest name is looked at, so that
/// a longer one is refused for its length.
///
/// # Safety
/// C keeps clauses 1, 2 and 3 for `'a`.
pub(crate) unsafe fn name<'a>(name: *const c_char) -> Result<&'a str, Failure> {
    if name.is_null() {
        return Err(Status::INVALID.into());
    }
    // SAFETY: readable up to its NUL byte by clauses 1 and 2, and strnlen reads no further.
    let length = unsafe { libc::strnlen(name, MAX_NAME + 1) };
    // SAFETY: strnlen has read just these bytes.
    let bytes = unsafe { std::slice::from_raw_parts(name.cast(), length) };
    std::str::from_utf8(bytes).map_err(|_| Status::INVALID.into())
}

/// Takes a path that C lends.
///
/// # Safety
/// C keeps clauses 1, 2 and 3 for `'a`; `path` is not NULL.
pub(crate) unsafe fn path<'a>(path: *const c_char) -> &'a std::path::Path {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: not NULL by the condition above, and NUL-terminated by clause 2.
    let bytes = unsafe { CStr::from_ptr(path) }.to_bytes();
    std::path::Path::new(std::ffi::OsStr::from_bytes(bytes))
}

/// An out-parameter that is not NULL. Nothing is written before [`set`](Out::set), which the
/// functions of the API call last.
pub(crate) struct Out<'a, T> {
    place: NonNull<T>,
    lent: PhantomData<&'a mut T>,
}

/// Takes an out-parameter that C lends; NULL is an error.
///
/// # Safety
/// C keeps clauses 1 and 3 for `'a`.
#[inline]
pub(crate) unsafe fn out<'a, T: Copy>(place: *mut T) -> Result<Out<'a, T>, Failure> {
    // SAFETY: the same conditions.
    unsafe { optional_out(place) }.ok_or_else(|| Status::INVALID.into())
}

/// Takes an out-parameter that C lends; NULL means that C does not want it.
///
/// # Safety
/// C keeps clauses 1 and 3 for `'a`.
#[inline]
pub(crate) unsafe fn optional_out<'a, T: Copy>(place: *mut T) -> Option<Out<'a, T>> {
    NonNull::new(place).map(|place| Out { place, lent: PhantomData })
}

impl<T: Copy> Out<'_, T> {
    /// Writes the result.
    #[inline]
    pub(crate) fn set(self, value: T) {
        // SAFETY: writable for the lifetime of `self` by clause 1, with which it was made. C may
        // have placed it without regard to alignment inside a packed struct.
        unsafe { self.place.as_ptr().write_unaligned(value) };
    }
}

/// Takes a copy of a value that C lends; NULL is an error.
///
/// # Safety
/// C keeps clauses 1 and 3. Any bytes are a valid `T`: it has nothing but numbers.
#[inline]
pub(crate) unsafe fn value<T: Copy>(place: *const T) -> Result<T, Failure> {
    if place.is_null() {
        return Err(Status::INVALID.into());
    }
    // SAFETY: readable by clause 1, unchanged meanwhile by clause 3, and valid by the condition
    // above. C may have placed it without regard to alignment inside a packed struct.
    Ok(unsafe { place.read_unaligned() })
}

/// What C passes for its callbacks to get back. The library never looks behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UserData(pub(crate) *mut c_void);

// SAFETY: the library only stores the pointer and hands it back; what lies behind it is for C to
// share between the threads that poll, as ipc.h says.
unsafe impl Send for UserData {}
// SAFETY: as above.
unsafe impl Sync for UserData {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_number() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let number = guard(|| panic!("on purpose"));
        let text = guard_or("fallback", || panic!("on purpose"));
        std::panic::set_hook(hook);
        assert_eq!(number, Status::PANIC.code());
        assert_eq!(text, "fallback");
    }

    #[test]
    fn null_is_fine_for_nothing_and_an_error_for_something() {
        // SAFETY: NULL is allowed by clause 1.
        unsafe {
            assert!(bytes(std::ptr::null(), 0).is_ok_and(<[u8]>::is_empty));
            assert!(bytes(std::ptr::null(), 1).is_err());
            assert!(buffer(std::ptr::null_mut(), 0).is_ok_and(|it| it.is_empty()));
            assert!(buffer(std::ptr::null_mut(), 1).is_err());
            assert!(name(std::ptr::null()).is_err());
            assert!(out::<u32>(std::ptr::null_mut()).is_err());
            assert!(optional_out::<u32>(std::ptr::null_mut()).is_none());
        }
    }

    #[test]
    fn sizes_that_no_object_has_are_refused_unread() {
        let one = [1_u8];
        // SAFETY: refused before anything is read.
        unsafe {
            assert!(bytes(one.as_ptr().cast(), usize::MAX).is_err());
            assert!(buffer(one.as_ptr().cast_mut().cast(), usize::MAX).is_err());
        }
    }

    #[test]
    fn overlap_is_seen_to_the_byte() {
        let bytes = [0_u8; 16];
        let at = |offset: usize| bytes.as_ptr().wrapping_add(offset).cast();
        assert!(overlaps(&bytes[4..8], at(0), 5));
        assert!(overlaps(&bytes[4..8], at(7), 1));
        assert!(overlaps(&bytes[4..8], at(5), 1));
        assert!(!overlaps(&bytes[4..8], at(0), 4));
        assert!(!overlaps(&bytes[4..8], at(8), 8));
        assert!(!overlaps(&[], std::ptr::null(), 0));
    }

    #[test]
    fn a_name_is_read_no_further_than_needed() {
        // Without a NUL: one read past it would be one too many.
        let long = vec![b'a'; MAX_NAME + 1];
        // SAFETY: the bytes that strnlen looks at are there.
        let read = unsafe { name(long.as_ptr().cast()) };
        assert!(read.is_ok_and(|name| name.len() == MAX_NAME + 1));
        // SAFETY: a C string.
        assert!(unsafe { name(c"\xff".as_ptr()) }.is_err());
    }
}
