//! Peal from the outside: every feature on a fresh, real database.

mod batches;
mod bootstrap;
mod callbacks;
mod calls;
mod campaign;
mod canary;
mod faults;
mod harness;
mod ingest;
mod limits;
mod mail;
mod pools;
mod queue;
mod states;
mod store;
mod tidy;
mod uploads;
