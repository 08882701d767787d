//! The encoder of one column's values into JSON text: what `to_json` would give under `TimeZone = 'UTC'`.
//!
//! `to_json` itself is never called, nor any cast to json, since a cast of a user's type runs the user's code
//! inside decoding. Types are walked here instead, categorized as `json_categorize_type` does
//! (src/backend/utils/adt/json.c, since 16 jsonfuncs.c); what has no JSON form of its own is the text of the
//! type's output function. The everyday types are read from their stored form, with no call into Postgres.
//!
//! A call that can raise goes through pgrx's guarded wrappers, so an ERROR arrives as a Rust panic.

mod array;
mod base_type;
mod composite;
mod key_hash;
mod output_function;
#[cfg(feature = "oracle")]
mod test_oracle;

use pgrx::pg_sys::{self, Datum, MemoryContext, Oid};
use pgrx::varlena;

use self::array::ArrayEncoder;
pub(crate) use self::base_type::kind_of;
use self::composite::CompositeEncoder;
pub(crate) use self::key_hash::KeyHasher;
use self::output_function::OutputFunction;
pub(crate) use self::output_function::function_info;
use crate::event::value as json;
use crate::pg::values::encoding::utf8;

/// Encodes the values of one type, with all that had to be looked up about it.
pub(crate) struct ValueEncoder(Kind);

enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Uuid,
    Text,
    Name,
    Bytea,
    Json,
    Hstore(OutputFunction),
    /// The output function's text is JSON.
    Verbatim(OutputFunction),
    /// The output function's text becomes a JSON string.
    Quoted(OutputFunction),
    Array(ArrayEncoder),
    Composite(CompositeEncoder),
}

impl ValueEncoder {
    /// Looks up how values of the type are encoded. Domains are as their base types.
    ///
    /// What Postgres allocates for it lives in `context`, so the encoder must not be used after that is reset
    /// or deleted. Types within the type are looked up when the first value needs them. Must run in a
    /// transaction; raises when the type does not exist.
    pub(crate) fn new(type_oid: Oid, context: MemoryContext) -> Self {
        // SAFETY: a catalog look-up, which needs only a transaction.
        let type_oid = unsafe { pg_sys::getBaseType(type_oid) };
        Self(match type_oid {
            pg_sys::BOOLOID => Kind::Bool,
            pg_sys::INT2OID => Kind::Int2,
            pg_sys::INT4OID => Kind::Int4,
            pg_sys::INT8OID => Kind::Int8,
            pg_sys::OIDOID => Kind::Oid,
            pg_sys::FLOAT4OID => Kind::Float4,
            pg_sys::FLOAT8OID => Kind::Float8,
            pg_sys::NUMERICOID => Kind::Numeric,
            pg_sys::DATEOID => Kind::Date,
            pg_sys::TIMEOID => Kind::Time,
            pg_sys::TIMESTAMPOID => Kind::Timestamp,
            pg_sys::TIMESTAMPTZOID => Kind::Timestamptz,
            pg_sys::UUIDOID => Kind::Uuid,
            pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID => Kind::Text,
            pg_sys::NAMEOID => Kind::Name,
            pg_sys::BYTEAOID => Kind::Bytea,
            pg_sys::JSONOID => Kind::Json,
            pg_sys::JSONBOID => Kind::Verbatim(OutputFunction::of_type(type_oid, context)),
            _ if array::is_array(type_oid) => Kind::Array(ArrayEncoder::new(context)),
            // SAFETY: a catalog look-up.
            _ if unsafe { pg_sys::type_is_rowtype(type_oid) } => {
                Kind::Composite(CompositeEncoder::new(context))
            }
            _ => {
                let function = OutputFunction::of_type(type_oid, context);
                if function.is_of_text() {
                    Kind::Text
                } else if function.is_of_hstore() {
                    Kind::Hstore(function)
                } else {
                    Kind::Quoted(function)
                }
            }
        })
    }

    /// About the least that the JSON of a value takes of which `raw` bytes are stored.
    pub(crate) fn least_size(&self, raw: usize) -> usize {
        match self.0 {
            Kind::Bytea => 2 * raw,
            Kind::Text | Kind::Json => raw,
            // A one is one byte, and eight of a bigint array.
            _ => raw / 8,
        }
    }

