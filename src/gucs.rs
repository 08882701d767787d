//! The settings `pgwh.*`: one documented static each. All of them can be changed by a reload.

mod check_hook;
mod proxy;

use std::cell::RefCell;
use std::ffi::{CStr, CString, OsStr, c_char, c_void};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum, pg_guard, pg_sys};

use crate::delivery::{HostLimits, PerSecond};
use crate::http::{Guard, check_ca_file};
use crate::secret::Keys;

use self::check_hook::{explain, new_value, palloced};
pub use self::proxy::proxy;

/// `pgwh.enabled`: whether anything is captured and sent. Off ends the workers of all databases; their slots stay.
static ENABLED: GucSetting<bool> = GucSetting::<bool>::new(true);

/// `pgwh.allowed_networks`: networks that endpoints may be in although they are not public, plain http included.
static ALLOWED_NETWORKS: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// `pgwh.allow_all_tables_publications`: whether the tables of `pgwh` may be in publications. SQL reads it.
static ALLOW_ALL_TABLES_PUBLICATIONS: GucSetting<bool> = GucSetting::<bool>::new(false);

/// `pgwh.max_memory`: kilobytes that a database's dispatcher may take.
static MAX_MEMORY: GucSetting<i32> = GucSetting::<i32>::new(128 * 1024);

/// `pgwh.max_connections`: most requests under way in a database, each over a connection of its own.
static MAX_CONNECTIONS: GucSetting<i32> = GucSetting::<i32>::new(1000);

/// `pgwh.host_max_in_flight`: most requests under way at once to one host, over all subscriptions; 0: no limit.
static HOST_MAX_IN_FLIGHT: GucSetting<i32> = GucSetting::<i32>::new(0);

/// `pgwh.host_rate_limit`: most requests a second to one host, over all subscriptions; 0: no limit.
static HOST_RATE_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(0);

/// `pgwh.queue_size`: kilobytes of the queue between decoder and dispatcher.
static QUEUE_SIZE: GucSetting<i32> = GucSetting::<i32>::new(4 * 1024);

/// `pgwh.retention`: seconds that events stay for replay once they are done, unless their subscription says otherwise.
static RETENTION: GucSetting<i32> = GucSetting::<i32>::new(24 * 60 * 60);

/// `pgwh.journal_max_size`: megabytes of the journal past which events that are done go before their time; 0: no limit.
static JOURNAL_MAX_SIZE: GucSetting<i32> = GucSetting::<i32>::new(0);

/// `pgwh.max_pending_bytes`: megabytes of undelivered events past which a subscription is disabled.
static MAX_PENDING_BYTES: GucSetting<i32> = GucSetting::<i32>::new(10 * 1024);

/// `pgwh.max_event_size`: kilobytes of a change's rows past which its largest columns are left out.
static MAX_EVENT_SIZE: GucSetting<i32> = GucSetting::<i32>::new(8 * 1024);

/// `pgwh.transform_timeout`: milliseconds that a call of a transform or route may take.
static TRANSFORM_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(1000);

/// `pgwh.max_renderers`: most processes of a database that run transforms and routes.
static MAX_RENDERERS: GucSetting<i32> = GucSetting::<i32>::new(2);

/// `pgwh.max_response_size`: bytes of a response's body that are read.
static MAX_RESPONSE_SIZE: GucSetting<i32> = GucSetting::<i32>::new(16 * 1024);

/// `pgwh.encryption_key_file`: the file of keys by which secrets are sealed at rest; empty: they are not.
static ENCRYPTION_KEY_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// `pgwh.server_identity`: a name of this server that copies of its data directory do not have.
static SERVER_IDENTITY: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
/// Its name.
pub const SERVER_IDENTITY_NAME: &CStr = c"pgwh.server_identity";
/// Whether it was read from a configuration file, and not from the command line, when the server started.
static SERVER_IDENTITY_FROM_FILE: AtomicBool = AtomicBool::new(false);

/// `pgwh.ca_file`: certificates that are trusted besides the system's.
static CA_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// `pgwh.log_level`: how important a message of our processes must be to be logged.
static LOG_LEVEL: GucSetting<LogLevel> = GucSetting::<LogLevel>::new(LogLevel::Warning);

