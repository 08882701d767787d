//! The journal of events and deliveries, and the gaps in it: after a crash, after the loss of a slot, at the end of retention.

mod crashes;
mod decoder_errors;
mod entries;
mod gaps;
mod gaps_while_disabled;
mod keyless_gaps;
mod slots;
mod table_gaps;
