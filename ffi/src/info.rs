//! What can be asked at any time, without a runtime.

#![allow(unsafe_code)] // exports

use std::{
    collections::HashMap,
    ffi::{CString, c_char, c_int},
    sync::OnceLock,
};

use ipc_core::Status;

use crate::{
    boundary::{guard, guard_or},
    error::{last_os_error, nearest_errno},
};

/// Version of this header, first part: changes with the ABI.
pub const IPC_VERSION_MAJOR: u32 = 0;
/// Second part: changes with what there is.
pub const IPC_VERSION_MINOR: u32 = 1;
/// Third part: changes with corrections.
pub const IPC_VERSION_PATCH: u32 = 0;

/// Says in English what a status means and what to do about it. The string is the library's and
/// stays; never NULL, whatever the number.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_strerror(status: c_int) -> *const c_char {
    static TEXTS: OnceLock<HashMap<&'static str, CString>> = OnceLock::new();
    guard_or(c"internal error".as_ptr(), || {
        let texts = TEXTS.get_or_init(|| {
            let user = [Status::USER, Status::from_code(1)];
            let texts = Status::ALL.iter().chain(&user).map(|status| status.text());
            texts.filter_map(|text| Some((text, CString::new(text).ok()?))).collect()
        });
        let text = texts.get(Status::from_code(status).text());
        text.map_or(c"unknown status".as_ptr(), |text| text.as_ptr())
    })
}

/// Gives the errno of <errno.h> that is nearest to a status: positive; 0 for IPC_OK; EREMOTEIO for
/// a service's own errors; EINVAL for what is no status. Of IPC_ESYS: what ipc_last_os_error says.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_errno(status: c_int) -> c_int {
    guard(|| Ok(nearest_errno(Status::from_code(status))))
}

/// Gives the errno of the system call behind the last IPC_ESYS, IPC_EACCES, IPC_ENOMEM or
/// IPC_EQUOTA that this thread got; 0 if there was none.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_last_os_error() -> c_int {
    guard(|| Ok(last_os_error()))
}

/// Gives the version of the library that runs, "major.minor.patch". The string is the library's
/// and stays.
#[unsafe(no_mangle)]
pub extern "C" fn ipc_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn text(pointer: *const c_char) -> &'static str {
        // SAFETY: what these functions return are strings that stay.
        unsafe { CStr::from_ptr(pointer) }.to_str().expect("UTF-8")
    }

    #[test]
    fn the_header_has_the_version_of_the_package() {
        let header = format!("{IPC_VERSION_MAJOR}.{IPC_VERSION_MINOR}.{IPC_VERSION_PATCH}");
        assert_eq!(text(ipc_version()), header);
    }

    #[test]
    fn every_number_has_a_text_that_stays_where_it_is() {
        for status in Status::ALL {
            assert_eq!(text(ipc_strerror(status.code())), status.text());
        }
        for number in [1, -28, -999, -1000, -1001, i32::MIN, i32::MAX] {
            assert_eq!(text(ipc_strerror(number)), Status::from_code(number).text());
        }
        assert_eq!(ipc_strerror(-3), ipc_strerror(-3));
    }
}
