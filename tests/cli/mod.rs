//! Commands of `peal-api`, run as an operator runs them.

pub mod bootstrap;
pub mod help;
pub mod operator;
