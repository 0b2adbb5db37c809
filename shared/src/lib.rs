//! Domain of Peal: one folder or file per feature, its SQL and its rules together.
//!
//! The rules hold for every caller and at any time. The API decides on access and the wire format,
//! the worker on timing and pace.

pub mod access;
pub mod agents;
pub mod analysis;
pub mod api_keys;
pub mod audit;
pub mod auth;
pub mod billing;
pub mod caller_numbers;
pub mod calls;
pub mod campaigns;
pub mod catalog;
pub mod config;
pub mod context;
pub mod earnings;
pub mod feature_flags;
pub mod idempotency;
pub mod mail;
pub mod metrics;
pub mod orgs;
pub mod outbound;
pub mod platform;
pub mod telemetry_server;
pub mod telephony;
pub mod tools;
pub mod traces;
pub mod trunks;
pub mod users;
pub mod voices;
pub mod wallets;
pub mod workflows;

pub use platform::error::{Error, Result};
