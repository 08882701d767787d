//! What is counted, and how it is told to those who collect metrics. Pure: no Postgres, no clock.

mod collect;
mod counters;
mod families;
mod histogram;
mod openmetrics;
mod snapshot;

pub use self::collect::{Sample, Sink, tell};
pub use self::counters::{Tally, Totals};
pub use self::families::{FAMILIES, Family, Of};
pub use self::histogram::{Buckets, Histogram};
pub use self::openmetrics::Text;
pub use self::snapshot::{
    BreakerState, DatabaseFigures, Scrape, Standing, SubscriptionFigures, WorkerFigures,
};
