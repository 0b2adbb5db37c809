//! Campaigns: batches of people to call.
//!
//! ```text
//! not_started -> in_progress -> completed        every row has its final status
//!                 |      ^
//!                 v      |
//!                paused (by its owner, or by us with a reason)
//!                 |
//!                 v
//!                stopped -> in_progress            started again while rows are left
//! ```
//!
//! The owner creates a batch, fills it ([`ingest`], [`rows`]), asks whether it could start
//! ([`readiness`]) and starts it ([`lifecycle`]). From
//! there the dialler's claim (`calls/claim.rs`) takes rows and the inbox gives them back; this
//! feature only decides whether rows may be taken. Counts are kept by triggers inside the
//! statements that move rows ([`progress`] reads them), so they cannot drift.
//!
//! A batch whose owner's wallet is empty waits, and is paused in the end ([`starving`]).
//!
//! Rows change only before the start; a running batch is the claim's.

pub mod batches;
pub mod ingest;
pub mod lifecycle;
pub mod progress;
pub mod readiness;
pub mod rows;
pub mod starving;

pub use batches::{Batch, BatchStatus, NewBatch};
