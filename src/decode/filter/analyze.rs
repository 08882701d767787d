//! A filter as Postgres' own parser understands it: a condition over the new and the old row of a change.
//!
//! Filters run inside decoding, as a superuser, so they may hold nothing of a user's that runs: only immutable built-in
//! functions and operators, on types whose functions are built in (as publications' row filters,
//! `check_simple_rowfilter_expr` in `publicationcmds.c`).

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_void};

use pgrx::pg_sys::{self, NodeTag, Oid};
use pgrx::{PgSqlErrorCode, pg_guard};

use super::function_call::Called;
use crate::pg::command::parse_tree::nodes;
use crate::pg::subtransaction::Raised;

/// What a column means that is named without NEW or OLD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bare {
    /// The row after the change: inserts and updates.
    New,
    /// The row before it: deletes.
    Old,
}

/// Places in the range table that the condition is resolved against.
const NEW: i32 = 1;
const OLD: i32 = 2;

/// A condition that is resolved against a relation and may run.
pub struct Condition {
    /// Of type boolean, with its own variables: NEW is `OUTER_VAR`, OLD `INNER_VAR`. Not planned yet.
    pub node: *mut pg_sys::Node,
    /// What it looks at.
    pub uses: Uses,
}

/// The columns that something looks at, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// Of the row after the change.
    pub new: BTreeSet<i16>,
    /// Of the row before it.
    pub old: BTreeSet<i16>,
}

/// Resolves a condition against a relation. Raises what Postgres' parser raises; [`position`] says where then.
///
/// # Errors
///
/// When the condition may not run within decoding.
///
/// # Safety
/// `relation` is open and a transaction is in progress. The result lives in the current memory context.
pub unsafe fn resolve(text: &CStr, relation: pg_sys::Relation, bare: Bare) -> Result<Condition, Raised> {
    // SAFETY: as the caller promises; what is parsed is text that ends in NUL.
    unsafe {
        let _position = NotingPosition::begin();
        let raw = parse(text)?;
        let state = pg_sys::make_parsestate(std::ptr::null_mut());
        (*state).p_sourcetext = text.as_ptr();
        for (alias, is_bare) in [(c"new", bare == Bare::New), (c"old", bare == Bare::Old)] {
            let alias = pg_sys::makeAlias(alias.as_ptr(), std::ptr::null_mut());
            let lock = pg_sys::AccessShareLock as i32;
            let item = pg_sys::addRangeTableEntryForRelation(state, relation, lock, alias, false, false);
            pg_sys::addNSItemToQuery(state, item, false, true, is_bare);
        }
        let node = pg_sys::transformExpr(state, raw, pg_sys::ParseExprKind::EXPR_KIND_WHERE);
        let node = pg_sys::coerce_to_boolean(state, node, c"filter".as_ptr());
        pg_sys::assign_expr_collations(state, node);
        let uses = check(node, text, relation)?;
        pg_sys::ChangeVarNodes(node, NEW, pg_sys::OUTER_VAR, 0);
        pg_sys::ChangeVarNodes(node, OLD, pg_sys::INNER_VAR, 0);
        pg_sys::free_parsestate(state);
        Ok(Condition { node, uses })
    }
}

/// Judges a condition by its text alone, as long as there is no table whose columns it could name: what no table would make
/// right. Raises what Postgres' parser raises; [`position`] says where then.
///
/// # Errors
///
/// When the condition may not run within decoding.
///
/// # Safety
/// A transaction is in progress.
pub unsafe fn check_alone(text: &CStr) -> Result<(), Raised> {
    // SAFETY: as the caller promises; what is parsed is text that ends in NUL.
    unsafe {
        let _position = NotingPosition::begin();
        let mut found: Option<(Refusal, i32)> = None;
        crate::pg::compat::walk(parse(text)?, visit_raw, (&raw mut found).cast());
        found.map_or(Ok(()), |(refusal, location)| Err(refusal.raised(text, location)))
    }
}

