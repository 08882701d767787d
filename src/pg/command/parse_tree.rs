//! Lists in parse trees.

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

/// The nodes of a list.
///
/// # Safety
/// `list` is null or a list of nodes, which outlives the iterator.
pub unsafe fn nodes(list: *mut pg_sys::List) -> impl Iterator<Item = *mut pg_sys::Node> {
    // SAFETY: as the caller promises.
    unsafe { items(list) }.map(<*mut std::ffi::c_void>::cast)
}
