//! Buffers that `ipc_call` hands to C, and `ipc_free`, which takes them back.
//!
//! A small header stands before the bytes that C sees. Freed buffers stay with the thread that
//! freed them, for its next call: no allocation then, and no fresh pages for large responses.

#![allow(unsafe_code)] // memory that C owns for a while

use std::{
    alloc::{Layout, alloc, dealloc},
    cell::RefCell,
    ffi::c_void,
    ptr::NonNull,
};

use ipc_core::{CallError, CallOptions, Client, View};

use crate::boundary::guard_or;

/// Gives back what the library allocated: responses of ipc_call, payloads of ipc_encrypt_message
/// and ipc_decrypt_message. Any thread may; NULL is ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipc_free(p: *mut c_void) {
    guard_or((), || {
        // SAFETY: NULL, or what `into_c` gave, says ipc.h.
        let buffer = unsafe { Buffer::from_c(p) };
        if let Some(buffer) = buffer {
            let _ = SPARES.try_with(|spares| {
                if let Ok(mut spares) = spares.try_borrow_mut() {
                    spares.put(buffer);
                }
            });
        }
    });
}

/// Stands before the bytes that C sees, which are aligned as `malloc` aligns.
#[repr(C, align(16))]
struct Header {
    /// `LENT` while C has the buffer.
    state: u64,
    /// Bytes behind the header.
    capacity: usize,
}

const HEADER: usize = size_of::<Header>();
const LENT: u64 = u64::from_le_bytes(*b"ipc_resp");
const RETURNED: u64 = u64::from_le_bytes(*b"ipc_free");
/// Smallest buffer.
const SMALLEST: usize = 256;
/// Larger buffers are not kept.
const LARGEST_KEPT: usize = 1 << 20;
/// Buffers that a thread keeps.
const KEPT: usize = 4;

/// A response on its way to C, in memory that C will own.
#[derive(Debug)]
pub(crate) struct Buffer {
    header: NonNull<Header>,
    size: usize,
}

impl Buffer {
    /// Calls, and puts the response into a buffer.
    #[inline]
    pub(crate) fn receive(
        client: &Client,
        request: &[u8],
        options: CallOptions,
    ) -> Result<Buffer, CallError> {
        SCRATCH.with(|scratch| {
            let scratch = &mut *scratch.borrow_mut();
            client.call_into_vec(request, scratch, options)?;
            let buffer = Buffer::of(scratch);
            if scratch.capacity() > LARGEST_KEPT {
                *scratch = Vec::new();
            }
            Ok(buffer)
        })
    }

    /// Copies bytes.
    pub(crate) fn of(bytes: &[u8]) -> Buffer {
        let spare = SPARES.try_with(|spares| spares.try_borrow_mut().ok()?.take(bytes.len()));
        let mut buffer = spare.ok().flatten().unwrap_or_else(|| Buffer::with_capacity(bytes.len()));
        // SAFETY: so many bytes fit behind the header, and nobody else has them.
        unsafe {
            let data = buffer.data().as_ptr().cast::<u8>();
            data.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        };
        buffer.size = bytes.len();
        buffer
    }

    /// Copies what was received in bulk, or otherwise.
    pub(crate) fn of_view(view: &View) -> Buffer {
        let mut buffer = Buffer::with_capacity(view.len());
        let data = buffer.data().as_ptr().cast::<u8>();
        // SAFETY: so many bytes fit behind the header, nobody else has them, and they are zeroed
        // first: a view is copied into bytes that are there.
        let bytes = unsafe {
            data.write_bytes(0, view.len());
            std::slice::from_raw_parts_mut(data, view.len())
        };
        buffer.size = view.copy_to(bytes);
        buffer
    }

    fn with_capacity(capacity: usize) -> Buffer {
        let capacity = capacity.max(SMALLEST).next_power_of_two();
        let layout = layout(capacity);
        #[allow(clippy::cast_ptr_alignment)] // the layout is a header's
        // SAFETY: the layout is not of size 0.
        let memory = unsafe { alloc(layout) }.cast::<Header>();
        let Some(header) = NonNull::new(memory) else { std::alloc::handle_alloc_error(layout) };
        // SAFETY: just allocated, large enough and aligned for a header.
        unsafe { header.write(Header { state: RETURNED, capacity }) };
        Buffer { header, size: 0 }
    }

    fn capacity(&self) -> usize {
        // SAFETY: a buffer's header is there as long as the buffer.
        unsafe { (*self.header.as_ptr()).capacity }
    }

    fn data(&self) -> NonNull<c_void> {
        // SAFETY: one past the header is within the allocation, or its end.
        unsafe { self.header.add(1) }.cast()
    }

