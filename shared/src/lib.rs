//! Domain of Peal: one folder or file per feature, its SQL and its rules together.
//!
//! The rules hold for every caller and at any time. The API decides on access and the wire format,
//! the worker on timing and pace.

pub mod access;
pub mod agents;
pub mod analysis;
pub mod api_keys;
pub mod audit;
pub mod bells;
pub mod billing;
pub mod calls;
pub mod campaigns;
pub mod clock;
mod columns;
pub mod config;
pub mod context;
pub mod earnings;
pub mod egress;
pub mod error;
pub mod fault;
pub mod feature_flags;
pub mod http;
pub mod idempotency;
pub mod ids;
pub mod logging;
pub mod mail;
pub mod metrics;
pub mod money;
pub mod noises;
pub mod open_files;
pub mod orgs;
pub mod page;
pub mod phone;
pub mod phones;
pub mod privacy;
pub mod providers;
pub mod queue;
pub mod secret;
pub mod sign_in;
pub mod spreadsheet;
pub mod store;
pub mod telephony;
pub mod tools;
pub mod traces;
pub mod trunks;
pub mod users;
pub mod voices;
pub mod wallets;
pub mod workflows;

pub use error::{Error, Result};
