//! States of a batch, and the result of start, pause, resume and stop in each of them.

use serde_json::{Value, json};

use crate::harness::app::{App, AppOptions};

/// Statuses of start, pause, resume and stop in each state.
const ACTION_STATUSES: [(&str, [u16; 4]); 6] = [
    ("not_started", [200, 409, 409, 409]),
    ("scheduled", [409, 409, 409, 409]),
    ("in_progress", [409, 200, 200, 200]),
    ("paused", [409, 200, 200, 200]),
    ("stopped", [200, 409, 409, 200]),
    ("completed", [409, 409, 409, 409]),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_action_in_every_batch_state_has_its_expected_result() {
    let app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;

    for (status, expected_statuses) in ACTION_STATUSES {
        for (action, expected) in ["start", "pause", "resume", "stop"]
            .into_iter()
            .zip(expected_statuses)
        {
            let batch = app.create_batch(json!({})).await;
            app.add_people(&batch, 1).await;
            sqlx::query(
                "update call_batches b
                 set status = $2, trunk_id = p.trunk_id,
                     launched_at = case when $2 in ('in_progress', 'paused', 'stopped', 'completed') then now() end,
                     completed_at = case when $2 = 'completed' then now() end
                 from phone_numbers p
                 where b.id = $1::uuid and p.id = b.caller_phone_id",
            )
            .bind(&batch)
            .bind(status)
            .execute(&app.context.pool)
            .await
            .unwrap();

            let response = app
                .post(&format!("/api/v1/batch-call/{action}/{batch}"), json!({}))
                .await;
            assert_eq!(
                response.status.as_u16(),
                expected,
                "{action} in {status}: {}",
                response.text
            );

            let after = app.batch_status(&batch).await["batch"]["status"].clone();
            let new_status = match (action, expected) {
                ("start" | "resume", 200) => "in_progress",
                ("pause", 200) => "paused",
                ("stop", 200) => "stopped",
                _ => status,
            };
            assert_eq!(after, new_status, "{action} in {status}");
        }
    }

    sqlx::query("delete from jobs")
        .execute(&app.context.pool)
        .await
        .unwrap();
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_batch_without_open_rows_cannot_be_started() {
    let app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 1).await;

    for change in [
        "update batch_data set status = 'completed'",
        "update call_batches set status = 'stopped'",
    ] {
        sqlx::query(change)
            .execute(&app.context.pool)
            .await
            .unwrap();
    }

    let path = format!("/api/v1/batch-call/start/{batch}");
    let refused = app.post(&path, json!({})).await.expect(409);
    assert_eq!(refused["code"], "batch_completed");

    let path = format!("/api/v1/batch-call/{batch}/readiness");
    let readiness = app.get(&path).await.expect(200);
    assert_eq!(readiness["can_start"], false);
    assert_eq!(
        readiness["blockers"].as_array().map(Vec::len),
        Some(1),
        "{readiness}"
    );
    assert_eq!(readiness["blockers"][0]["message"], refused["detail"]);
    assert_ne!(refused["detail"], Value::Null);
    app.finish().await;
}
