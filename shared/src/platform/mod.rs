//! Plumbing that knows no feature: ids, time, money, numbers, errors, pages, secrets, files, jobs.
//!
//! Features import from here, never the other way round; `tests/house/floors.rs` checks it.

pub mod clock;
pub mod columns;
pub mod e164;
pub mod error;
pub mod failpoint;
pub mod http;
pub mod ids;
pub mod logging;
pub mod money;
pub mod page;
pub mod privacy;
pub mod queue;
pub mod rlimit;
pub mod secret;
pub mod spreadsheet;
pub mod store;