/// The words of `log_min_messages`.
#[derive(Clone, Copy, Debug, PostgresGucEnum)]
#[allow(missing_docs)]
pub enum LogLevel {
    #[name = c"debug5"]
    Debug5,
    #[name = c"debug4"]
    Debug4,
    #[name = c"debug3"]
    Debug3,
    #[name = c"debug2"]
    Debug2,
    #[name = c"debug1"]
    Debug1,
    #[name = c"info"]
    Info,
    #[name = c"notice"]
    Notice,
    #[name = c"warning"]
    Warning,
    #[name = c"error"]
    Error,
    #[name = c"log"]
    Log,
    #[name = c"fatal"]
    Fatal,
    #[name = c"panic"]
    Panic,
}
/// `pgwh.metrics_max_subscriptions`: how many subscriptions of a database have metrics of their own; 0: none.
static METRICS_MAX_SUBSCRIPTIONS: GucSetting<i32> = GucSetting::<i32>::new(500);

/// `pgwh.slot_name`: name of the replication slot that is made next; empty: made from database and installation.
static SLOT_NAME: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

static PRELOADED: AtomicBool = AtomicBool::new(false);

/// Defines the settings; called once, when the library is loaded.
pub fn init() {
    // SAFETY: reads a flag that the server sets while it loads shared_preload_libraries.
    PRELOADED.store(unsafe { pg_sys::process_shared_preload_libraries_in_progress }, Ordering::Relaxed);
    GucRegistry::define_bool_guc(
        c"pgwh.enabled",
        c"Whether changes are captured and sent.",
        c"Off ends the workers of all databases. Their slots stay, and so does the WAL that is not delivered yet.",
        &ENABLED,
        GucContext::Sighup,
        GucFlags::default(),
    );
    // SAFETY: the hook is guarded and of the type that the server calls.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"pgwh.allowed_networks",
            c"Networks that endpoints may be in although they are not public.",
            c"CIDR notation, separated by commas. Plain http is allowed there, too. Empty: public addresses by https only.",
            &ALLOWED_NETWORKS,
            GucContext::Sighup,
            GucFlags::default(),
            Some(check_networks),
            None,
            None,
        );
    }
    GucRegistry::define_bool_guc(
        c"pgwh.allow_all_tables_publications",
        c"Whether publications may have the tables of pgwh, as those FOR ALL TABLES do.",
        c"For readers that pick their tables themselves, and subscribers that have the extension, too: replication to others stops.",
        &ALLOW_ALL_TABLES_PUBLICATIONS,
        GucContext::Suset,
        GucFlags::default(),
    );
    proxy::init();
    // Superusers set it for one database by ALTER DATABASE.
    // SAFETY: the hook is guarded and of the type that the server calls.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"pgwh.slot_name",
            c"Name of the replication slot; each database needs another one, by ALTER DATABASE.",
            c"A slot that exists keeps its name. Empty: pgwh_ and the oid of the database, and a part of the installation's id.",
            &SLOT_NAME,
            GucContext::Suset,
            GucFlags::default(),
            Some(check_slot_name),
            None,
            None,
        );
    }
    GucRegistry::define_string_guc(
        c"pgwh.encryption_key_file",
        c"File of the keys by which signing keys and sensitive headers are sealed at rest.",
        c"One key a line, 32 random bytes in base64; the first one seals, all of them open. Empty: they are not sealed.",
        &ENCRYPTION_KEY_FILE,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    // Only a server that preloads the library can have a setting that takes a restart.
    if preloaded() {
        // SAFETY: the hook is guarded and of the type that the server calls.
        unsafe {
            GucRegistry::define_string_guc_with_hooks(
                SERVER_IDENTITY_NAME,
                c"Name of this server that copies of its data directory do not have, by which they are noticed.",
                c"Counts when it is set on the command line or in a configuration file outside of the data directory. Empty: the machine-id or the host name is taken.",
                &SERVER_IDENTITY,
                GucContext::Postmaster,
                GucFlags::DISALLOW_IN_AUTO_FILE,
                Some(note_source),
                None,
                None,
            );
        }
    }
    GucRegistry::define_string_guc(
        c"pgwh.ca_file",
        c"File of certificates, in PEM, that endpoints' certificates may be signed by, besides those the system trusts.",
        c"Empty: those that the system trusts.",
        &CA_FILE,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"pgwh.log_level",
        c"How important a message of launcher, dispatchers and decoders must be to be logged.",
        c"For these processes what log_min_messages is for others.",
        &LOG_LEVEL,
        GucContext::Sighup,
        GucFlags::default(),
    );
    for (name, short, long, setting, least, most, unit) in [
        (
            c"pgwh.max_memory",
            c"Memory of the process that sends, in each database.",
            c"When events would take more, they wait in the journal and are read back.",
            &MAX_MEMORY,
            1024,
            1024 * 1024 * 1024,
            GucFlags::UNIT_KB,
        ),
        (
            c"pgwh.max_connections",
            c"Most requests under way at once, in each database.",
            c"Each takes a connection. The limit on open files may allow fewer.",
            &MAX_CONNECTIONS,
            1,
            32_768,
            GucFlags::default(),
        ),
        (
            c"pgwh.host_max_in_flight",
            c"Most requests under way at once to one host and port, over all its subscriptions.",
            c"In each database. 0 means no limit but each subscription's own.",
            &HOST_MAX_IN_FLIGHT,
            0,
            32_768,
            GucFlags::default(),
        ),
        (
            c"pgwh.host_rate_limit",
            c"Most requests a second to one host and port, over all its subscriptions.",
            c"In each database. 0 means no limit but each subscription's own.",
            &HOST_RATE_LIMIT,
            0,
            100_000,
            GucFlags::default(),
        ),
        (
            c"pgwh.queue_size",
            c"Size of the queue from decoder to dispatcher, in each database.",
            c"Takes effect when the workers of a database start.",
            &QUEUE_SIZE,
            64,
            1024 * 1024,
            GucFlags::UNIT_KB,
        ),
        (
            c"pgwh.retention",
            c"How long events stay for replay once they are delivered or given up.",
            c"A subscription's own retention goes before. Events that are not done yet stay in any case.",
            &RETENTION,
            1,
            365 * 24 * 60 * 60,
            GucFlags::UNIT_S,
        ),
        (
            c"pgwh.journal_max_size",
            c"Size of the journal past which events that are done go before their time, in each database.",
            c"0 means no limit. Events that are not done yet stay in any case.",
            &JOURNAL_MAX_SIZE,
            0,
            i32::MAX,
            GucFlags::UNIT_MB,
        ),
        (
            c"pgwh.max_pending_bytes",
            c"Undelivered events of one subscription past which it is disabled.",
            c"What it misses from then on is recorded as a gap. What it has by then is kept.",
            &MAX_PENDING_BYTES,
            1,
            i32::MAX,
            GucFlags::UNIT_MB,
        ),
        (
            c"pgwh.max_event_size",
            c"Size of a change's rows past which its largest columns are left out, and of other events.",
            c"The event names them in \"omitted\". Columns of the key always stay. Of a schema change its command or objects are left out, of another application's message its payload.",
            &MAX_EVENT_SIZE,
            1,
            512 * 1024,
            GucFlags::UNIT_KB,
        ),
        (
            c"pgwh.transform_timeout",
            c"Time that a call of a subscription's transform or route may take.",
            c"A call that takes longer is cancelled, which is a failed attempt of its event.",
            &TRANSFORM_TIMEOUT,
            1,
            60 * 1000,
            GucFlags::UNIT_MS,
        ),
        (
            c"pgwh.max_renderers",
            c"Most processes that run transforms and routes, in each database.",
            c"They are worker processes, started as they are needed. Slow functions leave one to the others.",
            &MAX_RENDERERS,
            1,
            64,
            GucFlags::default(),
        ),
        (
            c"pgwh.max_response_size",
            c"How much of a response's body is read.",
            c"The connection of a longer response is closed.",
            &MAX_RESPONSE_SIZE,
            0,
            1024 * 1024,
            GucFlags::UNIT_BYTE,
        ),
        (
            c"pgwh.metrics_max_subscriptions",
            c"Subscriptions with metrics of their own, in each database.",
            c"The others share one series of each metric. Takes effect when the workers of a database start.",
            &METRICS_MAX_SUBSCRIPTIONS,
            0,
            1_000_000,
            GucFlags::default(),
        ),
    ] {
        define_int(name, short, long, setting, (least, most), unit);
    }
    // SAFETY: all settings of the prefix are defined by now.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"pgwh".as_ptr()) };
}

