//! When and how fast things happen.

pub mod jobs;
pub mod queues;
