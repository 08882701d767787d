//! A text, or an array of texts, as SQL stores it. Whether two are the same is told by their bytes: of a hundred thousand
//! rows that say the same, one has to be read.

use std::borrow::Cow;

use pgrx::callconv::{Arg, ArgAbi};
use pgrx::nullable::Nullable;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::{FromDatum, pg_sys};

use super::encoding::{Text, present, utf8};

/// An argument that has not been read yet.
#[derive(Default)]
pub struct Stored<'a> {
    value: Option<pg_sys::Datum>,
    bytes: &'a [u8],
}

impl Stored<'_> {
    /// What is stored.
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// The text that it is.
    pub fn text(&self) -> Cow<'_, str> {
        utf8(self.bytes)
    }

    /// The texts of the array that it is, without nulls.
    pub fn texts(&self) -> Vec<String> {
        // SAFETY: the datum is an array of texts, and lives as long as the call that it is an argument of.
        let texts = self.value.and_then(|array| unsafe { Vec::<Option<Text>>::from_datum(array, false) });
        texts.map(present).unwrap_or_default()
    }
}

/// Tells lists of values apart.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(Vec<u8>);

/// Most keys are not longer.
const USUAL_LENGTH: usize = 256;

impl Key {
    /// The key of nothing.
    pub fn new() -> Key {
        Key(Vec::with_capacity(USUAL_LENGTH))
    }

    /// The key of some bytes more; none: of a null.
    pub fn and(mut self, bytes: Option<&[u8]>) -> Key {
        self.0.extend_from_slice(&bytes.map_or(usize::MAX, <[u8]>::len).to_ne_bytes());
        self.0.extend_from_slice(bytes.unwrap_or_default());
        self
    }

    /// The key of an argument more.
    pub fn and_stored(self, argument: &Option<Stored>) -> Key {
        self.and(argument.as_ref().map(Stored::bytes))
    }
}

impl FromDatum for Stored<'_> {
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, _: pg_sys::Oid) -> Option<Self> {
        // SAFETY: as the caller promises, the datum is a text or an array, which begin as a bytea does.
        let bytes = unsafe { <&[u8]>::from_polymorphic_datum(datum, is_null, pg_sys::BYTEAOID) }?;
        Some(Stored { value: Some(datum), bytes })
    }
}

// SAFETY: reads no more of the argument than its bytes.
unsafe impl<'fcx> ArgAbi<'fcx> for Stored<'fcx> {
    unsafe fn unbox_arg_unchecked(argument: Arg<'_, 'fcx>) -> Self {
        // SAFETY: as the caller promises.
        unsafe { argument.unbox_arg_using_from_datum() }.unwrap_or_default()
    }

    unsafe fn unbox_nullable_arg(argument: Arg<'_, 'fcx>) -> Nullable<Self> {
        // SAFETY: as the caller promises.
        unsafe { argument.unbox_arg_using_from_datum().into() }
    }
}

// SAFETY: it is what SQL calls an array of texts; nothing asks for what a text is called, since SQL is written by hand.
unsafe impl SqlTranslatable for Stored<'_> {
    const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!(Stored);
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal("text[]"));
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> =
        Ok(ReturnsRef::One(SqlMappingRef::literal("text[]")));
}
