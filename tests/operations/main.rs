//! Running a server: installation, upgrades, copies and failover, status, health and metrics.

mod clock;
mod copies;
mod failover;
mod health;
mod idle;
mod image;
mod lifecycle;
mod logs;
mod metrics;
mod monitoring;
mod shared_memory;
mod snapshots;
mod status;
mod status_problems;
mod upgrades;
mod workers;
