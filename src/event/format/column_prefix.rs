//! What bodies say of a column before its value: written once for a table's definition, then copied into each.

use std::fmt;
use std::sync::OnceLock;

use super::json;
use crate::event::Column;

/// The heads of a column, empty until the first is asked for; part of no comparison.
#[derive(Clone, Default)]
pub struct Heads(OnceLock<Box<Texts>>);

#[derive(Clone)]
struct Texts {
    /// `,"name":`
    member: Box<[u8]>,
    /// `1","name":"name","type":"text","value":`
    pgstream: Box<[u8]>,
}

impl Column {
    /// The name as that of a member behind others: `,"name":`.
    pub(super) fn member_head(&self) -> &[u8] {
        &self.texts().member
    }

    /// What pgstream has between the table's id and the value, from the column's number on.
    pub(super) fn pgstream_head(&self) -> &[u8] {
        &self.texts().pgstream
    }

    fn texts(&self) -> &Texts {
        self.heads.0.get_or_init(|| Box::new(Texts::of(self)))
    }
}

impl Texts {
    fn of(column: &Column) -> Texts {
        let mut member = vec![b','];
        json::string(&mut member, &column.name);
        member.push(b':');

        let mut pgstream = Vec::new();
        // An attribute's number is positive.
        json::integer(&mut pgstream, column.number.unsigned_abs().into());
        pgstream.extend_from_slice(br#"","name":"#);
        json::string(&mut pgstream, &column.name);
        pgstream.extend_from_slice(br#","type":"#);
        // As with the search path that databases have by default.
        json::string(&mut pgstream, column.type_name.strip_prefix("public.").unwrap_or(&column.type_name));
        pgstream.extend_from_slice(br#","value":"#);
        Texts { member: member.into(), pgstream: pgstream.into() }
    }
}

impl PartialEq for Heads {
    fn eq(&self, _: &Heads) -> bool {
        true
    }
}

impl Eq for Heads {}

impl fmt::Debug for Heads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Heads")
    }
}
