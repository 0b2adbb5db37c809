//! What tests stand on.

pub mod app;
pub mod beside;
pub mod cast;
pub mod client;
pub mod db;
pub mod digest;
pub mod document;
pub mod knock;
pub mod members;
pub mod plant;
pub mod python;
pub mod redis;
pub mod scrape;

use std::time::{Duration, Instant};

/// Waits until `holds` answers true, and fails the test when it does not within `patience`.
pub async fn eventually<F>(what: &str, patience: Duration, mut holds: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    let deadline = Instant::now() + patience;
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A setting of the test run.
pub fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("set {name} to run these tests"))
}
