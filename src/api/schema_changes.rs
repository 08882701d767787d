//! The event triggers that note changes of the schema, in `pgwh.schema_changes`.

use std::ffi::CStr;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::decode::subtransaction::in_subtransaction;
use crate::error::Error;
use crate::worker::dropped;

/// Notes what a command has created, altered or dropped. That it can't never makes the command fail.
#[pg_extern(sql = false)]
fn note_schema_change(fcinfo: pg_sys::FunctionCallInfo) -> Result<(), ErrorReport> {
    // SAFETY: the server passes a live call; its context tells what kind of call it is.
    let (event, tag) = unsafe {
        let context = (*fcinfo).context;
        if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_EventTriggerData {
            return Err(Error::Internal("an event trigger's function was called by hand".to_owned()).into());
        }
        let data = &*context.cast::<pg_sys::EventTriggerData>();
        (CStr::from_ptr(data.event), CStr::from_ptr(pg_sys::GetCommandTagName(data.tag)))
    };
    let Some(noting) = noting(event, tag) else { return Ok(()) };
    // SAFETY: null, or the text of what the client has sent, for as long as that runs.
    let command = unsafe { pg_sys::debug_query_string };
    // SAFETY: a memory context of this call, deleted at its end.
    let memory = unsafe {
        pg_sys::AllocSetContextCreateExtended(
            pg_sys::CurrentMemoryContext,
            c"pgwh schema change".as_ptr(),
            pg_sys::ALLOCSET_SMALL_MINSIZE as _,
            pg_sys::ALLOCSET_SMALL_INITSIZE as _,
            pg_sys::ALLOCSET_SMALL_MAXSIZE as _,
        )
    };
    let noted = in_subtransaction(memory, || {
        // SAFETY: both texts end in NUL and are in the encoding of the database.
        let arguments = unsafe { [text(tag.as_ptr()), text(command)] };
        Spi::run_with_args(noting, &arguments)
    });
    // SAFETY: nothing in it is used any more.
    unsafe { pg_sys::MemoryContextDelete(memory) };
    let why = match noted {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err((_, message)) => message,
    };
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_WARNING,
        "this schema change is not sent to webhooks",
        "pgstream_hooks",
    )
    .set_detail(format!("It could not be noted in pgwh.schema_changes: {why}."))
    .set_hint("The command itself is not affected.")
    .report(PgLogLevel::WARNING);
    Ok(())
}

/// What notes the command; none when it is of no interest. Commands that drop something in passing are told of as what
/// they are, with the columns that are left.
fn noting(event: &CStr, tag: &CStr) -> Option<&'static str> {
    let tag = tag.to_bytes();
    if event == c"sql_drop" {
        return tag.starts_with(b"DROP ").then_some("SELECT pgwh.note_dropped($1, $2)");
    }
    let changes = tag.starts_with(b"CREATE ")
        || tag.starts_with(b"ALTER ")
        || [b"SELECT INTO".as_slice(), b"IMPORT FOREIGN SCHEMA"].contains(&tag);
    changes.then_some("SELECT pgwh.note_changed($1, $2)")
}

/// The table of an index that the present transaction has dropped.
#[pg_extern(sql = false)]
fn table_of_dropped_index(index: pg_sys::Oid) -> Option<pg_sys::Oid> {
    dropped::table_of_index(index)
}

/// # Safety
/// `text` is null or a C string in the encoding of the database.
unsafe fn text(text: *const std::ffi::c_char) -> DatumWithOid<'static> {
    // SAFETY: as the caller promises; the copy lives in the current memory context.
    unsafe {
        if text.is_null() {
            return DatumWithOid::null_oid(pg_sys::TEXTOID);
        }
        DatumWithOid::new(pg_sys::Datum::from(pg_sys::cstring_to_text(text)), pg_sys::TEXTOID)
    }
}
