//! Campaigns: batches of people to call.
//!
//! ```text
//! not_started -> in_progress -> completed        every row has its final status
//!                 |      ^
//!                 v      |
//!                paused (by its owner, or by Peal with a reason)
//!                 |
//!                 v
//!                stopped -> in_progress            started again while rows are left
//! ```
//!
//! The owner creates a batch, fills it ([`ingest`], [`rows`]), checks its [`readiness`] and
//! starts it ([`lifecycle`]). Then the dialler's claim (`calls/claim.rs`) turns rows into calls,
//! and the end of each call moves its row (`calls/apply.rs`); this feature only decides whether
//! rows may be claimed. Triggers count rows inside the statements that move them ([`progress`]
//! reads the counts), so the counts cannot drift.
//!
//! A batch whose owner has insufficient credit waits, and is paused in the end ([`insufficient_credit`]).
//!
//! Owners change rows only before the start; afterwards only claims and calls do.

pub mod batches;
pub mod ingest;
pub mod insufficient_credit;
pub mod lifecycle;
pub mod progress;
pub mod readiness;
pub mod rows;

pub use batches::{Batch, BatchStatus, NewBatch};