fn define_int(
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    setting: &'static GucSetting<i32>,
    (least, most): (i32, i32),
    unit: GucFlags,
) {
    GucRegistry::define_int_guc(name, short, long, setting, least, most, GucContext::Sighup, unit);
}

/// Whether the library was loaded when the server started.
pub fn preloaded() -> bool {
    PRELOADED.load(Ordering::Relaxed)
}

/// What to type when it was not: what is loaded already stays.
pub fn hint_to_preload() -> String {
    // SAFETY: the server has the setting; its value is copied.
    let present = unsafe {
        let value = pg_sys::GetConfigOption(c"shared_preload_libraries".as_ptr(), true, false);
        if value.is_null() { String::new() } else { CStr::from_ptr(value).to_string_lossy().into_owned() }
    };
    let libraries =
        present.split(',').map(|library| library.trim().trim_matches('"')).chain(["pgstream_hooks"]);
    let quoted = libraries.filter(|library| !library.is_empty()).map(|library| format!("'{library}'"));
    format!(
        "ALTER SYSTEM SET shared_preload_libraries = {}; and restart the server.",
        quoted.collect::<Vec<_>>().join(", ")
    )
}

/// Whether anything is captured and sent.
pub fn enabled() -> bool {
    ENABLED.get()
}

thread_local! {
    /// What the setting was when it was last asked for, and what it means.
    static GUARD: RefCell<(CString, Arc<Guard>)> = RefCell::default();
}

