//! The context of a body: where its event comes from, for which subscription, and with which columns.

use crate::event::Column;

/// Where events come from, as bodies tell it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The name of the database.
    pub database: String,
    /// The name of the machine that the server runs on.
    pub host: String,
    /// `pgwh_internal.installation.id`: the same for as long as the extension is there.
    pub installation: u128,
}

/// What a body tells beside the event.
#[derive(Clone, Copy, Debug)]
pub struct RenderContext<'a> {
    /// Where the event comes from.
    pub source: &'a Source,
    /// The id of the subscription.
    pub subscription_id: i64,
    /// The name of the subscription.
    pub subscription: &'a str,
    /// The columns it shows.
    pub columns: &'a Shown,
}

/// Which columns a payload shows. Those of the key it always does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Shown {
    /// All.
    #[default]
    All,
    /// Those of these names.
    Only(Vec<String>),
    /// All but those of these names.
    Except(Vec<String>),
}

impl Shown {
    /// Whether the column is shown.
    pub fn shows(&self, column: &Column) -> bool {
        column.is_key
            || match self {
                Shown::All => true,
                Shown::Only(names) => names.contains(&column.name),
                Shown::Except(names) => !names.contains(&column.name),
            }
    }
}
