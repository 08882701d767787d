//! Writing of the journal.

pub(crate) mod heap;
pub(crate) mod rows;
pub(crate) mod statements;
pub(crate) mod writer;
