//! Database commands work as if the extension weren't there: its workers stand back while one runs.
//!
//! An active slot refuses DROP DATABASE (also WITH (FORCE)) and SET TABLESPACE; connected workers refuse RENAME and
//! being a TEMPLATE. So the workers of that database are stopped first, and let back at the end of the transaction.

use std::cell::RefCell;
use std::ffi::{CStr, c_void};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, pg_guard, pg_sys};

use super::dump::Run;
use super::{drop_role, dump, prepared_transactions, table_guard, table_lock, table_triggers, undelivered};
use crate::error::Error;
use crate::pg::command::current_statement::Statement;
use crate::pg::command::{dropped_index, former_names};
use crate::pg::compat;
use crate::pg::process::bgworker;
use crate::shmem::registry::{Database, Phase};
use crate::shmem::{commit_signal, registry};

/// How long workers may take to stand back before the command goes on and reports what it finds in its way.
const PATIENCE: Duration = Duration::from_secs(20);

static mut PREVIOUS_UTILITY: pg_sys::ProcessUtility_hook_type = None;
static mut PREVIOUS_ACCESS: pg_sys::object_access_hook_type = None;

thread_local! {
    /// Databases this transaction made stand back, to be let back at its end.
    static STANDING_BACK: RefCell<Vec<pg_sys::Oid>> = const { RefCell::new(Vec::new()) };
    /// Databases this transaction made, which may have brought the extension along from their template.
    static COPIED: RefCell<Vec<pg_sys::Oid>> = const { RefCell::new(Vec::new()) };
}

/// Installs the hooks, once, while the server preloads.
pub fn init() {
    // SAFETY: single-threaded start-up of the server; the previous hooks are kept and called.
    unsafe {
        PREVIOUS_UTILITY = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
        PREVIOUS_ACCESS = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(object_access);
    }
}

/// Without pgrx's guard: an ERROR of any command passes through here untouched, so this frame owns nothing to drop.
#[allow(clippy::too_many_arguments)]
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const std::ffi::c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the arguments are what the server passes to this hook, and are passed on, unchanged or as a dump needs them.
    unsafe {
        let node = (*statement).utilityStmt;
        if table_triggers::may_switch(node) && keep_triggers(node) {
            return;
        }
        let concerns_databases = is_database_command(node);
        if concerns_databases {
            before_command(node);
        }
        if (*node).type_ == pg_sys::NodeTag::T_DropRoleStmt {
            before_drop_role(node);
        }
        let may_have_asked = is_commit_prepared(node) && before_commit_prepared();
        let concerns_tables = is_table_command(node);
        if concerns_tables {
            undelivered::before_drop(node);
        }
        if table_lock::may_block(node) {
            before_lock(node);
        }
        let is_noted = former_names::may_be_noted(node);
        if is_noted {
            former_names::note(node);
        }
        let depth = if concerns_tables { before_table_command(node) } else { 0 };
        let run = match PREVIOUS_UTILITY {
            Some(previous) => previous,
            None => compat::unguarded::standard_ProcessUtility,
        };
        let dumped =
            if dump::may_be_of_dump(node) { before_dump(statement) } else { Run::unchanged(statement) };
        let before = Statement::of(statement, query).replace();
        run(dumped.statement, query, read_only_tree, context, params, environment, receiver, completion);
        before.replace();
        if is_noted {
            former_names::forget();
        }
        dumped.done();
        if concerns_tables {
            after_table_command(depth);
        }
        if (*node).type_ == pg_sys::NodeTag::T_AlterExtensionContentsStmt {
            extension_changed(node);
        }
        if concerns_databases {
            after_command(node);
        }
        if may_have_asked {
            after_commit_prepared();
        }
    }
}

