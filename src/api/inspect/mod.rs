//! Views and reports: status, health, metrics, `pgwh.why`, previews, the contents of the journal.

pub(crate) mod certificates;
pub(crate) mod descendants;
pub(crate) mod health;
pub(crate) mod journal;
pub(crate) mod json_eq;
pub(crate) mod metrics;
pub(crate) mod preview;
pub(crate) mod row_key;
pub(crate) mod status;
pub(crate) mod status_checks;
pub(crate) mod unmatched;
pub(crate) mod why;
