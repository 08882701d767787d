//! The write-ahead log: slot, reader, output plugin, decoding loop.

pub(crate) mod commit_records;
pub(crate) mod decoding_loop;
pub(crate) mod plugin;
pub(crate) mod slot;
pub(crate) mod wal_reader;
