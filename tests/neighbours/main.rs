//! Other users of the server, its log and its tables are not disturbed.

mod audit;
mod databases;
mod dumps;
mod extensions;
mod locks;
mod origins;
mod other_nodes;
mod replication;
