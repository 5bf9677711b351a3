//! By what calls go, and paths: listened on, let go, absurd, in any order.

#![allow(unsafe_code)] // calls into C

use std::{
    ffi::{CString, c_char, c_int},
    path::Path,
    ptr,
};

use super::abi::{
    self, EACCES, EAUTH, EEXIST, EINVAL, ENOENT, ENOTSUP, EPEERDIED, EQUOTA, ETIMEDOUT,
};

unsafe extern "C" {
    fn ipc_listen(path: *const c_char) -> c_int;
    fn ipc_unlisten(path: *const c_char) -> c_int;
    fn ipc_transport(dest: u32, transport: *mut u32) -> c_int;
}

pub(crate) fn act(what: u8, dest: u32, directory: &Path) {
    let path = match what >> 5 {
        0 => None,
        1 => Some("relative".to_owned()),
        2 => Some(format!("/{}", "x".repeat(usize::from(what)))),
        number => Some(format!("unix://{}/path-{number}", directory.display())),
    };
    let path = path.and_then(|path| CString::new(path).ok());
    let path = path.as_ref().map_or(ptr::null(), |path| path.as_ptr());
    match what % 4 {
        0 => {
            // SAFETY: NULL, or a string that lives.
            let number = unsafe { ipc_listen(path) };
            abi::documented("ipc_listen", number, &[EINVAL, EEXIST, EACCES, EQUOTA]);
        }
        1 => {
            // SAFETY: as above.
            let number = unsafe { ipc_unlisten(path) };
            abi::documented("ipc_unlisten", number, &[EINVAL, ENOENT]);
        }
        rest => {
            let mut transport = u32::MAX;
            let place = if rest == 2 { &raw mut transport } else { ptr::null_mut() };
            // SAFETY: NULL, or a place for a number.
            let number = unsafe { ipc_transport(dest, place) };
            let known = [EINVAL, ENOENT, EPEERDIED, EACCES, ENOTSUP, ETIMEDOUT, EAUTH, EQUOTA];
            let is_told = abi::documented("ipc_transport", number, &known) == 0;
            assert_eq!(is_told, transport <= 1, "written only on success: {number}");
        }
    }
}