/// True ends the walk (`raw_expression_tree_walker`, nodeFuncs.c).
#[pg_guard]
unsafe extern "C-unwind" fn visit_raw(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
    if node.is_null() {
        return false;
    }
    // SAFETY: the walker passes nodes of the tree, and the context of `check_alone`; the tag says what a node is.
    unsafe {
        let refusal = match (*node).type_ {
            NodeTag::T_SubLink => {
                Some(Refusal::new("a filter cannot have a subquery in it", ANOTHER_CONDITION))
            }
            NodeTag::T_FuncCall if is_aggregate(&*node.cast()) => Some(Refusal::new(
                "a filter cannot have aggregate or window functions in it",
                "It is asked of one row at a time: use columns, constants and functions of these.",
            )),
            _ => None,
        };
        if let Some(refusal) = refusal {
            *context.cast() = Some((refusal, pg_sys::exprLocation(node)));
            return true;
        }
        pg_sys::raw_expression_tree_walker(node, Some(visit_raw), context)
    }
}

/// Whether a call is written as only aggregate and window functions are called.
fn is_aggregate(call: &pg_sys::FuncCall) -> bool {
    call.agg_star
        || call.agg_distinct
        || !call.agg_order.is_null()
        || !call.agg_filter.is_null()
        || !call.over.is_null()
}

/// The expression that the text is, and nothing around it.
unsafe fn parse(text: &CStr) -> Result<*mut pg_sys::Node, Raised> {
    // SAFETY: the parser gives a list of raw statements; in this mode, one SELECT (`gram.y`, PLpgSQL_Expr).
    unsafe {
        let statements = pg_sys::raw_parser(text.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_PLPGSQL_EXPR);
        let statement = nodes(statements).next().map(|raw| (*raw.cast::<pg_sys::RawStmt>()).stmt);
        let select = statement.filter(|node| (**node).type_ == NodeTag::T_SelectStmt);
        let targets = select.map(|node| &*node.cast::<pg_sys::SelectStmt>()).filter(|select| is_bare(select));
        let mut targets = targets.into_iter().flat_map(|select| nodes(select.targetList));
        if let (Some(target), None) = (targets.next(), targets.next()) {
            let target = &*target.cast::<pg_sys::ResTarget>();
            if target.name.is_null() {
                return Ok(target.val);
            }
        }
        let mut raised =
            Raised::new(PgSqlErrorCode::ERRCODE_SYNTAX_ERROR, "the filter is not one condition alone");
        raised.hint = Some("Write what would follow WHERE, for example: filter => 'total > 100'".to_owned());
        Err(raised)
    }
}

/// Whether a SELECT has nothing but its list.
fn is_bare(select: &pg_sys::SelectStmt) -> bool {
    select.distinctClause.is_null()
        && select.fromClause.is_null()
        && select.whereClause.is_null()
        && select.groupClause.is_null()
        && select.havingClause.is_null()
        && select.windowClause.is_null()
        && select.sortClause.is_null()
        && select.limitOffset.is_null()
        && select.limitCount.is_null()
        && select.lockingClause.is_null()
}

/// What is found on a walk through a condition.
struct Walk {
    uses: Uses,
    /// Columns that write-ahead log doesn't carry.
    unstored: BTreeSet<i16>,
    /// The first thing that may not be there, and where it stands (-1: unknown).
    refused: Option<(Refusal, i32)>,
    /// The condition's text.
    text: *const c_char,
}

/// Why something may not be in a filter.
struct Refusal {
    what: String,
    /// What to do about it.
    hint: String,
}

impl Refusal {
    fn new(what: impl Into<String>, hint: impl Into<String>) -> Refusal {
        Refusal { what: what.into(), hint: hint.into() }
    }

    /// As an error that is about this place of the text.
    ///
    /// # Safety
    /// The location is one of the text, or -1.
    unsafe fn raised(self, text: &CStr, location: i32) -> Raised {
        // SAFETY: as the caller promises.
        POSITION.set(unsafe { character_at(text, location) });
        let mut raised = Raised::new(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, self.what);
        raised.hint = Some(self.hint);
        raised
    }
}

