//! Peal from the outside: every feature on a fresh, real database.

mod harness;
mod mail;
mod queue;