    /// Bytes of the response.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Hands the buffer to C.
    #[inline]
    pub(crate) fn into_c(self) -> *mut c_void {
        // SAFETY: the header is there, and nobody else has it.
        unsafe { (*self.header.as_ptr()).state = LENT };
        let data = self.data().as_ptr();
        std::mem::forget(self);
        data
    }

    /// Takes a buffer back. What is not lent, as far as that can be told, is left alone.
    ///
    /// # Safety
    /// `data` is NULL or came from [`Buffer::into_c`], and C does not use it any more.
    #[inline]
    unsafe fn from_c(data: *mut c_void) -> Option<Buffer> {
        let data = NonNull::new(data.cast::<Header>())?;
        // SAFETY: what `into_c` gave has a header before it.
        let header = unsafe { data.sub(1) };
        // SAFETY: as above.
        let state = unsafe { &mut (*header.as_ptr()).state };
        (*state == LENT).then(|| {
            *state = RETURNED;
            Buffer { header, size: 0 }
        })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let layout = layout(self.capacity());
        // SAFETY: allocated by `with_capacity` with this very layout, and owned by `self`.
        unsafe { dealloc(self.header.as_ptr().cast(), layout) };
    }
}

fn layout(capacity: usize) -> Layout {
    // A response has at most 4 GiB, and so much was received into memory already.
    Layout::from_size_align(HEADER + capacity, align_of::<Header>())
        .unwrap_or(Layout::new::<Header>())
}

/// The buffers that a thread keeps.
#[derive(Debug)]
struct Spares([Option<Buffer>; KEPT]);

impl Spares {
    /// Takes the first one that is large enough.
    fn take(&mut self, size: usize) -> Option<Buffer> {
        let fits = |spare: &&mut Option<Buffer>| {
            spare.as_ref().is_some_and(|buffer| buffer.capacity() >= size)
        };
        self.0.iter_mut().find(fits)?.take()
    }

    /// Keeps a buffer, in place of the smallest one if there are enough.
    fn put(&mut self, buffer: Buffer) {
        if buffer.capacity() > LARGEST_KEPT {
            return;
        }
        let size = |spare: &Option<Buffer>| spare.as_ref().map_or(0, Buffer::capacity);
        if let Some(place) = self.0.iter_mut().min_by_key(|spare| size(spare))
            && size(place) < buffer.capacity()
        {
            *place = Some(buffer);
        }
    }
}

thread_local! {
    static SPARES: RefCell<Spares> = const { RefCell::new(Spares([const { None }; KEPT])) };
    /// Where a response is received before its size is known.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c_gets_the_bytes_aligned_and_never_null() {
        for size in [0, 1, 48, SMALLEST, SMALLEST + 1, 100_000] {
            let bytes: Vec<u8> = (0..size).map(|at| at as u8).collect();
            let buffer = Buffer::of(&bytes);
            assert_eq!(buffer.size(), size);
            let data = buffer.into_c();
            assert!(!data.is_null() && data.addr().is_multiple_of(16));
            // SAFETY: lent, and of this size.
            assert_eq!(unsafe { std::slice::from_raw_parts(data.cast::<u8>(), size) }, bytes);
            // SAFETY: lent, and not used any more.
            unsafe { ipc_free(data) };
        }
        // SAFETY: NULL is allowed.
        unsafe { ipc_free(std::ptr::null_mut()) };
    }

    #[test]
    fn a_freed_buffer_is_used_again_and_freeing_twice_does_no_harm() {
        let first = Buffer::of(b"one").into_c();
        // SAFETY: lent; the second time the header is still there, since the thread keeps it.
        unsafe {
            ipc_free(first);
            ipc_free(first);
        }
        let second = Buffer::of(b"two").into_c();
        let third = Buffer::of(b"three").into_c();
        assert_eq!(first, second);
        assert_ne!(second, third);
        // SAFETY: lent, and not used any more.
        unsafe {
            ipc_free(second);
            ipc_free(third);
        }
    }

    #[test]
    fn a_thread_keeps_few_buffers_and_no_giants() {
        let mut spares = Spares([const { None }; KEPT]);
        spares.put(Buffer::with_capacity(LARGEST_KEPT + 1));
        assert!(spares.take(0).is_none());
        for power in 8..16 {
            spares.put(Buffer::with_capacity(1 << power));
        }
        let mut kept: Vec<_> = spares.0.iter().flatten().map(Buffer::capacity).collect();
        kept.sort_unstable();
        assert_eq!(kept, [1 << 12, 1 << 13, 1 << 14, 1 << 15]);
        assert!(spares.take(1 << 16).is_none());
        assert!(spares.take(1 << 15).is_some());
    }
}
