//! Plumbing from the outside: store, mail, metrics, traces, privacy, database roles.

pub mod database_roles;
pub mod mail;
pub mod metrics;
pub mod privacy;
pub mod store;
pub mod traces;
