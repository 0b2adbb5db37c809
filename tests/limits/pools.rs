//! Connections that are shared: nobody inherits what another left halfway.

use std::pin::pin;

use futures::poll;
use sqlx::{Connection, Executor, PgConnection};

use crate::harness::db::fresh_database;

#[tokio::test]
async fn whoever_stops_halfway_into_a_transaction_leaves_none_behind() {
    let database = fresh_database().await;
    let run = async |sql: &'static str| {
        let mut db = database.pool.acquire().await.unwrap();
        db.execute(sql).await.unwrap();
    };
    run("create table written (n integer)").await;
    let mut halves = 0;
    for _ in 0..20 {
        let mut db = database.pool.acquire().await.unwrap();
        // The first step sends BEGIN; what is given up is the wait for the answer.
        halves += i32::from(poll!(pin!(db.begin())).is_pending());
        drop(db);
        run("insert into written values (1)").await;
    }
    assert!(halves > 0, "nobody stopped halfway");
    let mut other = PgConnection::connect(&database.url).await.unwrap();
    let seen: i64 = sqlx::query_scalar("select count(*) from written")
        .fetch_one(&mut other)
        .await
        .unwrap();
    assert_eq!(seen, 20, "what is written without a transaction is there");
}
