//! The dispatcher: one process per database, which journals events and sends them.

pub(crate) mod backfills;
pub(crate) mod clone_check;
pub(crate) mod deferred_work;
pub(crate) mod effects;
pub(crate) mod endpoint_config;
pub(crate) mod error_watch;
pub(crate) mod ingest;
pub(crate) mod journal_writer;
pub(crate) mod main_loop;
pub(crate) mod notices;
pub(crate) mod payload;
pub(crate) mod pings;
pub(crate) mod privileges;
pub(crate) mod render_requests;
pub(crate) mod renderers;
pub(crate) mod replays;
pub(crate) mod sender;
pub(crate) mod startup;
pub(crate) mod stats_publisher;