/// Where requests may go.
pub fn guard() -> Arc<Guard> {
    let list = ALLOWED_NETWORKS.get().unwrap_or_default();
    GUARD.with_borrow_mut(|(known, guard)| {
        if *known != list {
            // What the check let pass parses; were it not so, the guard that opens nothing is the safe one.
            *guard = Arc::new(Guard::parse(&list.to_string_lossy()).unwrap_or_default());
            *known = list;
        }
        guard.clone()
    })
}

/// The keys by which secrets are sealed, read from their file; none when there are to be none.
///
/// # Errors
///
/// In words for the user, when the file cannot be used.
pub fn encryption_keys() -> Result<Option<Keys>, String> {
    let Some(path) = path_of(&ENCRYPTION_KEY_FILE) else { return Ok(None) };
    let read = || {
        let mut file = File::open(&path).map_err(|error| error.to_string())?;
        if file.metadata().map_err(|error| error.to_string())?.permissions().mode() & 0o007 != 0 {
            return Err("everybody may read or write it: chmod 600 it".to_owned());
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(|error| error.to_string())?;
        Keys::parse(&text).map_err(|error| error.to_string())
    };
    read()
        .map(Some)
        .map_err(|why| format!("pgwh.encryption_key_file \"{}\" cannot be used: {why}", path.display()))
}

/// Which settings name a file that cannot be used, each with what to do about it.
pub fn file_problems() -> Vec<(String, &'static str)> {
    let keys = encryption_keys().err().map(|problem| {
        let cure =
            "Restore that file, so that the server's user alone can read it, then SELECT pg_reload_conf();";
        (problem, cure)
    });
    ca_file_problem().into_iter().chain(keys).collect()
}

/// Why the file of trusted certificates cannot be used, and what to do about it.
pub fn ca_file_problem() -> Option<(String, &'static str)> {
    let problem = check_ca_file(&ca_file()?).err()?;
    Some((
        problem,
        "Put certificates in PEM into that file, then SELECT pg_reload_conf(); Or trust the system's alone: ALTER SYSTEM RESET pgwh.ca_file; SELECT pg_reload_conf();",
    ))
}

/// How important a message of our processes must be to be logged, as `log_min_messages` has it.
pub fn log_level() -> &'static CStr {
    match LOG_LEVEL.get() {
        LogLevel::Debug5 => c"debug5",
        LogLevel::Debug4 => c"debug4",
        LogLevel::Debug3 => c"debug3",
        LogLevel::Debug2 => c"debug2",
        LogLevel::Debug1 => c"debug1",
        LogLevel::Info => c"info",
        LogLevel::Notice => c"notice",
        LogLevel::Warning => c"warning",
        LogLevel::Error => c"error",
        LogLevel::Log => c"log",
        LogLevel::Fatal => c"fatal",
        LogLevel::Panic => c"panic",
    }
}

/// The name that this server was given, wherever that is set; none when it has none.
pub fn server_identity() -> Option<String> {
    let identity = SERVER_IDENTITY.get()?.to_string_lossy().trim().to_owned();
    (preloaded() && !identity.is_empty()).then_some(identity)
}

/// Whether that name was in a configuration file when the server started.
pub fn server_identity_is_from_file() -> bool {
    SERVER_IDENTITY_FROM_FILE.load(Ordering::Relaxed)
}

/// The file of certificates to trust besides the system's; none when there are to be none.
pub fn ca_file() -> Option<PathBuf> {
    path_of(&CA_FILE)
}

