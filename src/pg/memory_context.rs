//! A memory context that goes with its owner.

use std::ffi::CStr;

use pgrx::pg_sys;

/// A memory context of its own, for what lives long and goes at once.
pub struct Memory(pg_sys::MemoryContext);

impl Memory {
    /// An empty one. `name` shows in the server's statistics of memory.
    pub fn new(name: &'static CStr) -> Memory {
        // SAFETY: a child of the top context, which lives as long as the process.
        unsafe {
            Memory(pg_sys::AllocSetContextCreateExtended(
                pg_sys::TopMemoryContext,
                name.as_ptr(),
                pg_sys::ALLOCSET_SMALL_MINSIZE as _,
                pg_sys::ALLOCSET_SMALL_INITSIZE as _,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as _,
            ))
        }
    }

    /// The context; it must not be used after its owner is gone.
    pub fn context(&self) -> pg_sys::MemoryContext {
        self.0
    }

    /// Runs the action with this as the current memory context. An ERROR leaves it the current one.
    pub fn within<T>(&self, action: impl FnOnce() -> T) -> T {
        // SAFETY: the context lives.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.0);
            let result = action();
            pg_sys::MemoryContextSwitchTo(before);
            result
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made for its owner alone.
        unsafe { pg_sys::MemoryContextDelete(self.0) };
    }
}
