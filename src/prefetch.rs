//! Memory that will be needed soon.

/// The bytes that the processor brings at once.
const LINE: usize = 64;

/// Has the processor bring a value into its caches while other work is done; what the value points to stays where it is.
pub fn prefetch<T>(value: &T) {
    let begin = std::ptr::from_ref(value).cast::<i8>();
    (0..size_of::<T>()).step_by(LINE).for_each(|offset| bring(begin.wrapping_add(offset)));
}

#[cfg(target_arch = "x86_64")]
fn bring(line: *const i8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: it reads nothing as far as the program can tell, and any address will do.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line) };
}

/// For others there is no stable way to ask.
#[cfg(not(target_arch = "x86_64"))]
fn bring(_: *const i8) {}