/// Judges every node, and notes the columns.
unsafe fn check(node: *mut pg_sys::Node, text: &CStr, relation: pg_sys::Relation) -> Result<Uses, Raised> {
    // SAFETY: as the caller of `resolve` promises.
    unsafe {
        let desc = (*relation).rd_att;
        let unstored = (0..(*desc).natts as usize)
            .map(|place| crate::pg::compat::attribute(desc, place))
            .filter(|attribute| attribute.attgenerated as u8 == b'v')
            .map(|attribute| attribute.attnum)
            .collect();
        let mut walk = Walk { uses: Uses::default(), unstored, refused: None, text: text.as_ptr() };
        crate::pg::compat::walk(node, visit, (&raw mut walk).cast());
        let Some((refusal, location)) = walk.refused else { return Ok(walk.uses) };
        Err(refusal.raised(text, location))
    }
}

/// Counted from 1; 0 when not known.
unsafe fn character_at(text: &CStr, location: i32) -> i32 {
    // SAFETY: counts characters of the text, which is as long as the location says.
    if location < 0 { 0 } else { unsafe { pg_sys::pg_mbstrlen_with_len(text.as_ptr(), location) + 1 } }
}

/// True ends the walk (`expression_tree_walker`, nodeFuncs.c).
#[pg_guard]
unsafe extern "C-unwind" fn visit(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
    if node.is_null() {
        return false;
    }
    // SAFETY: the walker passes nodes of the tree, and the context of `check`.
    unsafe {
        // What makes `placed > now() - interval '1 day'` depend on the time is now(), and not the operators around it.
        let is_operator = is_operator(node);
        if is_operator && pg_sys::expression_tree_walker(node, Some(visit), context) {
            return true;
        }
        let walk = &mut *context.cast::<Walk>();
        let (judged, goes_on) = match null_tested(node) {
            // Of a column's type nothing is run when only NULL is asked for.
            Some(var) => (note(var, walk), false),
            None => (refusal(node, walk), !is_operator),
        };
        if let Some(refusal) = judged {
            let location = if (*node).type_ == NodeTag::T_List { -1 } else { pg_sys::exprLocation(node) };
            walk.refused = Some((refusal, location));
            return true;
        }
        goes_on && pg_sys::expression_tree_walker(node, Some(visit), context)
    }
}

/// Whether a node applies an operator.
unsafe fn is_operator(node: *mut pg_sys::Node) -> bool {
    use NodeTag::*;
    // SAFETY: every node has a tag.
    matches!(unsafe { (*node).type_ }, T_OpExpr | T_DistinctExpr | T_NullIfExpr | T_ScalarArrayOpExpr)
}

/// The column that the node tests for NULL.
unsafe fn null_tested<'a>(node: *mut pg_sys::Node) -> Option<&'a pg_sys::Var> {
    // SAFETY: the tag says what the node is.
    unsafe {
        let test = ((*node).type_ == NodeTag::T_NullTest).then(|| &*node.cast::<pg_sys::NullTest>())?;
        let argument = test.arg.cast::<pg_sys::Node>();
        ((*argument).type_ == NodeTag::T_Var).then(|| &*argument.cast::<pg_sys::Var>())
    }
}

const ANOTHER_CONDITION: &str =
    "Use columns, constants and built-in operators and functions that are immutable.";

