//! Unfunded batches: a batch whose owner has no credit waits, is paused, and resumes after a
//! top-up.

use peal_shared::platform::money::Usd;
use reqwest::Method;
use serde_json::{Value, json};

use super::{execute_sql, paying_user, set_prices, top_up};
use crate::harness::app::{App, AppOptions, TEST_TIMEOUT, phone_number, send_request};
use crate::harness::eventually;

const BATCH_PATH: &str = "/api/v1/batch-call";

/// An app whose user has credit for `calls` calls of a dollar.
async fn app_with_credit_for(calls: i64) -> App {
    let app = App::start_with(AppOptions {
        credit: Usd::dollars(calls),
        ..AppOptions::default()
    })
    .await;
    set_prices(&app, "1", "0").await;
    app
}

/// Starts a batch of ten rows and waits until the credit is spent.
async fn start_unfunded_batch(app: &App, extra: Value) -> String {
    let batch = app.create_batch(extra).await;
    app.add_people(&batch, 10).await;
    app.start_batch(&batch).await;
    let is_unfunded = || async {
        let sql = "select count(*) from call_batches where starved_reason = 'insufficient_credits'";
        app.count(sql).await == 1 && app.count("select count(*) from calls where live").await == 0
    };
    eventually("the batch is unfunded", TEST_TIMEOUT, is_unfunded).await;
    batch
}

/// Ages the shortage past the time after which a batch is paused.
async fn age_shortage(app: &App) {
    execute_sql(
        app,
        "update call_batches set starved_since = starved_since - interval '30 seconds' where starved_since is not null",
    )
    .await;
}

async fn waiting_reason(app: &App, batch: &str) -> Value {
    let path = format!("{BATCH_PATH}/{batch}/events");
    let mut events = app
        .request(Method::GET, &path)
        .send()
        .await
        .expect("a stream");
    let mut received = String::new();
    while let Some(chunk) = events.chunk().await.expect("a chunk") {
        received.push_str(&String::from_utf8_lossy(&chunk));
        let data = received.lines().find_map(|line| line.strip_prefix("data:"));
        if let Some(data) = data
            && received.contains("\n\n")
        {
            let snapshot: Value = serde_json::from_str(data.trim()).expect("json");
            return snapshot["waiting"].clone();
        }
    }
    panic!("the stream ended: {received}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfunded_batch_is_paused_and_resumes_after_a_top_up() {
    let app = app_with_credit_for(3).await;
    let batch = start_unfunded_batch(&app, json!({"auto_resume": true})).await;
    let reasons = "select count(*) from batch_data where status = 'not_started' and reason = 'insufficient_credits'";
    assert!(app.count(reasons).await >= 1);
    assert_eq!(app.count("select count(*) from calls").await, 3);
    let status = app.batch_status(&batch).await;
    assert_eq!(status["batch"]["status"], "in_progress");
    assert_eq!(
        status["batch"]["status_reason_code"],
        "insufficient_credits"
    );

    age_shortage(&app).await;
    app.wait_for_status(&batch, "paused").await;
    let status = app.batch_status(&batch).await;
    assert_eq!(
        status["batch"]["status_reason_code"],
        "insufficient_credits"
    );
    // Recently started calls hide the waiting reason.
    execute_sql(
        &app,
        "update calls set created_at = created_at - interval '1 minute'",
    )
    .await;
    let waiting_reason = waiting_reason(&app, &batch).await;
    assert_eq!(
        waiting_reason["code"], "insufficient_credits",
        "{waiting_reason}"
    );
    assert_eq!(app.count("select count(*) from calls").await, 3);

    top_up(&app, Usd::dollars(7)).await;
    let counts = app.wait_for_status(&batch, "completed").await;
    assert_eq!(counts["completed"], 10);
    assert_eq!(app.count(reasons).await, 0);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_without_auto_resume_stays_paused_after_a_top_up() {
    let app = app_with_credit_for(3).await;
    let batch = start_unfunded_batch(&app, json!({})).await;
    age_shortage(&app).await;
    app.wait_for_status(&batch, "paused").await;
    let resume = format!("{BATCH_PATH}/resume/{batch}");
    let refused = app.post(&resume, json!({})).await.expect(402);
    assert_eq!(refused["code"], "insufficient_credits");
    top_up(&app, Usd::dollars(7)).await;
    // Twice as long as an automatic resume takes.
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    assert_eq!(app.batch_status(&batch).await["batch"]["status"], "paused");
    app.post(&resume, json!({})).await.expect(200);
    let counts = app.wait_for_status(&batch, "completed").await;
    assert_eq!(counts["completed"], 10);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_paused_by_its_owner_while_unfunded_stays_paused() {
    let app = app_with_credit_for(2).await;
    let batch = start_unfunded_batch(&app, json!({"auto_resume": true})).await;
    age_shortage(&app).await;
    app.wait_for_status(&batch, "paused").await;
    let paused = app
        .post(&format!("{BATCH_PATH}/pause/{batch}"), json!({}))
        .await;
    let paused = paused.expect(200);
    assert_eq!(paused["data"]["status_reason_code"], Value::Null);
    top_up(&app, Usd::dollars(8)).await;
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    assert_eq!(app.batch_status(&batch).await["batch"]["status"], "paused");
    app.post(&format!("{BATCH_PATH}/stop/{batch}"), json!({}))
        .await
        .expect(200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_credit_nothing_is_started() {
    let app = app_with_credit_for(0).await;
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 2).await;
    let readiness = app
        .get(&format!("{BATCH_PATH}/{batch}/readiness"))
        .await
        .expect(200);
    assert_eq!(readiness["can_start"], false);
    assert_eq!(readiness["blockers"][0]["code"], "insufficient_credits");
    let refused = app
        .post(&format!("{BATCH_PATH}/start/{batch}"), json!({}))
        .await
        .expect(402);
    assert_eq!(refused["code"], "insufficient_credits");
    let path = format!(
        "/api/call/create_call?phoneNumber=%2B{}&agent_id={}",
        phone_number(9).trim_start_matches('+'),
        app.tenant.agent
    );
    let refused = send_request(app.request(Method::POST, &path).json(&json!({})))
        .await
        .expect(402);
    assert_eq!(refused["code"], "insufficient_credits");
    assert_eq!(app.count("select count(*) from calls").await, 0);

    top_up(&app, Usd::dollars(5)).await;
    let (_, wallet) = paying_user(&app).await;
    execute_sql(
        &app,
        &format!("update wallets set cap_micros = 500000 where id = '{wallet}'"),
    )
    .await;
    let refused = app
        .post(&format!("{BATCH_PATH}/start/{batch}"), json!({}))
        .await
        .expect(402);
    assert_eq!(refused["code"], "monthly_cap_reached");
    execute_sql(&app, "update wallets set cap_micros = null").await;
    app.start_batch(&batch).await;
    app.wait_for_status(&batch, "completed").await;
    app.finish().await;
}
