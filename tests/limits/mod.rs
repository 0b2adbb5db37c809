//! Limits on concurrent calls: by batch and by organisation.

pub mod overload;
pub mod pools;
pub mod rate_limits;

use serde_json::json;

use crate::harness::app::{App, AppOptions};

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_calls_of_a_batch_stay_within_its_size() {
    let app = App::start_with(AppOptions {
        workers: 2,
        ..AppOptions::default()
    })
    .await;
    let batch = app.create_batch(json!({"batch_size": 4})).await;
    app.add_people(&batch, 40).await;
    app.start_batch(&batch).await;
    app.wait_for_status(&batch, "completed").await;
    let oracle = app.carrier.oracle();
    assert_eq!(
        (oracle.accepted, oracle.max_concurrent <= 4),
        (40, true),
        "{}",
        oracle.max_concurrent
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_calls_of_an_organisation_stay_within_its_limit() {
    let app = App::start_with(AppOptions {
        workers: 2,
        ..AppOptions::default()
    })
    .await;
    sqlx::query("update organizations set max_concurrent_calls = 6")
        .execute(&app.context.pool)
        .await
        .unwrap();

    let mut batches = Vec::new();
    for _ in 0..3 {
        let batch = app.create_batch(json!({"batch_size": 100})).await;
        app.add_people(&batch, 20).await;
        app.start_batch(&batch).await;
        batches.push(batch);
    }

    for batch in batches {
        app.wait_for_status(&batch, "completed").await;
    }
    let oracle = app.carrier.oracle();
    assert_eq!(
        (oracle.accepted, oracle.max_concurrent <= 6),
        (60, true),
        "{}",
        oracle.max_concurrent
    );
    app.finish().await;
}
