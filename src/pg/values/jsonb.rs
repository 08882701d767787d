//! `jsonb` as it is, digit by digit.

use pgrx::callconv::{Arg, ArgAbi};
use pgrx::datum::{Datum, UnboxDatum};
use pgrx::nullable::Nullable;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::prelude::*;
use pgrx::{AnyElement, fcinfo};
use serde_json::Value;

use super::encoding::{must_be_converted, utf8};

/// A value of type `jsonb` in a database of any encoding, parsed: of long numbers some digits are lost.
pub struct Jsonb(pub Value);

impl FromDatum for Jsonb {
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, _: pg_sys::Oid) -> Option<Jsonb> {
        if is_null {
            return None;
        }
        // SAFETY: as the caller promises, the datum is a jsonb.
        let text =
            unsafe { fcinfo::direct_function_call::<&std::ffi::CStr>(pg_sys::jsonb_out, &[Some(datum)]) }?;
        // Nested deeper than the parser goes, it is as little an object of strings as null is.
        Some(Jsonb(serde_json::from_str(&utf8(text.to_bytes())).unwrap_or_default()))
    }
}

impl IntoDatum for Jsonb {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        let text = std::ffi::CString::new(storable(self.0.to_string().as_bytes())).unwrap_or_default();
        // SAFETY: the input function takes a C string.
        unsafe { fcinfo::direct_function_call_as_datum(pg_sys::jsonb_in, &[Some(text.as_ptr().into())]) }
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::JSONBOID
    }
}

// SAFETY: a jsonb is passed by reference, and what is made of it here is a copy.
unsafe impl UnboxDatum for Jsonb {
    type As<'src> = Jsonb;

    unsafe fn unbox<'src>(datum: Datum<'src>) -> Jsonb
    where
        Self: 'src,
    {
        // SAFETY: as the caller promises, the datum is a jsonb that is not null.
        unsafe { Jsonb::from_polymorphic_datum(datum.sans_lifetime(), false, pg_sys::JSONBOID) }
            .unwrap_or(Jsonb(Value::Null))
    }
}

// SAFETY: reads the argument as a jsonb, which is what SQL declares it as.
unsafe impl<'fcx> ArgAbi<'fcx> for Jsonb {
    unsafe fn unbox_arg_unchecked(argument: Arg<'_, 'fcx>) -> Jsonb {
        // SAFETY: as the caller promises.
        unsafe { argument.unbox_arg_using_from_datum() }.unwrap_or(Jsonb(Value::Null))
    }

    unsafe fn unbox_nullable_arg(argument: Arg<'_, 'fcx>) -> Nullable<Jsonb> {
        // SAFETY: as the caller promises.
        unsafe { argument.unbox_arg_using_from_datum().into() }
    }
}

// SAFETY: it is what SQL calls jsonb.
unsafe impl SqlTranslatable for Jsonb {
    const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!(Jsonb);
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal("jsonb"));
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> = Ok(ReturnsRef::One(SqlMappingRef::literal("jsonb")));
}

/// A jsonb as text; null has none: digits of a number are kept, however many they are.
pub fn text_of(jsonb: &AnyElement) -> Option<String> {
    // SAFETY: SQL declares the argument as jsonb, and the output function takes that.
    let text =
        unsafe { fcinfo::direct_function_call::<&std::ffi::CStr>(pg_sys::jsonb_out, &[Some(jsonb.datum())]) };
    text.map(|text| utf8(text.to_bytes()).into_owned())
}

/// JSON text that a database of any encoding can hold: what is not ASCII is escaped, unless the encoding is UTF-8 or none.
pub fn storable(json: &[u8]) -> String {
    let json = String::from_utf8_lossy(json);
    if !must_be_converted() {
        return json.into_owned();
    }
    let mut out = String::with_capacity(json.len());
    for letter in json.chars() {
        if letter.is_ascii() {
            out.push(letter);
        } else {
            letter.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        }
    }
    out
}
