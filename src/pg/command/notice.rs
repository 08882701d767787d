//! NOTICEs with DETAIL and HINT.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode};

use crate::pg::values::encoding;

/// A NOTICE to the session.
pub struct Notice(ErrorReport);

impl Notice {
    /// One with that message.
    pub fn new(message: impl Into<String>) -> Notice {
        Notice(ErrorReport::new(
            PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
            encoding::in_error(message.into()),
            "pgstream_hooks",
        ))
    }

    /// With a DETAIL.
    pub fn detail(self, detail: impl Into<String>) -> Notice {
        Notice(self.0.set_detail(encoding::in_error(detail.into())))
    }

    /// With a HINT.
    pub fn hint(self, hint: impl Into<String>) -> Notice {
        Notice(self.0.set_hint(encoding::in_error(hint.into())))
    }

    /// Sends it.
    pub fn report(self) {
        self.0.report(PgLogLevel::NOTICE);
    }

    /// Sends it as a WARNING, which the server logs, too.
    pub fn warn(self) {
        self.0.report(PgLogLevel::WARNING);
    }
}
