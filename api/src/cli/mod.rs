//! Commands of `peal-api` besides serving.
//!
//! - [`bootstrap`] creates all that a first campaign needs.
//! - [`admin`] is the one place for what an operator does by hand: `peal-api admin <noun> <verb>`.
//!   Workers take no commands.
//!
//! A command connects to the database with the settings of the API and needs no session: its
//! settings are the permission to act for the platform. Results are JSON, one object per line, on standard
//! output; a refused or failed command prints the reason on standard error and exits with code 1.

pub mod admin;
pub mod bootstrap;
pub mod operator;

use serde::Serialize;

/// Prints one JSON object per line.
fn print_lines<T: Serialize>(lines: impl IntoIterator<Item = T>) -> anyhow::Result<()> {
    for line in lines {
        println!("{}", serde_json::to_string(&line)?);
    }
    Ok(())
}
