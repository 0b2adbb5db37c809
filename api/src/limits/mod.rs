//! Limits that keep one client from harming others: load shedding, rate limits, open streams.

pub mod auth_limits;
pub mod load_shed;
pub mod rate_limit;
pub mod stream_limit;
pub mod token_bucket;
