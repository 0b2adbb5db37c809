//! Pooled connections: an unfinished transaction is not inherited by the next user.

use std::pin::pin;

use futures::poll;
use sqlx::{Connection, Executor, PgConnection};

use crate::harness::db::fresh_database;

#[tokio::test]
async fn a_cancelled_begin_leaves_no_transaction_open() {
    let database = fresh_database().await;
    let run = async |sql: &'static str| {
        let mut db = database.pool.acquire().await.unwrap();
        db.execute(sql).await.unwrap();
    };
    run("create table written (n integer)").await;

    let mut cancelled = 0;
    for _ in 0..20 {
        let mut db = database.pool.acquire().await.unwrap();
        // The first poll sends BEGIN; the wait for its response is cancelled.
        cancelled += i32::from(poll!(pin!(db.begin())).is_pending());
        drop(db);
        run("insert into written values (1)").await;
    }

    assert!(cancelled > 0, "no transaction was cancelled");
    let mut other = PgConnection::connect(&database.url).await.unwrap();
    let written: i64 = sqlx::query_scalar("select count(*) from written")
        .fetch_one(&mut other)
        .await
        .unwrap();
    assert_eq!(
        written, 20,
        "rows written outside a transaction are missing"
    );
}
