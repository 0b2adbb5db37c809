//! The HTTP API: routes, authentication, limits and error responses.

mod agents;
mod analysis;
mod audit_log;
mod auth;
mod batches;
mod billing;
mod callbacks;
mod caller_numbers;
mod calls;
mod catalog;
pub mod cli;
mod docs;
mod health;
mod http;
mod limits;
mod orgs;
mod removed_routes;
mod server;
mod state;
mod tools;
mod trunks;
mod wallets;
mod workflows;

pub use server::{document, listen, serve, serve_routes};