/// Why the node may not be in a filter.
unsafe fn refusal(node: *mut pg_sys::Node, walk: &mut Walk) -> Option<Refusal> {
    use NodeTag::*;
    // SAFETY: the tag says what the node is.
    unsafe {
        match (*node).type_ {
            T_List => return None,
            T_Var => {
                if let refused @ Some(_) = note(&*node.cast::<pg_sys::Var>(), walk) {
                    return refused;
                }
            }
            T_Const => {
                let constant = &*node.cast::<pg_sys::Const>();
                if is_relative_time(constant, walk.text) {
                    return Some(Refusal::new(
                        "a time in the filter is relative to now",
                        "Write the time out; a filter means the same whenever it is read.",
                    ));
                }
            }
            T_OpExpr | T_DistinctExpr | T_NullIfExpr | T_ScalarArrayOpExpr | T_RowCompareExpr
            | T_FuncExpr | T_NamedArgExpr | T_BoolExpr | T_RelabelType | T_CoerceViaIO
            | T_ArrayCoerceExpr | T_CollateExpr | T_CaseExpr | T_CaseTestExpr | T_ArrayExpr | T_RowExpr
            | T_CoalesceExpr | T_MinMaxExpr | T_XmlExpr | T_NullTest | T_BooleanTest | T_SubscriptingRef => {}
            T_SubLink => {
                return Some(Refusal::new("a filter cannot have a subquery in it", ANOTHER_CONDITION));
            }
            T_CoerceToDomain => {
                return Some(Refusal::new(
                    "a filter cannot convert to a domain",
                    "Convert to the type that the domain is made of.",
                ));
            }
            // `user` and its like are words of SQL, also where the table has a column of that name.
            T_SQLValueFunction => {
                let word = word_at(walk.text, pg_sys::exprLocation(node));
                return Some(Refusal::new(
                    format!("a filter cannot have {word} in it, which depends on the session or the time"),
                    format!("A column of that name goes into double quotes: \"{}\"", word.to_lowercase()),
                ));
            }
            T_FieldSelect => {
                return Some(Refusal::new(
                    "a filter cannot look into a composite value",
                    "Its parts cannot be read while changes are decoded: use other columns, or a transform that returns NULL for what is not to be sent.",
                ));
            }
            _ => {
                let what = "the filter has something in it that cannot run while changes are decoded";
                let what = match word_at(walk.text, pg_sys::exprLocation(node)).as_str() {
                    "" => what.to_owned(),
                    word => format!("{what}: {word}"),
                };
                return Some(Refusal::new(what, ANOTHER_CONDITION));
            }
        }
        let mut found = Function::Fine;
        pg_sys::check_functions_in_node(node, Some(judge_function), (&raw mut found).cast());
        match found {
            Function::Fine => {}
            Function::Users(function) => {
                return Some(Refusal::new(
                    format!(
                        "a filter cannot have user-defined functions or operators in it: {}",
                        Called::by(node, function).in_words()
                    ),
                    "Only what is built into Postgres can run while changes are decoded.",
                ));
            }
            Function::Mutable(function) => {
                let called = Called::by(node, function);
                return Some(Refusal::new(
                    format!(
                        "a filter cannot have functions in it that are not immutable: {}",
                        called.in_words()
                    ),
                    called.instead(),
                ));
            }
        }
        if !runs_built_in_code(pg_sys::exprType(node)) {
            return Some(Refusal::new(
                "a filter cannot use values of user-defined types",
                "Only enums, domains and IS NULL are possible; everything else would run the type's own functions.",
            ));
        }
        None
    }
}

/// What is written at a place of the text, up to the end of its word; when that is not known, nothing.
unsafe fn word_at(text: *const c_char, location: i32) -> String {
    // SAFETY: the parser gives places within its text, which ends in NUL.
    let bytes = unsafe { CStr::from_ptr(text).to_bytes() };
    let rest = usize::try_from(location).ok().and_then(|location| bytes.get(location..)).unwrap_or_default();
    let is_of_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80;
    let end = rest.iter().position(|byte| !is_of_word(byte)).unwrap_or(rest.len()).max(1).min(rest.len());
    crate::pg::values::encoding::utf8(&rest[..end]).into_owned()
}

/// Notes a column.
fn note(var: &pg_sys::Var, walk: &mut Walk) -> Option<Refusal> {
    if var.varattno == 0 {
        return Some(Refusal::new("a filter cannot use a row as a whole", "Name the columns."));
    }
    if var.varattno < 0 {
        return Some(Refusal::new("a filter cannot use system columns", "Name columns of the table."));
    }
    if walk.unstored.contains(&var.varattno) {
        return Some(Refusal::new(
            "a filter cannot use virtual generated columns",
            "Write-ahead log doesn't carry them: use the expression that the column is made by.",
        ));
    }
    let uses = if var.varno == NEW { &mut walk.uses.new } else { &mut walk.uses.old };
    uses.insert(var.varattno);
    None
}

