//! Direct calls: limits on their variables, and the data recorded about a call.

pub mod callbacks;

use peal_simulator::{CallOutcome, OutcomeMix, SecondsRange};
use serde_json::{Map, Value, json};

use crate::harness::app::{App, AppOptions, TEST_TIMEOUT, carrier_where_all_answer};
use crate::harness::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn machines_are_detected_and_calls_are_recorded() {
    let mut carrier = carrier_where_all_answer();
    carrier.behavior.mix = OutcomeMix::only(CallOutcome::Machine);
    // Detection must end while the agent still speaks; our own answer takes call seconds too.
    carrier.behavior.detection_secs = SecondsRange::new(0.5, 1.0).expect("a span");
    carrier.speed = 10.0;
    let app = App::start_with(AppOptions {
        carrier,
        recording: true,
        machine_detection: true,
        ..AppOptions::default()
    })
    .await;

    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 5).await;
    app.start_batch(&batch).await;
    let counts = app.wait_for_status(&batch, "completed").await;
    assert_eq!(counts["completed"], 5);

    app.drain().await;
    let machines =
        "select count(*) from calls where outcome = 'machine' and answered_by = 'machine'";
    let recorded = "select count(*) from calls where recording_url like 'http%'";
    let known = || async { (app.count(machines).await, app.count(recorded).await) == (5, 5) };
    eventually(
        "every call has its verdict and its recording",
        TEST_TIMEOUT,
        known,
    )
    .await;

    let rows = app
        .get(&format!("/api/v1/batch-call/{batch}/data"))
        .await
        .expect(200);
    assert_eq!(rows["data"][0]["status"], "completed");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_of_a_direct_call_have_the_limits_of_a_row() {
    let app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;

    let path = format!(
        "/api/call/create_call?phoneNumber=%2B12125550142&agent_id={}",
        app.tenant.agent
    );

    let many = |count: usize| -> Value {
        let names = (0..count).map(|n| (format!("v{n}"), json!(n)));
        Value::Object(names.collect::<Map<_, _>>())
    };

    for (values, place) in [
        (many(51), vec!["variable_values"]),
        (
            json!({"name": "x".repeat(2001)}),
            vec!["variable_values", "name"],
        ),
        (json!({"name": "a\0b"}), vec!["variable_values", "name"]),
        (json!({"name": ["Ada"]}), vec!["variable_values", "name"]),
        (json!({"name": {"a": 1}}), vec!["variable_values", "name"]),
        (
            json!({"first name": "Ada"}),
            vec!["variable_values", "first name"],
        ),
        (json!({"1st": "Ada"}), vec!["variable_values", "1st"]),
        (
            json!({"TimeZone": "Asia/Kolkata"}),
            vec!["variable_values", "TimeZone"],
        ),
    ] {
        let refused = app.post(&path, json!({ "variable_values": values })).await;
        let refused = refused.expect(422);
        let loc: Vec<&str> = std::iter::once("body").chain(place).collect();
        assert_eq!(refused["errors"][0]["loc"], json!(loc), "{refused}");
        assert_eq!(refused["errors"].as_array().map(Vec::len), Some(1));
    }

    assert_eq!(app.count("select count(*) from calls").await, 0);

    let mut most = many(50);
    most["v0"] = json!("ä".repeat(2000));
    most["v1"] = Value::Null;
    let body = json!({ "variable_values": most });
    app.post(&path, body).await.expect(202);
    app.drop_calls().await;
    app.finish().await;
}
