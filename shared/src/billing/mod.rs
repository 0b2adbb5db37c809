//! Billing: what a call costs, who gets it, and what people are told of it.
//!
//! ```text
//! claim:  catalogue in force + the organisation's terms -> price snapshot -> hold
//! end:    carrier's final duration + snapshot -> charge -> ledger
//! ```
//!
//! A call is priced by what was in force when it was claimed ([`book`], [`quote`]); those prices
//! are frozen in a snapshot ([`snapshots`]) and nothing that is edited later touches it; workers
//! remember both while they stay the same ([`tariffs`]). The
//! settlement ([`settle`]) charges each call once, by what its carrier said of it, whatever came
//! twice, late, or in the wrong order: it looks at a call whenever something about it may have
//! changed, and corrects what it charged before by taking it back and charging anew.
//!
//! A call is billed its attempt when the carrier took it, and its minutes when somebody
//! answered; nothing billed is no charge. A line costs `quantity x price`, rounded once, half to
//! even; its retail price has the distributor's markup inside that rounding. What is left when
//! the reseller has its part is the platform's, so the parts always add up.
//!
//! The platform edits its catalogue ([`prices`]). People look at their charges as [`usage`], by
//! themselves or over a [`period`], and take it home as a file ([`export`]). There a call's
//! money counts at the moment of its first charge; a correction counts where its call does, so
//! that lists, buckets and totals of the same time say the same.

pub mod book;
mod charge;
pub mod estimate;
pub mod export;
pub mod period;
pub mod prices;
pub mod quote;
pub mod settle;
pub mod snapshots;
pub mod tariffs;
pub mod usage;
pub mod verify;
