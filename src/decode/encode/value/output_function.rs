//! What types' own output functions give, and the few that are called without the function manager.

use std::ffi::{CStr, c_char, c_int};
use std::mem::MaybeUninit;

use pgrx::pg_sys::{self, Datum, FmgrInfo, MemoryContext, Oid};

/// A type's output function, looked up once.
pub(super) struct OutputFunction(Box<FmgrInfo>);

impl OutputFunction {
    /// Looks it up; what it caches between calls lives in `context`. Raises when the type does not exist.
    pub(super) fn of_type(type_oid: Oid, context: MemoryContext) -> Self {
        let (mut function, mut is_varlena) = (Oid::INVALID, false);
        // SAFETY: catalog look-ups that write where they are told.
        unsafe {
            pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut is_varlena);
        }
        Self(function_info(function, context))
    }

    /// Whether it is that of `text`: also `citext` and others take it over.
    pub(super) fn is_of_text(&self) -> bool {
        self.0.fn_addr.is_some_and(|address| std::ptr::fn_addr_eq(address, textout as PgFunction))
    }

    /// Whether it is that of `hstore`, as the extension of that name made it.
    pub(super) fn is_of_hstore(&self) -> bool {
        let function = self.0.fn_oid;
        if function.to_u32() < pg_sys::FirstNormalObjectId {
            return false;
        }
        // SAFETY: catalog look-ups; names are null or palloc'd strings that end in NUL.
        unsafe {
            let is = |name: *mut c_char, expected| !name.is_null() && CStr::from_ptr(name) == expected;
            let extension = pg_sys::getExtensionOfObject(pg_sys::ProcedureRelationId, function);
            extension != Oid::INVALID
                && is(pg_sys::get_func_name(function), c"hstore_out")
                && is(pg_sys::get_extension_name(extension), c"hstore")
        }
    }

    /// The value's text in the database's encoding, palloc'd.
    ///
    /// # Safety
    /// `datum` is a valid value of the type.
    pub(super) unsafe fn call<'a>(&mut self, datum: Datum) -> &'a [u8] {
        // SAFETY: an output function returns a palloc'd string that ends in NUL.
        unsafe { CStr::from_ptr(pg_sys::OutputFunctionCall(&mut *self.0, datum)).to_bytes() }
    }
}

/// Looks up a function to call through the function manager; what it caches lives in `context`.
pub(crate) fn function_info(function: Oid, context: MemoryContext) -> Box<FmgrInfo> {
    let mut info = Box::<FmgrInfo>::default();
    // SAFETY: fills in `info`; the context is a valid one.
    unsafe { pg_sys::fmgr_info_cxt(function, &mut *info, context) };
    info
}

/// Appends a `float4`: the shortest digits that read back as the same number, as `float4out` gives them.
pub(super) fn float4(out: &mut Vec<u8>, number: f32) {
    // SAFETY: writes fewer bytes than the buffer has, and returns how many.
    float(out, number.is_finite(), |buffer| unsafe { float_to_shortest_decimal_bufn(number, buffer) });
}

/// Appends a `float8`: the shortest digits that read back as the same number, as `float8out` gives them.
pub(super) fn float8(out: &mut Vec<u8>, number: f64) {
    // SAFETY: as above.
    float(out, number.is_finite(), |buffer| unsafe { double_to_shortest_decimal_bufn(number, buffer) });
}

fn float(out: &mut Vec<u8>, is_number: bool, write: impl FnOnce(*mut c_char) -> c_int) {
    let mut buffer = [MaybeUninit::<u8>::uninit(); SHORTEST_DECIMAL_LENGTH];
    let length = write(buffer.as_mut_ptr().cast()) as usize;
    // SAFETY: so many bytes were written.
    let text = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
    if is_number {
        out.extend_from_slice(text);
    } else {
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
    }
}

// --- Symbols of the server that pgrx does not bind, or not as functions with an address (for pg/compat.rs) ---

type PgFunction = unsafe extern "C-unwind" fn(pg_sys::FunctionCallInfo) -> Datum;

/// `DOUBLE_SHORTEST_DECIMAL_LEN` (src/include/common/shortest_dec.h); floats need fewer.
const SHORTEST_DECIMAL_LENGTH: usize = 25;

unsafe extern "C-unwind" {
    fn textout(call: pg_sys::FunctionCallInfo) -> Datum;
    // Neither allocates nor raises. src/common/d2s.c, f2s.c
    fn double_to_shortest_decimal_bufn(number: f64, result: *mut c_char) -> c_int;
    fn float_to_shortest_decimal_bufn(number: f32, result: *mut c_char) -> c_int;
}
