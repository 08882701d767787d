//! Users' functions: called as their subscription's owner, restricted, and not for longer than allowed.
//!
//! A call runs in a subtransaction that is rolled back whatever comes of it, is read-only, and is a
//! security-restricted operation, as a maintenance command's call of an index expression is (`commands/indexcmds.c`):
//! it cannot become another role, and leaves nothing behind. It is no statement, whose parameters hooks of the executor
//! would see: only what the function itself runs is one.

use std::ffi::{CStr, CString, c_char};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use pgrx::pg_sys::Oid;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgSqlErrorCode, PgTryBuilder, fcinfo, pg_sys};

use crate::event::jsonb;
use crate::pg::statement_timeout::TimeLimit;
use crate::pg::values::encoding;

/// Settings that a function finds, whoever calls it; its own SET clauses come after them.
const SETTINGS: [(&CStr, &CStr); 7] = [
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"TimeZone", c"UTC"),
    (c"DateStyle", c"ISO, YMD"),
    (c"IntervalStyle", c"postgres"),
    (c"bytea_output", c"hex"),
    (c"extra_float_digits", c"1"),
    (c"xmlbinary", c"base64"),
];

/// A call: the function as a subscription has it, the role whose rights it has, and the time it may take.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// `schema.name(jsonb)`.
    pub function: &'a str,
    /// The role.
    pub owner: &'a str,
    /// The time.
    pub limit: Duration,
}

/// What the function makes of an event, both as JSON text; none for NULL. Inside a transaction.
///
/// # Errors
///
/// Why it failed, in words.
pub fn call(call: Call<'_>, event: &[u8]) -> Result<Option<Vec<u8>>, String> {
    // SAFETY: inside a transaction; what the subtransaction changes is restored by its end, and what that changes
    // behind our back here.
    unsafe {
        let (memory, owner) = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        let limit = TimeLimit::start(call.limit);
        let result = PgTryBuilder::new(AssertUnwindSafe(|| run(call, event)))
            .catch_others(|error| match &error {
                CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => {
                    Err((report.sql_error_code(), report.message().to_owned()))
                }
                _ => error.rethrow(),
            })
            .execute();
        let timed_out = limit.stop();
        pg_sys::RollbackAndReleaseCurrentSubTransaction();
        pg_sys::MemoryContextSwitchTo(memory);
        pg_sys::CurrentResourceOwner = owner;
        result.map_err(|(code, message)| match code {
            PgSqlErrorCode::ERRCODE_QUERY_CANCELED if timed_out => format!(
                "{} took longer than pgwh.transform_timeout allows, {} ms",
                call.function,
                call.limit.as_millis()
            ),
            _ => format!("{}: {message}", call.function),
        })
    }
}

/// # Safety
/// Runs in a subtransaction that is rolled back afterwards.
unsafe fn run(call: Call<'_>, event: &[u8]) -> Result<Option<Vec<u8>>, (PgSqlErrorCode, String)> {
    let missing =
        || (PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, format!("role \"{}\" does not exist", call.owner));
    let name = encoding::in_server_encoding(call.owner);
    // SAFETY: as the caller promises: the rollback takes back the settings, the role and what is allocated.
    unsafe {
        let role = pg_sys::get_role_oid(name.as_ptr(), true);
        if role == pg_sys::InvalidOid {
            return Err(missing());
        }
        for (setting, value) in SETTINGS {
            pg_sys::SetConfigOption(
                setting.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
            );
        }
        let (mut before, mut context) = (pg_sys::InvalidOid, 0);
        pg_sys::GetUserIdAndSecContext(&mut before, &mut context);
        pg_sys::SetUserIdAndSecContext(role, context | pg_sys::SECURITY_RESTRICTED_OPERATION as i32);
        pg_sys::XactReadOnly = true;
        let utf8 = pg_sys::pg_enc::PG_UTF8 as i32;
        // What jsonb refuses is replaced, as where the journal is shown.
        let event = jsonb::acceptable(event, encoding::fits);
        let argument = CString::new(&*event)
            .map_err(|_| (PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "the event has a NUL in it".to_owned()))?;
        let argument = pg_sys::pg_any_to_server(argument.as_ptr(), event.len() as i32, utf8);
        let value = invoke(function_of(call), argument);
        Ok((!value.is_null())
            .then(|| encoding::utf8(CStr::from_ptr(value).to_bytes()).into_owned().into_bytes()))
    }
}

/// The function that is to be called, looked up with the rights of the current role.
///
/// # Safety
/// Inside a transaction.
unsafe fn function_of(call: Call<'_>) -> Oid {
    let name = encoding::in_server_encoding(call.function);
    // SAFETY: as the caller promises.
    Oid::from(unsafe { of_server(pg_sys::regprocedurein, &[name.as_ptr().into()]) }.value() as u32)
}

/// What the function makes of a text, called as the executor calls it (`ExecInitFunc` in execExpr.c); null for NULL.
///
/// # Safety
/// Runs in a subtransaction that is rolled back afterwards.
unsafe fn invoke(oid: Oid, argument: *const c_char) -> *const c_char {
    // SAFETY: as the caller promises; the frame of the call has room for one argument, and all lives until the rollback.
    unsafe {
        let right = pg_sys::cstring_to_text(c"EXECUTE".as_ptr());
        if of_server(pg_sys::has_function_privilege_id, &[oid.into(), right.into()]).value() == 0 {
            let (denied, kind) = (pg_sys::AclResult::ACLCHECK_NO_PRIV, pg_sys::ObjectType::OBJECT_FUNCTION);
            pg_sys::aclcheck_error(denied, kind, pg_sys::get_func_name(oid));
        }
        pg_sys::RunFunctionExecuteHook(oid);
        let mut info = pg_sys::FmgrInfo::default();
        pg_sys::fmgr_info(oid, &mut info);
        let size = size_of::<pg_sys::FunctionCallInfoBaseData>() + size_of::<pg_sys::NullableDatum>();
        let frame = pg_sys::palloc0(size).cast::<pg_sys::FunctionCallInfoBaseData>();
        (*frame).flinfo = &mut info;
        (*frame).nargs = 1;
        let value = of_server(pg_sys::jsonb_in, &[argument.into()]);
        *(*frame).args.as_mut_ptr() = pg_sys::NullableDatum { value, isnull: false };
        let Some(function) = info.fn_addr else { return std::ptr::null() };
        let mut usage = std::mem::zeroed();
        pg_sys::pgstat_init_function_usage(frame, &mut usage);
        let result = pg_sys::ffi::pg_guard_ffi_boundary(|| function(frame));
        pg_sys::pgstat_end_function_usage(&mut usage, true);
        if (*frame).isnull {
            return std::ptr::null();
        }
        let (mut output, mut is_variable) = (pg_sys::InvalidOid, false);
        pg_sys::getTypeOutputInfo(pg_sys::get_func_rettype(oid), &mut output, &mut is_variable);
        pg_sys::OidOutputFunctionCall(output, result)
    }
}

/// What a function of the server that gives no NULL makes of these arguments.
///
/// # Safety
/// They are of the types that it takes.
unsafe fn of_server(
    function: unsafe fn(pg_sys::FunctionCallInfo) -> pg_sys::Datum,
    arguments: &[pg_sys::Datum],
) -> pg_sys::Datum {
    let arguments: Vec<Option<pg_sys::Datum>> = arguments.iter().copied().map(Some).collect();
    // SAFETY: as the caller promises.
    unsafe { fcinfo::direct_function_call_as_datum(function, &arguments) }.unwrap_or(pg_sys::Datum::null())
}
