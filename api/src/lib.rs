//! Who may ask, and in what words: the HTTP API.

mod auth;
mod batch_events;
mod batch_rows;
mod batches;
pub mod bootstrap;
mod callbacks;
mod change;
mod connections;
mod direct_calls;
mod envelope;
mod error;
mod extract;
mod health;
mod inbox;
mod measure;
mod new_batch;
mod openapi;
mod request_key;
mod server;
mod shed;
mod state;
mod streams;
mod upload_body;
mod uploads;

pub use server::{listen, serve};
