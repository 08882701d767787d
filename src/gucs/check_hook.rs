//! Check hooks: the value that one judges, and the reason for which it refuses.

use std::ffi::{CStr, CString, c_char};

use pgrx::pg_sys;

use crate::http::Problem;

/// The value that a check hook judges; empty for null.
///
/// # Safety
/// `value` is what the server passes to the hook, which uses the result before it changes that.
pub(super) unsafe fn new_value<'a>(value: *mut *mut c_char) -> &'a CStr {
    // SAFETY: as the caller promises, a pointer to a terminated string or to null.
    unsafe { if (*value).is_null() { c"" } else { CStr::from_ptr(*value) } }
}

/// Has the server say what is wrong with a value that a check hook refuses.
pub(super) fn explain(problem: Problem) {
    // SAFETY: the server reads both after the hook returns false, and frees nothing of them; they live in its error context.
    unsafe {
        pg_sys::GUC_check_errdetail_string = palloced(problem.detail);
        pg_sys::GUC_check_errhint_string = palloced(problem.hint);
    }
}

/// Copies a text to where the server keeps what it is about to report; null when there is a NUL in it.
pub(super) fn palloced(text: String) -> *mut c_char {
    let Ok(text) = CString::new(text) else { return std::ptr::null_mut() };
    // SAFETY: copies a terminated string into the error context, which is reset with the error.
    unsafe { pg_sys::MemoryContextStrdup(pg_sys::ErrorContext, text.as_ptr()) }
}
