//! A row that a function returns, where a set of rows of one would cost more than what is in it.

use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::datum::Datum;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::{IntoDatum, pg_sys};

/// The values of a row whose columns are the OUT parameters of the function that returns it.
pub struct Row {
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

impl Row {
    /// An empty row for so many columns.
    pub fn with_capacity(columns: usize) -> Row {
        Row { values: Vec::with_capacity(columns), nulls: Vec::with_capacity(columns) }
    }

    /// The same row with one more value, of the type that its column is declared with.
    pub fn and(mut self, value: impl IntoDatum) -> Row {
        let datum = value.into_datum();
        self.nulls.push(datum.is_none());
        self.values.push(datum.unwrap_or(pg_sys::Datum::null()));
        self
    }
}

// SAFETY: returns a row in the current memory context.
unsafe impl BoxRet for Row {
    unsafe fn box_into<'fcx>(mut self, call: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        // SAFETY: the call is under way, and what describes its row lives as long as what calls it.
        unsafe {
            let shape = shape(call.as_mut_ptr());
            if (*shape).natts as usize != self.values.len() {
                pgrx::error!(
                    "pgstream_hooks: a row of {} columns has {} values",
                    (*shape).natts,
                    self.values.len()
                );
            }
            let tuple = pg_sys::heap_form_tuple(shape, self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
            call.return_raw_datum(pg_sys::HeapTupleHeaderGetDatum((*tuple).t_data))
        }
    }
}

/// The columns of what the function returns: looked up once for each place that calls it (`funcapi.c`, get_call_result_type).
///
/// # Safety
/// The call is under way, and the function declares OUT parameters.
unsafe fn shape(call: pg_sys::FunctionCallInfo) -> pg_sys::TupleDesc {
    // SAFETY: as the caller promises; nothing else is kept in `fn_extra` by functions that return no sets.
    unsafe {
        let function = (*call).flinfo;
        if (*function).fn_extra.is_null() {
            let mut found = std::ptr::null_mut();
            pg_sys::get_call_result_type(call, std::ptr::null_mut(), &mut found);
            if found.is_null() {
                pgrx::error!("pgstream_hooks: a function that returns a row is not declared so");
            }
            let before = pg_sys::MemoryContextSwitchTo((*function).fn_mcxt);
            (*function).fn_extra = pg_sys::BlessTupleDesc(pg_sys::CreateTupleDescCopy(found)).cast();
            pg_sys::MemoryContextSwitchTo(before);
        }
        (*function).fn_extra.cast()
    }
}

// SAFETY: SQL calls it a record.
unsafe impl SqlTranslatable for Row {
    const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!(Row);
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal("record"));
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> =
        Ok(ReturnsRef::One(SqlMappingRef::literal("record")));
}
