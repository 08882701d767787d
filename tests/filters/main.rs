//! A subscription gets the changes for which its filter is true.

mod conditions;
mod oracle;
