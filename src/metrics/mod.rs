//! What is counted, and how it is told to those who collect metrics. Pure: no Postgres, no clock.

mod families;
mod figures;
mod histogram;
mod tally;
mod telling;
mod text;

pub use families::{FAMILIES, Family, Of};
pub use figures::{BreakerState, DatabaseFigures, Scrape, Standing, SubscriptionFigures, WorkerFigures};
pub use histogram::{Buckets, Histogram};
pub use tally::{Tally, Totals};
pub use telling::{Sample, Sink, tell};
pub use text::Text;
