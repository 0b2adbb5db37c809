//! Calls: one row is one dial, and at most one request to a carrier.
//!
//! The states of a call are drawn in [`crate::telephony::events`]. Who moves it:
//!
//! - the dialler's [`claim`] makes it (`submitting`), or takes it over from a direct [`request`]
//!   (`queued`), at the [`pacer`]'s pace and in [`fair`] turns; both only with the money for it
//!   held;
//! - the worker that claimed it sends its request once and reports what became of it; what the
//!   carrier says afterwards is written down by the API ([`inbox`]); both move the call through
//!   [`apply`], by the rules of [`transition`];
//! - [`reconcile`] asks the carrier about calls that fell silent, and what it learns goes into
//!   the inbox too;
//! - [`cancel`] ends what is no longer wanted, and [`answer`] is the last fence in front of it;
//! - whoever ends a call appends it to those that `billing/settle.rs` charges.
//!
//! Nobody is rung twice by accident: a row has one live call at a time and a number one live
//! call per organisation (unique indexes), a call is committed before its request leaves, a
//! request is never repeated unless it provably did nothing, and a call whose request has no
//! answer is resolved by evidence or ends as `lost`.
//!
//! Limits on concurrency are counted from live rows, so nothing can leak.

pub mod answer;
pub mod apply;
pub mod cancel;
pub mod claim;
pub mod fair;
pub mod inbox;
pub mod log;
pub mod pacer;
pub mod reconcile;
pub mod request;
mod server_time;
mod take;
pub mod transition;
pub mod urls;
