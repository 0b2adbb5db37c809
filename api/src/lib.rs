//! Who may ask, and in what words: the HTTP API.

mod auth;
mod error;
mod extract;
mod health;
mod server;
mod state;

pub use server::serve;
