//! What may fail runs apart, so that its failure leaves nothing behind.

use std::panic::AssertUnwindSafe;

use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgSqlErrorCode, PgTryBuilder, pg_sys};

use super::statement_timeout;

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

    /// Whether it is about a value (classes 22 and 23), so that with another one there may be none.
    pub fn is_of_a_value(&self) -> bool {
        let state = sqlstate(self.code);
        state.starts_with("22") || state.starts_with("23")
    }
}

/// Runs the action so that an ERROR in it undoes whatever it holds of Postgres: locks, pins, memory. Cancellation and
/// lack of memory are not the row's fault and are thrown on, once undone.
pub fn in_subtransaction<T>(memory: pg_sys::MemoryContext, action: impl FnOnce() -> T) -> Result<T, Raised> {
    // SAFETY: a callback of the reorder buffer runs in a transaction; begin and end pair up, and what the end changes
    // behind our back is restored.
    unsafe {
        let owner = pg_sys::CurrentResourceOwner;
        let context = pg_sys::CurrentMemoryContext;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(memory);
        let result = PgTryBuilder::new(AssertUnwindSafe(|| Ok(action())))
            .catch_others(|error| Err(Box::new(error)))
            .execute();
        match result {
            Ok(_) => pg_sys::ReleaseCurrentSubTransaction(),
            Err(_) => pg_sys::RollbackAndReleaseCurrentSubTransaction(),
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        pg_sys::MemoryContextReset(memory);
        result.map_err(|error| raised(*error))
    }
}

/// What a caught error says, unless it is thrown on.
pub fn raised(error: CaughtError) -> Raised {
    match &error {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => {
            match report.sql_error_code() {
                PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN | PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY => {
                    throw_on(error)
                }
                PgSqlErrorCode::ERRCODE_QUERY_CANCELED if !statement_timeout::is_up() => throw_on(error),
                code => Raised {
                    code,
                    message: report.message().to_owned(),
                    hint: report.hint().map(str::to_owned),
                },
            }
        }
        CaughtError::RustPanic { .. } => throw_on(error),
    }
}

/// Throws on an error that was caught and undone. The server has forgotten it by then (pgrx flushes its state when a
/// handler returns), so that it has to be reported anew: what is still the server's own would be thrown by `pg_re_throw`.
fn throw_on(error: CaughtError) -> ! {
    match error {
        CaughtError::PostgresError(report) => CaughtError::ErrorReport(report).rethrow(),
        other => other.rethrow(),
    }
}

/// The five characters of an SQLSTATE.
pub fn sqlstate(code: PgSqlErrorCode) -> String {
    let bits = code as i32;
    (0..5).map(|n| char::from(((bits >> (6 * n)) & 0x3F) as u8 + b'0')).collect()
}