/// # Safety
/// `node` is a utility statement's parse tree.
unsafe fn is_commit_prepared(node: *mut pg_sys::Node) -> bool {
    // SAFETY: as the caller promises; the cast follows the node's tag.
    unsafe {
        (*node).type_ == pg_sys::NodeTag::T_TransactionStmt
            && (*node.cast::<pg_sys::TransactionStmt>()).kind
                == pg_sys::TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn before_commit_prepared() -> bool {
    prepared_transactions::may_have_asked()
}

#[pg_guard]
unsafe extern "C-unwind" fn after_commit_prepared() {
    prepared_transactions::committed();
}

/// # Safety
/// `node` is a utility statement's parse tree.
unsafe fn is_database_command(node: *mut pg_sys::Node) -> bool {
    // SAFETY: as the caller promises.
    let tag = unsafe { (*node).type_ };
    matches!(
        tag,
        pg_sys::NodeTag::T_DropdbStmt
            | pg_sys::NodeTag::T_RenameStmt
            | pg_sys::NodeTag::T_AlterDatabaseStmt
            | pg_sys::NodeTag::T_CreatedbStmt
    )
}

/// # Safety
/// `node` is a utility statement's parse tree.
unsafe fn is_table_command(node: *mut pg_sys::Node) -> bool {
    // SAFETY: as the caller promises.
    let tag = unsafe { (*node).type_ };
    matches!(
        tag,
        pg_sys::NodeTag::T_AlterTableStmt
            | pg_sys::NodeTag::T_RenameStmt
            | pg_sys::NodeTag::T_DropStmt
            | pg_sys::NodeTag::T_DropOwnedStmt
    )
}

#[pg_guard]
unsafe extern "C-unwind" fn before_drop_role(node: *mut pg_sys::Node) {
    // SAFETY: the parse tree of a DROP ROLE, which runs in a transaction.
    unsafe { drop_role::before(node.cast()) };
}

#[pg_guard]
unsafe extern "C-unwind" fn before_dump(statement: *mut pg_sys::PlannedStmt) -> Run {
    // SAFETY: a statement that is to run, so a transaction is in progress.
    unsafe { dump::before(statement) }
}

#[pg_guard]
unsafe extern "C-unwind" fn before_lock(node: *mut pg_sys::Node) {
    // SAFETY: a statement that is to run, so a transaction is in progress.
    unsafe { table_lock::check(node) };
}

#[pg_guard]
unsafe extern "C-unwind" fn keep_triggers(node: *mut pg_sys::Node) -> bool {
    // SAFETY: a statement that is to run, so a transaction is in progress.
    unsafe { table_triggers::are_kept(node) }
}

#[pg_guard]
unsafe extern "C-unwind" fn before_table_command(node: *mut pg_sys::Node) -> usize {
    // SAFETY: the statement's parse tree; each cast follows the node's tag.
    unsafe {
        let relation = match (*node).type_ {
            pg_sys::NodeTag::T_AlterTableStmt => (*node.cast::<pg_sys::AlterTableStmt>()).relation,
            pg_sys::NodeTag::T_RenameStmt => (*node.cast::<pg_sys::RenameStmt>()).relation,
            _ => std::ptr::null_mut(),
        };
        table_guard::before(relation)
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn column_goes(table: pg_sys::Oid) {
    // SAFETY: a command runs, so a transaction is in progress.
    unsafe { table_guard::column_goes(table) };
}

#[pg_guard]
unsafe extern "C-unwind" fn after_table_command(depth: usize) {
    table_guard::after(depth);
}

/// Which tables are members of an extension decides where wildcards lead, and no cache has it: the decoder learns of it by an
/// invalidation of the tables.
#[pg_guard]
unsafe extern "C-unwind" fn extension_changed(node: *mut pg_sys::Node) {
    // SAFETY: the statement's parse tree; a command runs, so a transaction is in progress.
    unsafe {
        let change = &*node.cast::<pg_sys::AlterExtensionContentsStmt>();
        match change.objtype {
            pg_sys::ObjectType::OBJECT_TABLE => {
                let name = pg_sys::makeRangeVarFromNameList(change.object.cast());
                let flags = pg_sys::RVROption::RVR_MISSING_OK;
                let lock = pg_sys::NoLock as _;
                let table = pg_sys::RangeVarGetRelidExtended(name, lock, flags, None, std::ptr::null_mut());
                if table != pg_sys::InvalidOid {
                    pg_sys::CacheInvalidateRelcacheByRelid(table);
                }
            }
            pg_sys::ObjectType::OBJECT_SCHEMA => pg_sys::CacheInvalidateRelcacheAll(),
            _ => {}
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn before_command(node: *mut pg_sys::Node) {
    // SAFETY: the statement's parse tree.
    if let Some(affected) = unsafe { Affected::by(node) }
        && let Some(name) = affected.existing
    {
        stand_back(name, affected.moves_files);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn after_command(node: *mut pg_sys::Node) {
    // SAFETY: the statement's parse tree; a transaction is in progress, since CREATE DATABASE leaves one.
    unsafe {
        if let Some(copy) = Affected::by(node).and_then(|affected| affected.created) {
            let oid = pg_sys::get_database_oid(copy.as_ptr(), true);
            if oid != pg_sys::InvalidOid {
                COPIED.with_borrow_mut(|copied| copied.push(oid));
            }
        }
    }
}

/// The databases that a command is about.
struct Affected<'a> {
    /// The one that must be left alone meanwhile.
    existing: Option<&'a CStr>,
    /// The one that the command makes.
    created: Option<&'a CStr>,
    /// Whether its files move to where write-ahead log from before the move doesn't find them.
    moves_files: bool,
}

impl Affected<'_> {
    /// # Safety
    /// `node` is a utility statement's parse tree.
    unsafe fn by<'a>(node: *mut pg_sys::Node) -> Option<Affected<'a>> {
        // SAFETY: as the caller promises; each cast follows the node's tag, and names live as long as the tree.
        unsafe {
            let name = |text: *const std::ffi::c_char| (!text.is_null()).then(|| CStr::from_ptr(text));
            match (*node).type_ {
                pg_sys::NodeTag::T_DropdbStmt => {
                    let drop = &*node.cast::<pg_sys::DropdbStmt>();
                    Some(Affected { existing: name(drop.dbname), created: None, moves_files: false })
                }
                pg_sys::NodeTag::T_RenameStmt => {
                    let rename = &*node.cast::<pg_sys::RenameStmt>();
                    (rename.renameType == pg_sys::ObjectType::OBJECT_DATABASE).then(|| Affected {
                        existing: name(rename.subname),
                        created: None,
                        moves_files: false,
                    })
                }
                pg_sys::NodeTag::T_AlterDatabaseStmt => {
                    let alter = &*node.cast::<pg_sys::AlterDatabaseStmt>();
                    option(alter.options, c"tablespace").map(|_| Affected {
                        existing: name(alter.dbname),
                        created: None,
                        moves_files: true,
                    })
                }
                pg_sys::NodeTag::T_CreatedbStmt => {
                    let create = &*node.cast::<pg_sys::CreatedbStmt>();
                    let template = option(create.options, c"template")
                        .filter(|option| !(**option).arg.is_null())
                        .and_then(|option| name(pg_sys::defGetString(option)));
                    Some(Affected {
                        existing: Some(template.unwrap_or(c"template1")),
                        created: name(create.dbname),
                        moves_files: false,
                    })
                }
                _ => None,
            }
        }
    }
}

/// # Safety
/// `options` is a list of DefElem nodes.
unsafe fn option(options: *mut pg_sys::List, wanted: &CStr) -> Option<*mut pg_sys::DefElem> {
    // SAFETY: as the caller promises.
    unsafe {
        let count = if options.is_null() { 0 } else { (*options).length as usize };
        (0..count)
            .map(|n| (*(*options).elements.add(n)).ptr_value.cast::<pg_sys::DefElem>())
            .find(|option| CStr::from_ptr((**option).defname) == wanted)
    }
}

/// Makes the workers of the named database stand back, if it has any and the caller may do such things to it. With
/// `drain`, not before everything committed so far is journaled.
fn stand_back(name: &CStr, drain: bool) {
    let Some(shared) = registry::shared() else { return };
    // SAFETY: a command runs, so a transaction is in progress.
    let (oid, role) = unsafe {
        if !pg_sys::IsTransactionState() {
            return;
        }
        (pg_sys::get_database_oid(name.as_ptr(), true), pg_sys::GetUserId())
    };
    // Who may not do it is refused by the command itself, and must not disturb delivery by trying.
    let Some(database) = shared.find(oid).filter(|_| may_affect(oid, role)) else { return };
    if drain {
        self::drain(database);
    }
    database.quiesced.fetch_add(1, Ordering::SeqCst);
    STANDING_BACK.with_borrow_mut(|list| list.push(oid));
    registry::ask_to_stop(database);
    let deadline = Instant::now() + PATIENCE;
    while database.dispatcher_pid.load(Ordering::SeqCst) != 0
        || database.decoder_pid.load(Ordering::SeqCst) != 0
        || database.backfiller_pid.load(Ordering::SeqCst) != 0
    {
        if Instant::now() > deadline {
            break;
        }
        // The workers ring nobody when they are gone; they are gone within milliseconds.
        bgworker::pause(Duration::from_millis(2));
    }
}

/// Waits until everything committed so far is done with. Changes of tables in the database's default tablespace are
/// found by that tablespace, so those from before a move cannot be decoded after it.
fn drain(database: &Database) {
    if database.phase() != Phase::Ready {
        return;
    }
    let end = compat::wal_insert_end();
    // SAFETY: the position is one that has been inserted.
    unsafe { pg_sys::XLogFlush(end) };
    let deadline = Instant::now() + PATIENCE;
    while database.confirmed.load(Ordering::SeqCst) < end {
        if Instant::now() > deadline {
            ErrorReport::from(Error::Unjournaled).report(PgLogLevel::ERROR);
        }
        database.ask_for_progress();
        bgworker::pause(Duration::from_millis(5));
    }
}

fn may_affect(database: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    compat::owns_database(database, role) || role_may_create_databases(role)
}

fn role_may_create_databases(role: pg_sys::Oid) -> bool {
    // SAFETY: a syscache look-up inside a transaction; the tuple is released before returning.
    unsafe {
        let tuple =
            pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::AUTHOID as _, pg_sys::Datum::from(role));
        if tuple.is_null() {
            return false;
        }
        let may = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_authid>()).rolcreatedb;
        pg_sys::ReleaseSysCache(tuple);
        may
    }
}

/// Lets workers back, and has new databases looked at. Called when the transaction has ended either way.
pub fn let_back() {
    table_guard::forget();
    if STANDING_BACK.with_borrow(Vec::is_empty) && COPIED.with_borrow(Vec::is_empty) {
        return;
    }
    let Some(shared) = registry::shared() else { return };
    for oid in STANDING_BACK.take() {
        if let Some(database) = shared.find(oid) {
            database.quiesced.fetch_sub(1, Ordering::SeqCst);
            shared.ring(oid);
        }
    }
    for oid in COPIED.take() {
        shared.ring(oid);
    }
}

/// Notices that an extension or an index is being dropped, however it comes about (DROP EXTENSION, DROP SCHEMA … CASCADE, DROP OWNED).
///
/// Without pgrx's guard, as the hook before.
unsafe extern "C-unwind" fn object_access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    sub_object: i32,
    argument: *mut c_void,
) {
    if access == pg_sys::ObjectAccessType::OAT_DROP && class == pg_sys::ExtensionRelationId {
        // Whichever extension it is: the dispatcher looks for itself, which costs nothing.
        commit_signal::recheck_at_commit();
        // SAFETY: the extension is about to be dropped, so it is still there.
        unsafe { undelivered::extension_goes(object) };
    }
    if access == pg_sys::ObjectAccessType::OAT_DROP && class == pg_sys::RelationRelationId && sub_object == 0
    {
        // SAFETY: the relation is about to be dropped, so it is still there.
        unsafe { dropped_index::relation(object) };
    }
    if access == pg_sys::ObjectAccessType::OAT_DROP && class == pg_sys::RelationRelationId && sub_object > 0 {
        // SAFETY: the column is about to be dropped, so its table is still there.
        unsafe { column_goes(object) };
    }
    // SAFETY: the arguments are what the server passes to this hook, and are passed on unchanged.
    unsafe {
        if let Some(previous) = PREVIOUS_ACCESS {
            previous(access, class, object, sub_object, argument);
        }
    }
}
