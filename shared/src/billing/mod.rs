//! Billing: prices, charges and usage reports of calls.
//!
//! ```text
//! claim:  catalogue in force + the organisation's terms -> price snapshot -> hold
//! end:    carrier's final duration + snapshot -> charge -> ledger
//! ```
//!
//! A call is priced by the catalogue in force when it was claimed ([`price_catalogue`], [`quote`]). Those
//! prices are frozen in a snapshot ([`snapshots`]), which later edits do not change. Workers
//! cache both while they are valid ([`price_cache`]). The settlement ([`settle`]) charges each call
//! once, by its carrier's report, also when reports are duplicated, late or out of order: it
//! checks a call after every event that may change its charge, and corrects a charge by a
//! reversal and a new charge.
//!
//! A call is billed its attempt when the carrier accepted it, and its minutes when it was
//! answered; without billed lines there is no charge. A line costs `quantity x price`, rounded
//! once, half to even; the distributor's markup of its retail price is inside that rounding. The
//! platform gets the remainder after the reseller's share, so the parts always add up.
//!
//! The platform edits its catalogue ([`prices`]). Customers read their charges as [`usage`], as
//! sessions or over a [`period`], and download them as a file ([`export`]). There a call's cost
//! counts at the time of its first charge, corrections included, so that lists, buckets and
//! totals of the same time agree.

mod charge;
pub mod estimate;
pub mod export;
pub mod period;
pub mod price_cache;
pub mod price_catalogue;
pub mod prices;
pub mod quote;
pub mod settle;
pub mod snapshots;
pub mod usage;
pub mod verify;
