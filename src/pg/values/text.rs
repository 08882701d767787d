//! Texts as functions and queries of ours take and give them: UTF-8 in here, in SQL the encoding of the database.
//!
//! pgrx takes a `String` in a database of another encoding for a mistake of ours, and panics.

use pgrx::callconv::{Arg, ArgAbi, BoxRet, FcInfo};
use pgrx::datum::{Datum, DatumWithOid, UnboxDatum};
use pgrx::nullable::Nullable;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::spi::{Result, SpiHeapTupleData, SpiTupleTable};
use pgrx::{FromDatum, IntoDatum, pg_sys};

use super::encoding::{encoded, utf8};

/// A value of type `text`. What the encoding of the database does not have becomes `?`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) String);

impl From<Text> for String {
    fn from(text: Text) -> String {
        text.0
    }
}

impl From<String> for Text {
    fn from(text: String) -> Text {
        Text(text)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Text {
        Text(text.to_owned())
    }
}

/// An argument of a query.
pub(crate) fn argument<'a>(text: impl Into<Text>) -> DatumWithOid<'a> {
    text.into().into()
}

/// An argument of a query that may be null.
pub(crate) fn optional<'a>(text: Option<impl Into<Text>>) -> DatumWithOid<'a> {
    text.map(Into::into).into()
}

/// An array of texts as an argument of a query.
pub(crate) fn array<'a>(texts: &[String]) -> DatumWithOid<'a> {
    list(texts).into()
}

/// The same of one that may be null.
pub(crate) fn optional_array<'a>(texts: Option<&[String]>) -> DatumWithOid<'a> {
    texts.map(list).into()
}

/// The same texts for SQL.
pub(crate) fn list(texts: &[String]) -> Vec<Text> {
    texts.iter().map(|text| Text(text.clone())).collect()
}

/// The same texts from SQL.
pub(crate) fn strings(texts: Vec<Text>) -> Vec<String> {
    texts.into_iter().map(String::from).collect()
}

/// The same texts from SQL, without nulls.
pub(crate) fn present(texts: Vec<Option<Text>>) -> Vec<String> {
    texts.into_iter().flatten().map(String::from).collect()
}

/// The columns of a row that are texts.
pub(crate) trait Texts {
    /// The text in a column.
    fn text(&self, column: usize) -> Result<Option<String>>;

    /// The array of texts in a column.
    fn texts(&self, column: usize) -> Result<Option<Vec<String>>>;
}

impl Texts for SpiHeapTupleData<'_> {
    fn text(&self, column: usize) -> Result<Option<String>> {
        Ok(self.get::<Text>(column)?.map(String::from))
    }

    fn texts(&self, column: usize) -> Result<Option<Vec<String>>> {
        Ok(self.get::<Vec<Text>>(column)?.map(strings))
    }
}

impl Texts for SpiTupleTable<'_> {
    fn text(&self, column: usize) -> Result<Option<String>> {
        Ok(self.get::<Text>(column)?.map(String::from))
    }

    fn texts(&self, column: usize) -> Result<Option<Vec<String>>> {
        Ok(self.get::<Vec<Text>>(column)?.map(strings))
    }
}

impl FromDatum for Text {
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, _: pg_sys::Oid) -> Option<Text> {
        // SAFETY: as the caller promises, the datum is a text, whose layout is that of a bytea.
        let bytes = unsafe { <&[u8]>::from_polymorphic_datum(datum, is_null, pg_sys::BYTEAOID) }?;
        Some(Text(utf8(bytes).into_owned()))
    }
}

impl IntoDatum for Text {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        encoded(&self.0).into_datum()
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::TEXTOID
    }

    fn is_compatible_with(other: pg_sys::Oid) -> bool {
        String::is_compatible_with(other)
    }
}

// SAFETY: a text is passed by reference, and what is made of it here is a copy.
unsafe impl UnboxDatum for Text {
    type As<'src> = Text;

    unsafe fn unbox<'src>(datum: Datum<'src>) -> Text
    where
        Self: 'src,
    {
        // SAFETY: as the caller promises, the datum is a text that is not null.
        unsafe { Text::from_polymorphic_datum(datum.sans_lifetime(), false, pg_sys::TEXTOID) }
            .unwrap_or_default()
    }
}

// SAFETY: reads the argument as a text, which is what SQL declares it as.
unsafe impl<'fcx> ArgAbi<'fcx> for Text {
    unsafe fn unbox_arg_unchecked(argument: Arg<'_, 'fcx>) -> Text {
        // SAFETY: as the caller promises.
        unsafe { argument.unbox_arg_using_from_datum() }.unwrap_or_default()
    }

    unsafe fn unbox_nullable_arg(argument: Arg<'_, 'fcx>) -> Nullable<Text> {
        // SAFETY: as the caller promises.
        unsafe { argument.unbox_arg_using_from_datum().into() }
    }
}

// SAFETY: returns a text in the current memory context, or null.
unsafe impl BoxRet for Text {
    unsafe fn box_into<'fcx>(self, call: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        match self.into_datum() {
            // SAFETY: the datum is the text made just now.
            Some(datum) => unsafe { call.return_raw_datum(datum) },
            None => call.return_null(),
        }
    }
}

// SAFETY: it is what SQL calls text.
unsafe impl SqlTranslatable for Text {
    const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!(Text);
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: std::result::Result<SqlMappingRef, ArgumentError> =
        Ok(SqlMappingRef::literal("text"));
    const RETURN_SQL: std::result::Result<ReturnsRef, ReturnsError> =
        Ok(ReturnsRef::One(SqlMappingRef::literal("text")));
}
