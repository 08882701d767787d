//! Memory that will be needed soon.

/// The bytes that the processor brings at once.
const LINE: usize = 64;

/// Has the processor bring a value into its caches while other work is done; what the value points to stays where it is.
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    for offset in (0..size_of::<T>()).step_by(LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let line = std::ptr::from_ref(value).cast::<i8>().wrapping_add(offset);
        // SAFETY: nothing is read as far as the program can tell, and any address will do.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line) };
    }
}
