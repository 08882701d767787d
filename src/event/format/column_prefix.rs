//! What bodies say of a column before its value: written once for a table's definition, then copied into each.

use std::fmt;
use std::sync::OnceLock;

use super::json;

/// The heads of a column, empty until the first is asked for; part of no comparison.
#[derive(Clone, Default)]
pub struct Heads(OnceLock<Box<Texts>>);

#[derive(Clone)]
pub(super) struct Texts {
    /// `,"name":`
    pub member: Box<[u8]>,
    /// `1","name":"name","type":"text","value":`
    pub pgstream: Box<[u8]>,
}

impl Heads {
    /// The heads of the column of this name, number and type.
    pub(super) fn texts(&self, name: &str, number: i16, type_name: &str) -> &Texts {
        self.0.get_or_init(|| Box::new(Texts::of(name, number, type_name)))
    }
}

impl Texts {
    fn of(name: &str, number: i16, type_name: &str) -> Texts {
        let mut member = vec![b','];
        json::string(&mut member, name);
        member.push(b':');

        let mut pgstream = Vec::new();
        // An attribute's number is positive.
        json::integer(&mut pgstream, number.unsigned_abs().into());
        pgstream.extend_from_slice(br#"","name":"#);
        json::string(&mut pgstream, name);
        pgstream.extend_from_slice(br#","type":"#);
        // As with the search path that databases have by default.
        json::string(&mut pgstream, type_name.strip_prefix("public.").unwrap_or(type_name));
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
