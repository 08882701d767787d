//! The journal: every event that arrived, what became of its deliveries, and where each subscription stands.
//!
//! The codecs of its packed columns are pure. Rows of the journal are inserted without a statement ([`heap`]), all else is
//! written by SPI, with an origin that our own decoder drops before queueing it.

#[cfg(feature = "server")]
mod backfills;
#[cfg(feature = "server")]
mod columns;
#[cfg(feature = "server")]
mod commands;
#[cfg(feature = "server")]
mod descendants;
#[cfg(feature = "server")]
pub mod erasure;
#[cfg(feature = "server")]
mod error_states;
#[cfg(feature = "server")]
mod gaps;
#[cfg(feature = "server")]
pub mod logical_messages;
#[cfg(feature = "server")]
mod notifications;
#[cfg(feature = "server")]
pub mod own_tables;
pub mod packed;
#[cfg(feature = "server")]
mod parameters;
pub mod partitions;
pub mod read;
pub mod recovery;
pub mod replay_selection;
#[cfg(feature = "server")]
mod replays;
#[cfg(feature = "server")]
mod routing_changes;
#[cfg(feature = "server")]
mod routing_versions;
#[cfg(feature = "server")]
mod schema_changes;
#[cfg(feature = "server")]
mod subscriptions;
#[cfg(feature = "server")]
mod system_events;
#[cfg(feature = "server")]
mod transaction;
#[cfg(feature = "server")]
pub mod write;

#[cfg(feature = "server")]
pub use self::backfills::{
    BackfillState, BackfillTable, BackfillTask, OpenBackfill, StateNoted, Strayed, add_backfill_tables,
    backfill_task, is_orphan, leave_out_of_backfill, left_out, open_backfills, set_backfill_state, strayed,
    tables_of, without_tables,
};
#[cfg(feature = "server")]
pub use self::commands::{Command, CommandKind, begin_discards, commands, commands_done};
#[cfg(feature = "server")]
pub use self::descendants::{Led, Part, flawed_parts};
#[cfg(feature = "server")]
pub use self::erasure::FORGOTTEN;
#[cfg(feature = "server")]
pub use self::error_states::look_for_errors;
#[cfg(feature = "server")]
pub use self::gaps::{Gap, TableGapChange, known_gaps};
#[cfg(feature = "server")]
pub use self::notifications::{Notification, empty_notify_queue, notify};
pub use self::partitions::ring::{Retention, Retentions};
#[cfg(feature = "server")]
pub use self::read::pending::{PendingDeliveries, PendingDelivery};
#[cfg(feature = "server")]
pub use self::read::reader::{Found, Page, What, Wishes};
#[cfg(feature = "server")]
pub use self::recovery::load::{Loaded, load};
pub use self::replay_selection::Standing;
#[cfg(feature = "server")]
pub use self::replays::{
    Replay, ReplayEnd, ReplayPage, ReplayReader, open_replays, replay_ended, replay_progress,
};
#[cfg(feature = "server")]
pub use self::routing_changes::*;
#[cfg(feature = "server")]
pub use self::routing_versions::Version;
#[cfg(feature = "server")]
pub use self::schema_changes::{newest_schema_change, schema_versions};
#[cfg(feature = "server")]
pub use self::subscriptions::{
    RowOrdering, StoredSecrets, SubscriptionRow, all_subscriptions, are_all_copies, disable, is_unchecked,
    keep_subscriptions_as_they_are, note_disabled, subscriptions, unchecked, write_disables,
};
#[cfg(feature = "server")]
pub use self::system_events::{SystemEvent, tell_of, tell_of_gaps};
#[cfg(feature = "server")]
pub use self::transaction::*;
#[cfg(feature = "server")]
pub use self::write::rows::Attempt;
#[cfg(feature = "server")]
pub use self::write::writer::{BY_INDEX, Journal};
