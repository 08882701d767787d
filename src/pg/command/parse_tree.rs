//! Parse trees.

use pgrx::pg_sys;

/// The members of a list of pointers.
///
/// # Safety
/// `list` is null, or a list of pointers that outlives the iterator.
pub unsafe fn items(list: *mut pg_sys::List) -> impl Iterator<Item = *mut std::ffi::c_void> {
    // SAFETY: null, or a list of pointers that outlives the iterator.
    let length = if list.is_null() { 0 } else { unsafe { (*list).length } };
    // SAFETY: as above, within its length.
    (0..length as usize).map(move |n| unsafe { (*(*list).elements.add(n)).ptr_value })
}