fn path_of(setting: &GucSetting<Option<CString>>) -> Option<PathBuf> {
    let path = setting.get().filter(|path| !path.is_empty())?;
    Some(PathBuf::from(OsStr::from_bytes(path.as_bytes())))
}

/// The name that the slot is to have; none when it is left to us.
pub fn slot_name() -> Option<CString> {
    SLOT_NAME.get().filter(|name| !name.is_empty())
}

/// Memory for undelivered events, in bytes.
pub fn max_memory() -> usize {
    kilobytes(&MAX_MEMORY)
}

/// Most requests under way.
pub fn max_connections() -> usize {
    usize::try_from(MAX_CONNECTIONS.get()).unwrap_or(1)
}

/// What each host may be sent, over all subscriptions.
pub fn host_limits() -> HostLimits {
    let positive = |setting: &GucSetting<i32>| u32::try_from(setting.get()).ok().and_then(PerSecond::new);
    HostLimits {
        max_in_flight: positive(&HOST_MAX_IN_FLIGHT).map(|most| most.get() as usize),
        rate_limit: positive(&HOST_RATE_LIMIT),
    }
}

/// Size of the queue from decoder to dispatcher, in bytes.
pub fn queue_size() -> usize {
    kilobytes(&QUEUE_SIZE)
}

/// How many bytes of a response's body are read.
pub fn max_response_size() -> usize {
    usize::try_from(MAX_RESPONSE_SIZE.get()).unwrap_or_default()
}

/// How long a call of a transform or route may take.
pub fn transform_timeout() -> Duration {
    Duration::from_millis(u64::try_from(TRANSFORM_TIMEOUT.get()).unwrap_or(1))
}

/// Most processes that run transforms and routes, 1 at least.
pub fn max_renderers() -> usize {
    usize::try_from(MAX_RENDERERS.get()).unwrap_or(1).max(1)
}

/// How long events stay for replay where their subscription says nothing.
pub fn retention() -> Duration {
    Duration::from_secs(u64::try_from(RETENTION.get()).unwrap_or(1))
}

/// Bytes of the journal past which retention gives way; none: no limit.
pub fn journal_max_size() -> Option<u64> {
    Some(megabytes(&JOURNAL_MAX_SIZE)).filter(|size| *size > 0)
}

/// Bytes of undelivered events past which a subscription is disabled.
pub fn max_pending_bytes() -> u64 {
    megabytes(&MAX_PENDING_BYTES)
}

/// Bytes of a change's encoded rows past which its largest columns are left out.
pub fn max_event_size() -> usize {
    kilobytes(&MAX_EVENT_SIZE)
}

/// How many subscriptions have metrics of their own.
pub fn metrics_max_subscriptions() -> usize {
    usize::try_from(METRICS_MAX_SUBSCRIPTIONS.get()).unwrap_or_default()
}

fn megabytes(setting: &GucSetting<i32>) -> u64 {
    u64::try_from(setting.get()).unwrap_or_default() * 1024 * 1024
}

fn kilobytes(setting: &GucSetting<i32>) -> usize {
    usize::try_from(setting.get()).unwrap_or_default() * 1024
}

/// Notes where a setting comes from while the server starts (a `GucStringCheckHook`).
#[pg_guard]
unsafe extern "C-unwind" fn note_source(
    _value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: reads a flag that the server sets while it loads shared_preload_libraries.
    if unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        SERVER_IDENTITY_FROM_FILE.store(source == pg_sys::GucSource::PGC_S_FILE, Ordering::Relaxed);
    }
    true
}

/// Refuses a list that is none, before it takes effect (a `GucStringCheckHook`).
#[pg_guard]
unsafe extern "C-unwind" fn check_networks(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: a check hook's own.
    let list = unsafe { new_value(value) };
    Guard::parse(&list.to_string_lossy()).map_err(explain).is_ok()
}

/// Refuses what the server would not take as the name of a slot (a `GucStringCheckHook`).
#[pg_guard]
unsafe extern "C-unwind" fn check_slot_name(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: a check hook's own.
    let name = unsafe { new_value(value) }.to_bytes();
    let is_valid = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_';
    if name.len() < pg_sys::NAMEDATALEN as usize && name.iter().all(is_valid) {
        return true;
    }
    let detail = "A replication slot's name has up to 63 lower-case letters, digits and underscores.";
    // SAFETY: the server reads it after this returns false; it lives in its error context.
    unsafe { pg_sys::GUC_check_errdetail_string = palloced(detail.to_owned()) };
    false
}
