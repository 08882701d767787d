//! What may fail runs apart, so that its failure leaves nothing behind.

use std::panic::AssertUnwindSafe;

use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgSqlErrorCode, PgTryBuilder, pg_sys};

/// An ERROR that was caught.
#[derive(Clone, Debug)]
pub struct Raised {
    /// Its SQLSTATE.
    pub code: PgSqlErrorCode,
    /// Its message.
    pub message: String,
    /// Its HINT.
    pub hint: Option<String>,
}

impl Raised {
    /// One that was not raised by Postgres.
    pub fn new(code: PgSqlErrorCode, message: impl Into<String>) -> Raised {
        Raised { code, message: message.into(), hint: None }
    }
}

/// Runs the action so that an ERROR in it undoes whatever it holds of Postgres: locks, pins, memory. Cancellation and
/// lack of memory are not the row's fault and are thrown on.
pub fn in_subtransaction<T>(memory: pg_sys::MemoryContext, action: impl FnOnce() -> T) -> Result<T, Raised> {
    // SAFETY: a callback of the reorder buffer runs in a transaction; begin and end pair up, and what the end changes
    // behind our back is restored.
    unsafe {
        let owner = pg_sys::CurrentResourceOwner;
        let context = pg_sys::CurrentMemoryContext;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(memory);
        let result = PgTryBuilder::new(AssertUnwindSafe(|| Ok(action())))
            .catch_others(|error| match &error {
                CaughtError::PostgresError(report)
                    if !matches!(
                        report.sql_error_code(),
                        PgSqlErrorCode::ERRCODE_QUERY_CANCELED
                            | PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN
                            | PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY
                    ) =>
                {
                    Err(Raised {
                        code: report.sql_error_code(),
                        message: report.message().to_owned(),
                        hint: report.hint().map(str::to_owned),
                    })
                }
                _ => error.rethrow(),
            })
            .execute();
        match result {
            Ok(_) => pg_sys::ReleaseCurrentSubTransaction(),
            Err(_) => pg_sys::RollbackAndReleaseCurrentSubTransaction(),
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        pg_sys::MemoryContextReset(memory);
        result
    }
}

/// The five characters of an SQLSTATE.
pub fn sqlstate(code: PgSqlErrorCode) -> String {
    let bits = code as i32;
    (0..5).map(|n| char::from(((bits >> (6 * n)) & 0x3F) as u8 + b'0')).collect()
}
