//! Calls.

pub mod claim;
pub mod fair;
pub mod pacer;
pub mod transition;
