//! Host names to addresses.

pub mod address_order;
pub mod resolver;
pub mod thread_pool;
