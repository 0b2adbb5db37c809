pub mod load_shed;
pub mod rate_limit;
pub mod stream_limit;
pub mod token_bucket;
