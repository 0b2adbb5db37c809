//! Test harness: applications, databases, carriers, clients and callers.

pub mod actors;
pub mod app;
pub mod client;
pub mod cluster;
pub mod db;
pub mod digest;
pub mod document;
pub mod example_request;
pub mod members;
pub mod python;
pub mod redis;
pub mod scrape;
pub mod second_api;

use std::time::{Duration, Instant};

use sqlx::PgPool;

use client::TEST_TIMEOUT;

/// Polls `holds` until it returns true, and fails the test when that takes longer than `patience`.
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

/// Repeats a request until it is answered 401, which must happen within a second of `since`.
pub async fn assert_denied_within_a_second<F>(since: Instant, mut ask: impl FnMut() -> F)
where
    F: Future<Output = u16>,
{
    loop {
        let sent = since.elapsed();
        match ask().await {
            401 => return,
            // An overloaded API decides nothing about the credential.
            503 => assert!(sent < TEST_TIMEOUT, "busy"),
            status => assert!(
                status < 500 && sent < Duration::from_secs(1),
                "{status} {sent:?} later"
            ),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until one session of the database blocks another.
pub async fn wait_for_blocked_query(pool: &PgPool) {
    let waiting = "select count(*) from pg_stat_activity
                   where datname = current_database() and cardinality(pg_blocking_pids(pid)) > 0";
    let waits = || async {
        let waiting: i64 = sqlx::query_scalar(waiting)
            .fetch_one(pool)
            .await
            .expect("sessions");
        waiting > 0
    };
    eventually("a query is blocked", TEST_TIMEOUT, waits).await;
}

/// An environment variable of the test run.
pub fn env_setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("set {name} to run these tests"))
}
