//! Calls: one row is one dial, and at most one request to a carrier.
//!
//! The diagram of a call's states is in [`crate::telephony::events`]. These parts move a call:
//!
//! - the dialler's [`claim`] inserts it (`submitting`), or takes it over from a direct [`request`]
//!   (`queued`), at the [`pacer`]'s pace and in [`fair`] turns; both only with the money for it
//!   held;
//! - the worker that claimed it sends its request once and reports the result; the API stores
//!   the carrier's later events ([`events`]); both move the call through [`apply`], by the rules
//!   of [`transition`];
//! - [`reconcile`] asks the carrier about calls without recent events, and appends the answers
//!   to the inbox too;
//! - [`cancel`] ends unwanted calls, and [`answer`] is the last fence before a person hears one;
//! - every end of a call appends it to those that `billing/settle.rs` charges.
//!
//! No person is called twice by accident: a row has one live call at a time and a number one live
//! call per organisation (unique indexes), a call is committed before its request is sent, a
//! request is never repeated unless it provably did nothing, and a call whose request has no
//! answer is resolved by evidence or ends as `lost`.
//!
//! Concurrency limits are counted from live rows, so a crash leaks nothing.

pub mod answer;
pub mod apply;
pub mod cancel;
pub mod claim;
mod claim_rows;
pub mod events;
pub mod fair;
pub mod log;
pub mod reconcile;
pub mod request;
mod server_time;
pub mod transition;
pub mod urls;
