//! What subscriptions keep from everybody but their owner: which of their headers are secrets, and how secrets are
//! sealed at rest. Nothing in here knows Postgres.

mod encryption;
mod header_redaction;
pub mod stored_secret;

pub use self::encryption::{Keys, NotSealed, is_sealed};
pub use self::header_redaction::{Hidden, hide, is_sensitive, is_sign, reveal};