    /// Appends the JSON of a value that is not null. When it panics (an output function raised), what it had
    /// appended so far is left for the caller to cut off.
    ///
    /// Memory that Postgres allocates on the way is left in the current memory context.
    ///
    /// # Safety
    /// `datum` is a valid value of the encoder's type, no unchanged TOAST pointer (see [`is_unchanged_toast`]).
    /// The context given to [`ValueEncoder::new`] still lives. The process is in a transaction.
    pub(crate) unsafe fn encode(&mut self, datum: Datum, out: &mut Vec<u8>) {
        // SAFETY: the kind was chosen by the type, so the datum is what each arm reads it as.
        unsafe {
            match &mut self.0 {
                Kind::Bool => {
                    out.extend_from_slice(if datum.value() as u8 != 0 { b"true" } else { b"false" })
                }
                Kind::Int2 => integer(out, datum.value() as i16),
                Kind::Int4 => integer(out, datum.value() as i32),
                Kind::Int8 => integer(out, datum.value() as i64),
                Kind::Oid => {
                    out.push(b'"');
                    integer(out, datum.value() as u32);
                    out.push(b'"');
                }
                Kind::Float4 => output_function::float4(out, f32::from_bits(datum.value() as u32)),
                Kind::Float8 => output_function::float8(out, f64::from_bits(datum.value() as u64)),
                Kind::Numeric => {
                    if json::numeric::numeric(out, payload(datum)).is_none() {
                        corrupted("numeric");
                    }
                }
                Kind::Date => json::time::date(out, datum.value() as i32),
                Kind::Time => {
                    if json::time::time_of_day(out, datum.value() as i64).is_none() {
                        corrupted("time");
                    }
                }
                Kind::Timestamp => json::time::timestamp(out, datum.value() as i64),
                Kind::Timestamptz => json::time::timestamptz(out, datum.value() as i64),
                Kind::Uuid => json::uuid(out, &*datum.cast_mut_ptr()),
                Kind::Text => json::string(out, &utf8(payload(datum))),
                Kind::Name => {
                    json::string(out, &utf8(std::ffi::CStr::from_ptr(datum.cast_mut_ptr()).to_bytes()));
                }
                Kind::Bytea => json::bytea(out, payload(datum)),
                Kind::Json => out.extend_from_slice(utf8(payload(datum)).as_bytes()),
                Kind::Hstore(function) => match json::hstore::pairs(payload(datum)) {
                    Some(pairs) => hstore(out, &pairs),
                    None => json::string(out, &utf8(function.call(datum))),
                },
                Kind::Verbatim(function) => out.extend_from_slice(utf8(function.call(datum)).as_bytes()),
                Kind::Quoted(function) => json::string(out, &utf8(function.call(datum))),
                Kind::Array(array) => array.encode(datum, out),
                Kind::Composite(composite) => composite.encode(datum, out),
            }
        }
    }
}

/// The bytes of a value as stored, without header, decompressed. `length`: the column's `attlen`. Fetches nothing.
///
/// # Safety
/// As [`is_unchanged_toast`].
pub(crate) unsafe fn raw_size(length: i16, datum: Datum) -> usize {
    match usize::try_from(length) {
        Ok(fixed) => fixed,
        // SAFETY: a type of length -1 is a varlena; the size is in its header or in the pointer that stands for it
        // (`toast_raw_datum_size`, src/backend/access/common/detoast.c).
        Err(_) if length == -1 => unsafe { pg_sys::toast_raw_datum_size(datum) - pg_sys::VARHDRSZ },
        // A C string, which is no longer than its page.
        Err(_) => 0,
    }
}

/// Whether the value of a changed row's column is a pointer to a large value that write-ahead log leaves out,
/// since it did not change. `length`: the column's `attlen`.
///
/// Changed large values are in memory by the time a change is decoded (`ReorderBufferToastReplace`), and
/// [`ValueEncoder::encode`] reads them.
///
/// # Safety
/// `datum` is a valid, not null value of a type with this `attlen`.
pub(crate) unsafe fn is_unchanged_toast(length: i16, datum: Datum) -> bool {
    let pointer = datum.cast_mut_ptr::<pg_sys::varlena>();
    // SAFETY: a type of length -1 is a varlena, and a tag follows the header that says it is external.
    length == -1
        && unsafe {
            varlena::varatt_is_1b_e(pointer)
                && u32::from(varlena::vartag_1b_e(pointer)) == pg_sys::vartag_external::VARTAG_ONDISK
        }
}

fn integer(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn hstore(out: &mut Vec<u8>, pairs: &[json::hstore::Pair]) {
    out.push(b'{');
    for (at, (key, value)) in pairs.iter().enumerate() {
        if at > 0 {
            out.extend_from_slice(b", ");
        }
        json::string(out, &utf8(key));
        out.extend_from_slice(b": ");
        match value {
            Some(value) => json::string(out, &utf8(value)),
            None => out.extend_from_slice(b"null"),
        }
    }
    out.push(b'}');
}

/// The bytes of a varlena behind its header, decompressed and fetched if need be.
///
/// # Safety
/// `datum` is a valid varlena, which outlives what is made of the slice.
unsafe fn payload<'a>(datum: Datum) -> &'a [u8] {
    let mut pointer = datum.cast_mut_ptr::<pg_sys::varlena>();
    // SAFETY: by the contract.
    unsafe {
        if varlena::varatt_is_1b_e(pointer) || varlena::varatt_is_4b_c(pointer) {
            pointer = pg_sys::pg_detoast_datum_packed(pointer);
        }
        varlena::varlena_to_byte_slice(pointer)
    }
}

/// The varlena in its plain form: aligned, with a header of four bytes, in memory.
///
/// # Safety
/// `datum` is a valid varlena.
unsafe fn plain(datum: Datum) -> *mut pg_sys::varlena {
    let pointer = datum.cast_mut_ptr::<pg_sys::varlena>();
    // SAFETY: by the contract.
    unsafe { if varlena::varatt_is_4b_u(pointer) { pointer } else { pg_sys::pg_detoast_datum(pointer) } }
}

/// Raises that a stored value of the type cannot be read.
fn corrupted(type_name: &str) {
    pgrx::ereport!(
        ERROR,
        pgrx::PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
        format!("stored value is not a valid {type_name}")
    );
}
