//! A batch whose owner has no money waits, is paused, and goes on when there is some.

use peal_shared::platform::money::Usd;
use reqwest::Method;
use serde_json::{Value, json};

use super::{charge, payer, run, top_up};
use crate::harness::app::{App, AppOptions, TEST_TIMEOUT, phone_number, send_request};
use crate::harness::eventually;

const BASE: &str = "/api/v1/batch-call";

/// An app whose user can pay so many calls of a dollar.
async fn with_calls(calls: i64) -> App {
    let app = App::start_with(AppOptions {
        credit: Usd::dollars(calls),
        ..AppOptions::default()
    })
    .await;
    charge(&app, "1", "0").await;
    app
}

/// Starts a batch of ten people and waits until it has spent all there is.
async fn starving(app: &App, extra: Value) -> String {
    let batch = app.create_batch(extra).await;
    app.add_people(&batch, 10).await;
    app.start_batch(&batch).await;
    let starves = || async {
        let sql = "select count(*) from call_batches where starved_reason = 'insufficient_credits'";
        app.count(sql).await == 1 && app.count("select count(*) from calls where live").await == 0
    };
    eventually("the batch starves", TEST_TIMEOUT, starves).await;
    batch
}

/// Makes the starving longer than a batch is given.
async fn half_a_minute_later(app: &App) {
    run(
        app,
        "update call_batches set starved_since = starved_since - interval '30 seconds' where starved_since is not null",
    )
    .await;
}

async fn waiting(app: &App, batch: &str) -> Value {
    let path = format!("{BASE}/{batch}/events");
    let mut events = app
        .request(Method::GET, &path)
        .send()
        .await
        .expect("a stream");
    let mut seen = String::new();
    while let Some(chunk) = events.chunk().await.expect("a chunk") {
        seen.push_str(&String::from_utf8_lossy(&chunk));
        let data = seen.lines().find_map(|line| line.strip_prefix("data:"));
        if let Some(data) = data
            && seen.contains("\n\n")
        {
            let snapshot: Value = serde_json::from_str(data.trim()).expect("json");
            return snapshot["waiting"].clone();
        }
    }
    panic!("the stream ended: {seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_starving_batch_is_paused_and_resumes_by_itself_when_money_comes() {
    let app = with_calls(3).await;
    let batch = starving(&app, json!({"auto_resume": true})).await;
    let reasons = "select count(*) from batch_data where status = 'not_started' and reason = 'insufficient_credits'";
    assert!(app.count(reasons).await >= 1);
    assert_eq!(app.count("select count(*) from calls").await, 3);
    let status = app.batch_status(&batch).await;
    assert_eq!(status["batch"]["status"], "in_progress");
    assert_eq!(
        status["batch"]["status_reason_code"],
        "insufficient_credits"
    );

    half_a_minute_later(&app).await;
    app.wait_for_status(&batch, "paused").await;
    let status = app.batch_status(&batch).await;
    assert_eq!(
        status["batch"]["status_reason_code"],
        "insufficient_credits"
    );
    // While calls were started lately nobody asks why none are.
    run(
        &app,
        "update calls set created_at = created_at - interval '1 minute'",
    )
    .await;
    let why = waiting(&app, &batch).await;
    assert_eq!(why["code"], "insufficient_credits", "{why}");
    assert_eq!(app.count("select count(*) from calls").await, 3);

    top_up(&app, Usd::dollars(7)).await;
    let counts = app.wait_for_status(&batch, "completed").await;
    assert_eq!(counts["completed"], 10);
    assert_eq!(app.count(reasons).await, 0);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_was_not_asked_to_waits_for_its_owner() {
    let app = with_calls(3).await;
    let batch = starving(&app, json!({})).await;
    half_a_minute_later(&app).await;
    app.wait_for_status(&batch, "paused").await;
    let resume = format!("{BASE}/resume/{batch}");
    let refused = app.post(&resume, json!({})).await.expect(402);
    assert_eq!(refused["code"], "insufficient_credits");
    top_up(&app, Usd::dollars(7)).await;
    // Twice as long as it takes one that is to go on by itself.
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    assert_eq!(app.batch_status(&batch).await["batch"]["status"], "paused");
    app.post(&resume, json!({})).await.expect(200);
    let counts = app.wait_for_status(&batch, "completed").await;
    assert_eq!(counts["completed"], 10);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_its_owner_pauses_while_it_starves_stays_paused() {
    let app = with_calls(2).await;
    let batch = starving(&app, json!({"auto_resume": true})).await;
    half_a_minute_later(&app).await;
    app.wait_for_status(&batch, "paused").await;
    let paused = app.post(&format!("{BASE}/pause/{batch}"), json!({})).await;
    let paused = paused.expect(200);
    assert_eq!(paused["data"]["status_reason_code"], Value::Null);
    top_up(&app, Usd::dollars(8)).await;
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    assert_eq!(app.batch_status(&batch).await["batch"]["status"], "paused");
    app.post(&format!("{BASE}/stop/{batch}"), json!({}))
        .await
        .expect(200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_money_nothing_is_started() {
    let app = with_calls(0).await;
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 2).await;
    let readiness = app
        .get(&format!("{BASE}/{batch}/readiness"))
        .await
        .expect(200);
    assert_eq!(readiness["can_start"], false);
    assert_eq!(readiness["blockers"][0]["code"], "insufficient_credits");
    let refused = app
        .post(&format!("{BASE}/start/{batch}"), json!({}))
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
    let (_, wallet) = payer(&app).await;
    run(
        &app,
        &format!("update wallets set cap_micros = 500000 where id = '{wallet}'"),
    )
    .await;
    let refused = app
        .post(&format!("{BASE}/start/{batch}"), json!({}))
        .await
        .expect(402);
    assert_eq!(refused["code"], "monthly_cap_reached");
    run(&app, "update wallets set cap_micros = null").await;
    app.start_batch(&batch).await;
    app.wait_for_status(&batch, "completed").await;
    app.finish().await;
}
