//! What subscriptions keep from everybody but their owner: which of their headers are secrets, and how secrets are
//! sealed at rest. Nothing in here knows Postgres.

mod hidden;
mod keys;
pub mod stored;

pub use hidden::{Hidden, hide, is_sensitive, is_sign, reveal};
pub use keys::{Keys, NotSealed, is_sealed};
