//! What calls cost, and what became of the money: prices, usage, exports.
//!
//! The platform has one catalogue of **prices** ([`prices`]), each in force from a moment on.
//! A call is charged once, from the prices that were frozen when it was claimed. **Usage**
//! ([`usage`]) is those charges as their owners see them: what a call cost them, and for the
//! platform alone what it cost the platform and who earned from it. Usage leaves the house as
//! a file ([`export`]).
//!
//! A call's money counts at the moment of its first charge; a correction counts where its call
//! does, so that lists, buckets and totals of the same time say the same.

pub mod export;
pub mod period;
pub mod prices;
pub mod usage;
