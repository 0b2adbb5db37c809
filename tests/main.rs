//! Peal from the outside: every feature on a fresh, real database.

mod batches;
mod bootstrap;
mod callbacks;
mod calls;
mod campaign;
mod canary;
mod changes;
mod faults;
mod harness;
mod ingest;
mod limits;
mod mail;
mod metrics;
mod overload;
mod pools;
mod queue;
mod states;
mod store;
mod tidy;
mod traces;
mod uploads;
