//! What is known of a call when it is over.

use peal_simulator::{Callee, Mix, Span};
use serde_json::json;

use crate::harness::app::{App, Options, PATIENCE, everybody_answers};
use crate::harness::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_told_from_a_person_and_what_was_said_is_recorded() {
    let mut carrier = everybody_answers();
    carrier.behavior.mix = Mix::only(Callee::Machine);
    // The verdict comes while the agent still speaks; our own answer takes call seconds too.
    carrier.behavior.detection_secs = Span::new(0.5, 1.0).expect("a span");
    carrier.speed = 10.0;
    let app = App::with(Options {
        carrier,
        recording: true,
        machine_detection: true,
        ..Options::default()
    })
    .await;
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 5).await;
    app.start_batch(&batch).await;
    let counts = app.wait_for(&batch, "completed").await;
    assert_eq!(counts["completed"], 5);
    app.drain().await;
    let machines =
        "select count(*) from calls where outcome = 'machine' and answered_by = 'machine'";
    let recorded = "select count(*) from calls where recording_url like 'http%'";
    let known = || async { (app.count(machines).await, app.count(recorded).await) == (5, 5) };
    eventually(
        "every call has its verdict and its recording",
        PATIENCE,
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
