//! Limits of one endpoint or host: concurrency, rate, retries, circuit breaker.

pub mod circuit_breaker;
pub mod concurrency_window;
pub mod host_limits;
pub mod latency_histogram;
pub mod rate_limiter;
pub mod retry_schedule;
