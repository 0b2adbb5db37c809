//! Peal from the outside: every feature on a fresh, real database.

mod batches;
mod callbacks;
mod campaign;
mod faults;
mod harness;
mod ingest;
mod mail;
mod queue;
mod tidy;
mod uploads;
