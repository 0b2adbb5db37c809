//! The states of a batch and what each of its buttons does in them.

use serde_json::{Value, json};

use crate::harness::app::{App, AppOptions};

/// What start, pause, resume and stop answer in each state.
const TABLE: [(&str, [u16; 4]); 6] = [
    ("not_started", [200, 409, 409, 409]),
    ("scheduled", [409, 409, 409, 409]),
    ("in_progress", [409, 200, 200, 200]),
    ("paused", [409, 200, 200, 200]),
    ("stopped", [200, 409, 409, 200]),
    ("completed", [409, 409, 409, 409]),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_button_does_in_every_state_what_it_should() {
    let app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;
    for (status, answers) in TABLE {
        for (verb, expected) in ["start", "pause", "resume", "stop"]
            .into_iter()
            .zip(answers)
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
            let answer = app
                .post(&format!("/api/v1/batch-call/{verb}/{batch}"), json!({}))
                .await;
            assert_eq!(
                answer.status.as_u16(),
                expected,
                "{verb} in {status}: {}",
                answer.text
            );
            let after = app.batch_status(&batch).await["batch"]["status"].clone();
            let becomes = match (verb, expected) {
                ("start" | "resume", 200) => "in_progress",
                ("pause", 200) => "paused",
                ("stop", 200) => "stopped",
                _ => status,
            };
            assert_eq!(after, becomes, "{verb} in {status}");
        }
    }
    sqlx::query("delete from jobs")
        .execute(&app.context.pool)
        .await
        .unwrap();
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_batch_that_has_called_everybody_does_not_start_again() {
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
