//! The journal: every event that arrived, what became of its deliveries, and where each subscription stands.
//!
//! The codecs of its packed columns are pure. Rows of the journal are inserted without a statement ([`heap`]), all else is
//! written by SPI, with an origin that our own decoder drops before queueing it.

pub mod chunk;
pub mod outcome;
pub mod own_keys;
pub mod pack;
pub mod position;
pub mod restart;
pub mod ring;
pub mod selection;
pub mod wishes;

#[cfg(feature = "server")]
mod backfills;
#[cfg(feature = "server")]
mod commands;
#[cfg(feature = "server")]
pub mod erasure;
#[cfg(feature = "server")]
mod error_states;
#[cfg(feature = "server")]
mod gaps;
#[cfg(feature = "server")]
pub mod heap;
#[cfg(feature = "server")]
mod image;
#[cfg(feature = "server")]
mod inserts;
#[cfg(feature = "server")]
pub mod inspect;
#[cfg(feature = "server")]
mod load;
#[cfg(feature = "server")]
mod notifications;
#[cfg(feature = "server")]
pub mod own_tables;
#[cfg(feature = "server")]
mod parts;
#[cfg(feature = "server")]
mod pending;
#[cfg(feature = "server")]
mod reader;
#[cfg(feature = "server")]
mod replays;
#[cfg(feature = "server")]
mod schema_changes;
#[cfg(feature = "server")]
mod slices;
#[cfg(feature = "server")]
mod subscriptions;
#[cfg(feature = "server")]
mod system_events;
#[cfg(feature = "server")]
mod tables;
#[cfg(feature = "server")]
mod writer;

#[cfg(feature = "server")]
pub use backfills::{
    BackfillState, BackfillTable, BackfillTask, OpenBackfill, StateNoted, Strayed, add_backfill_tables,
    backfill_task, is_orphan, leave_out_of_backfill, left_out, open_backfills, set_backfill_state, strayed,
    tables_of, without_tables,
};
#[cfg(feature = "server")]
pub use commands::{Command, CommandKind, begin_discards, commands, commands_done};
#[cfg(feature = "server")]
pub use erasure::FORGOTTEN;
#[cfg(feature = "server")]
pub use error_states::look_for_errors;
#[cfg(feature = "server")]
pub use gaps::{Gap, TableGapChange, known_gaps};
#[cfg(feature = "server")]
pub use image::Version;
#[cfg(feature = "server")]
pub use load::{Loaded, load};
#[cfg(feature = "server")]
pub use notifications::{Notification, empty_notify_queue, notify};
#[cfg(feature = "server")]
pub use parts::{Led, Part, flawed_parts};
#[cfg(feature = "server")]
pub use pending::{PendingDeliveries, PendingDelivery};
#[cfg(feature = "server")]
pub use reader::{Found, Page, What, Wishes};
#[cfg(feature = "server")]
pub use replays::{Replay, ReplayEnd, ReplayPage, ReplayReader, open_replays, replay_ended, replay_progress};
pub use ring::{Retention, Retentions};
#[cfg(feature = "server")]
pub use schema_changes::{newest_schema_change, schema_versions};
pub use selection::Standing;
#[cfg(feature = "server")]
pub use subscriptions::{
    RowOrdering, StoredSecrets, SubscriptionRow, all_subscriptions, are_all_copies, disable,
    keep_subscriptions_as_they_are, note_disabled, subscriptions, write_disables,
};
#[cfg(feature = "server")]
pub use system_events::{SystemEvent, tell_of, tell_of_gaps};
#[cfg(feature = "server")]
pub use tables::*;
#[cfg(feature = "server")]
pub use writer::{Attempt, BY_INDEX, Journal};