/// Whether a constant was written as one of the words that stand for a time near now (`datetktbl`, datetime.c).
unsafe fn is_relative_time(constant: &pg_sys::Const, text: *const c_char) -> bool {
    const TIMES: [Oid; 10] = [
        pg_sys::DATEOID,
        pg_sys::TIMEOID,
        pg_sys::TIMETZOID,
        pg_sys::TIMESTAMPOID,
        pg_sys::TIMESTAMPTZOID,
        pg_sys::DATEARRAYOID,
        pg_sys::TIMEARRAYOID,
        pg_sys::TIMETZARRAYOID,
        pg_sys::TIMESTAMPARRAYOID,
        pg_sys::TIMESTAMPTZARRAYOID,
    ];
    const RANGES: [Oid; 6] = [
        pg_sys::DATERANGEOID,
        pg_sys::TSRANGEOID,
        pg_sys::TSTZRANGEOID,
        pg_sys::DATEMULTIRANGEOID,
        pg_sys::TSMULTIRANGEOID,
        pg_sys::TSTZMULTIRANGEOID,
    ];
    if constant.location < 0 || !(TIMES.contains(&constant.consttype) || RANGES.contains(&constant.consttype))
    {
        return false;
    }
    // SAFETY: the parser gives places within its text, which ends in NUL.
    let bytes = unsafe { CStr::from_ptr(text).to_bytes() };
    let Some(literal) = bytes.get(constant.location as usize..) else { return false };
    let end = literal.iter().skip(1).position(|byte| *byte == b'\'').map_or(literal.len(), |end| end + 1);
    let literal = String::from_utf8_lossy(&literal[..end]).to_ascii_lowercase();
    ["now", "today", "tomorrow", "yesterday"].iter().any(|word| literal.contains(word))
}

/// What kind of functions a node calls.
enum Function {
    Fine,
    Users(Oid),
    Mutable(Oid),
}

/// True ends the search (`check_functions_in_node`, nodeFuncs.c).
#[pg_guard]
unsafe extern "C-unwind" fn judge_function(function: Oid, context: *mut c_void) -> bool {
    // SAFETY: the context of `refusal`; a look-up in the system cache.
    unsafe {
        let found = &mut *context.cast::<Function>();
        *found = if function.to_u32() >= pg_sys::FirstNormalObjectId {
            Function::Users(function)
        } else if pg_sys::func_volatile(function) as u8 != pg_sys::PROVOLATILE_IMMUTABLE {
            Function::Mutable(function)
        } else {
            return false;
        };
        true
    }
}

/// Whether what built-in functions call for values of the type is built in, too. Enums are: they are compared by number.
unsafe fn runs_built_in_code(type_oid: Oid) -> bool {
    // SAFETY: look-ups in the system cache.
    unsafe {
        let base = pg_sys::getBaseType(type_oid);
        if base.to_u32() < pg_sys::FirstNormalObjectId || pg_sys::type_is_enum(base) {
            return true;
        }
        let element = pg_sys::get_element_type(base);
        element != Oid::INVALID && runs_built_in_code(element)
    }
}

thread_local! {
    /// The character that the last error was about, counted from 1; 0 when not known.
    static POSITION: Cell<i32> = const { Cell::new(0) };
}

/// The character of the filter that the last refusal is about, counted from 1.
pub fn position() -> Option<i32> {
    Some(POSITION.get()).filter(|position| *position > 0)
}

/// Notes the position of errors while it lives: pgrx passes on the other members of an error, but not that one.
struct NotingPosition(Box<pg_sys::ErrorContextCallback>);

impl NotingPosition {
    unsafe fn begin() -> NotingPosition {
        POSITION.set(0);
        // SAFETY: the entry is taken off again before its memory goes.
        unsafe {
            let mut entry = Box::new(pg_sys::ErrorContextCallback {
                previous: pg_sys::error_context_stack,
                callback: Some(note_position),
                arg: std::ptr::null_mut(),
            });
            pg_sys::error_context_stack = &raw mut *entry;
            NotingPosition(entry)
        }
    }
}

impl Drop for NotingPosition {
    fn drop(&mut self) {
        // SAFETY: entries are taken off in reverse order.
        unsafe { pg_sys::error_context_stack = self.0.previous };
    }
}

unsafe extern "C-unwind" fn note_position(_: *mut c_void) {
    // SAFETY: called while an error is being reported (`elog.c`, errfinish).
    POSITION.set(unsafe { crate::pg::compat::unguarded::geterrposition() });
}
