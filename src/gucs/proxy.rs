//! `pgwh.proxy` and `pgwh.no_proxy`.
//!
//! The server shows and logs the values of settings, and the proxy's may hold a password. So what the server keeps as the
//! value is empty, the URL is what it keeps besides (`extra`), and what it shows is made of that.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, pg_guard, pg_sys};

use super::check_hook::{explain, new_value, palloced};
use crate::http::{Exempt, Proxy, ProxyServer};
use crate::pg::compat;

/// What the server takes for the value of `pgwh.proxy`: always empty.
static PROXY: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
/// Its URL; null: there is none.
static PROXY_URL: AtomicPtr<c_char> = AtomicPtr::new(std::ptr::null_mut());

/// `pgwh.no_proxy`: hosts that are reached without the proxy.
static NO_PROXY: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// Defines both.
pub(super) fn init() {
    // SAFETY: the hooks are guarded and of the types that the server calls.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"pgwh.proxy",
            c"HTTP proxy that requests go through: http://[user:password@]host:port.",
            c"Endpoints by https are reached by CONNECT. The password is not shown. Empty: requests go to their endpoints directly.",
            &PROXY,
            GucContext::Sighup,
            GucFlags::SUPERUSER_ONLY,
            Some(check_proxy),
            Some(assign_proxy),
            Some(show_proxy),
        );
        GucRegistry::define_string_guc_with_hooks(
            c"pgwh.no_proxy",
            c"Hosts that are reached without pgwh.proxy.",
            c"Names, which stand for their subdomains, too, networks in CIDR notation and addresses, separated by commas; * for all.",
            &NO_PROXY,
            GucContext::Sighup,
            GucFlags::default(),
            Some(check_no_proxy),
            None,
            None,
        );
    }
}

thread_local! {
    /// What the settings were when they were last asked for, and what they mean.
    static KNOWN: RefCell<(CString, CString, Option<Arc<Proxy>>)> = RefCell::default();
}

/// The proxy that requests go through, if any.
pub fn proxy() -> Option<Arc<Proxy>> {
    let (url, exempt) = (url().unwrap_or_default(), NO_PROXY.get().unwrap_or_default());
    KNOWN.with_borrow_mut(|known| {
        if known.0 != url || known.1 != exempt {
            // What the checks let pass parses.
            let server = ProxyServer::parse(&url.to_string_lossy()).ok();
            let hosts = Exempt::parse(&exempt.to_string_lossy()).unwrap_or_default();
            *known = (url, exempt, server.map(|server| Arc::new(Proxy::new(server, hosts))));
        }
        known.2.clone()
    })
}

fn url() -> Option<CString> {
    let url = PROXY_URL.load(Ordering::Relaxed);
    // SAFETY: what was assigned last is terminated, and stays until the server assigns something else, in this thread.
    (!url.is_null()).then(|| unsafe { CStr::from_ptr(url) }.to_owned())
}

/// Refuses a URL that is none, without repeating it; of one that can be used, keeps what the server shall not show
/// besides the value (a `GucStringCheckHook`).
#[pg_guard]
unsafe extern "C-unwind" fn check_proxy(
    value: *mut *mut c_char,
    extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: a check hook's own, which changes it when this has been read.
    let url = unsafe { new_value(value) };
    if url.is_empty() {
        return true;
    }
    let parsed = url.to_str().map_err(|_| ()).map(ProxyServer::parse);
    if !matches!(parsed, Ok(Ok(_))) {
        // SAFETY: the server reads it after this returns false; it lives in its error context.
        unsafe {
            pg_sys::GUC_check_errmsg_string =
                palloced(r#"invalid value for parameter "pgwh.proxy""#.to_owned())
        };
        if let Ok(Err(problem)) = parsed {
            explain(problem);
        }
        return false;
    }
    let length = url.to_bytes_with_nul().len();
    // SAFETY: the server frees what `extra` points to in the way it has to be allocated; the bytes are copied with their
    // terminator before the value, which is the server's own copy, is emptied.
    unsafe {
        let kept = compat::allocate_for_guc(length);
        if kept.is_null() {
            return false;
        }
        std::ptr::copy_nonoverlapping((*value).cast::<u8>(), kept.cast::<u8>(), length);
        *extra = kept;
        std::ptr::write_bytes(*value, 0, length);
    }
    true
}

/// Takes what the check has kept (a `GucStringAssignHook`).
#[pg_guard]
unsafe extern "C-unwind" fn assign_proxy(_value: *const c_char, extra: *mut c_void) {
    PROXY_URL.store(extra.cast(), Ordering::Relaxed);
}

/// Shows the URL with stars in place of the password (a `GucShowHook`).
#[pg_guard]
unsafe extern "C-unwind" fn show_proxy() -> *const c_char {
    let shown = url().and_then(|url| Some(ProxyServer::parse(url.to_str().ok()?).ok()?.shown()));
    let shown = shown.and_then(|shown| CString::new(shown).ok()).unwrap_or_default();
    // SAFETY: copies a terminated string into the current context; the server copies it in turn.
    unsafe { pg_sys::pstrdup(shown.as_ptr()) }
}

/// Refuses a list that is none, before it takes effect (a `GucStringCheckHook`).
#[pg_guard]
unsafe extern "C-unwind" fn check_no_proxy(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: a check hook's own.
    let list = unsafe { new_value(value) };
    Exempt::parse(&list.to_string_lossy()).map_err(explain).is_ok()
}
