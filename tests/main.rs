//! Tests of Peal from the outside: every feature on a fresh, real database.

mod agents;
mod audit_log;
mod auth;
mod batches;
mod billing;
mod caller_numbers;
mod calls;
mod cli;
mod faults;
mod harness;
mod house;
mod http;
mod ingest;
mod limits;
mod money;
mod orgs;
mod platform;
mod purse;
mod queue;
mod tools;
mod trunks;
mod voices;
mod wallets;
mod workflows;
