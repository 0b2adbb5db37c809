//! Calls.

pub mod answer;
pub mod apply;
pub mod cancel;
pub mod claim;
pub mod fair;
pub mod inbox;
pub mod pacer;
pub mod reconcile;
pub mod request;
pub mod transition;
pub mod urls;
