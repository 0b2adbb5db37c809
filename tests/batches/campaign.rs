//! Batches from their upload to their last call, with faults of carriers and workers.

use peal_simulator::{CallOutcome, CreateRecord, FaultChance, Faults, OutcomeMix};
use peal_worker::Role;
use serde_json::json;

use crate::harness::app::{
    AUTH_TOKEN, App, AppOptions, TEST_TIMEOUT, carrier_where_all_answer, people_csv, phone_number,
};
use crate::harness::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_a_batch_is_called_once() {
    let app = App::start().await;
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 120).await;
    let started = app.start_batch(&batch).await;
    assert_eq!(started["status"], "in_progress");
    assert_eq!(started["member_count"], 120);
    let counts = app.wait_for_status(&batch, "completed").await;
    assert_eq!(counts["completed"], 120);
    assert_eq!(counts["total"], 120);
    let oracle = app.carrier.oracle();
    assert_eq!(oracle.accepted, 120);
    assert!(oracle.rung_twice.is_empty());
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_never_make_two_calls_of_one_row() {
    let app = App::start_with(AppOptions {
        workers: 2,
        cps: 500,
        max_concurrent: 1000,
        ..AppOptions::default()
    })
    .await;
    let batch = app.create_batch(json!({"batch_size": 1000})).await;
    app.add_people(&batch, 2000).await;
    app.start_batch(&batch).await;
    let counts = app.wait_for_status(&batch, "completed").await;
    assert_eq!(counts["completed"], 2000);
    assert_eq!(app.carrier.oracle().accepted, 2000);
    assert_eq!(app.count("select count(*) from calls").await, 2000);
    assert_eq!(
        app.count("select count(distinct worker) from calls").await,
        2
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_outcome_leads_to_its_row_status() {
    let app = App::start().await;
    let batch = app.create_batch(json!({})).await;

    let csv = "to_phonenumber,name\n\
               +12125550000,Answers\n\
               +12125560001,Busy\n\
               +12125560002,Nobody\n\
               +12125560003,Machine\n\
               +12125560004,Invalid\n\
               +12125560005,Declines\n\
               +12125560006,Hangs up\n\
               +12125560007,Congestion\n\
               +12125560008,Unknown\n";
    app.upload(&batch, csv).await;
    app.start_batch(&batch).await;

    let counts = app.wait_for_status(&batch, "completed").await;
    assert_eq!(
        counts,
        json!({"not_started": 0, "calling": 0, "completed": 3, "failed": 4, "no_answer": 2, "total": 9})
    );

    let rows = app
        .get(&format!("/api/v1/batch-call/{batch}/data"))
        .await
        .expect(200);
    let outcome = |n: usize| {
        rows["data"][n]["outcome"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };

    assert_eq!(outcome(1), "busy");
    assert_eq!(outcome(2), "no_answer");
    assert_eq!(outcome(4), "failed");
    assert_eq!(rows["data"][4]["reason"], "invalid_number");
    assert_eq!(outcome(5), "rejected");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_number_is_retried_up_to_max_retries() {
    let app = App::start().await;
    let batch = app
        .create_batch(json!({"max_retries": 2, "retry_delay_seconds": 1}))
        .await;
    app.upload(&batch, "to_phonenumber,name\n+12125560001,Busy\n")
        .await;
    app.start_batch(&batch).await;
    let counts = app.wait_for_status(&batch, "completed").await;
    assert_eq!(counts["no_answer"], 1);
    assert_eq!(app.carrier.oracle().accepted, 3);
    assert_eq!(
        app.count("select max(attempt_no)::bigint from calls").await,
        3
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_starts_launch_a_batch_once() {
    let mut app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;

    let batch = app.create_batch(json!({})).await;
    app.start_worker(&[Role::Ingest]).await;
    app.add_people(&batch, 10).await;

    let (one, two) = tokio::join!(app.start_batch(&batch), app.start_batch(&batch));
    assert_eq!(one["data"]["job_id"], two["data"]["job_id"]);
    assert_eq!(
        app.count("select count(*) from jobs where kind = 'start_batch'")
            .await,
        1
    );

    app.start_worker(&Role::ALL).await;
    app.wait_for_status(&batch, "completed").await;
    assert_eq!(app.carrier.oracle().accepted, 10);

    let again = app
        .post(&format!("/api/v1/batch-call/start/{batch}"), json!({}))
        .await;
    assert_eq!(again.expect(409)["code"], "batch_completed");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_started_batch_without_a_job_is_launched() {
    let mut app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 10).await;
    sqlx::query("update call_batches set status = 'in_progress', started_at = now()")
        .execute(&app.context.pool)
        .await
        .unwrap();
    let jobs = "select count(*) from jobs where kind = 'start_batch'";
    assert_eq!(app.count(jobs).await, 0);
    app.start_worker(&Role::ALL).await;
    app.wait_for_status(&batch, "completed").await;
    assert_eq!(app.carrier.oracle().accepted, 10);
    assert_eq!(app.count(jobs).await, 1);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_stops_dialling_and_resume_continues_it() {
    let app = App::start_with(AppOptions {
        cps: 20,
        ..AppOptions::default()
    })
    .await;

    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 60).await;
    let due = async |sql| {
        sqlx::query(sql)
            .execute(&app.context.pool)
            .await
            .expect("due");
    };

    // Keeps the batch from completing before it is paused.
    due("update batch_data set due_at = now() + interval '1 hour' where row_no > 30").await;

    app.start_batch(&batch).await;
    let dialled = || async { app.carrier.oracle().accepted >= 10 };
    eventually("some calls are made", TEST_TIMEOUT, dialled).await;
    app.post(&format!("/api/v1/batch-call/pause/{batch}"), json!({}))
        .await
        .expect(200);
    app.drain().await;

    let held = app.carrier.oracle().accepted;
    due("update batch_data set due_at = now() where status = 'not_started'").await;
    app.drain().await;
    assert_eq!(app.carrier.oracle().accepted, held, "it is paused");

    let status = app.batch_status(&batch).await;
    assert_eq!(status["batch"]["status"], "paused");
    assert_eq!(status["status_counts"]["not_started"], json!(60 - held));

    app.post(&format!("/api/v1/batch-call/resume/{batch}"), json!({}))
        .await
        .expect(200);
    let counts = app.wait_for_status(&batch, "completed").await;
    assert_eq!(counts["completed"], 60);
    assert_eq!(app.carrier.oracle().accepted, 60);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_cancels_ringing_calls_and_keeps_the_other_rows() {
    let mut carrier = carrier_where_all_answer();
    carrier.behavior.mix = OutcomeMix::only(CallOutcome::NoAnswer);
    carrier.speed = 1.0;
    let app = App::start_with(AppOptions {
        cps: 20,
        carrier,
        ..AppOptions::default()
    })
    .await;

    let batch = app.create_batch(json!({"batch_size": 5})).await;
    app.add_people(&batch, 20).await;

    // Keeps the calls ringing for the whole test.
    sqlx::query("update trunks set ring_timeout_secs = 600")
        .execute(&app.context.pool)
        .await
        .unwrap();

    app.start_batch(&batch).await;
    let ringing = || async {
        app.count("select count(*) from calls where status = 'ringing'")
            .await
            == 5
    };
    eventually("five phones ring", TEST_TIMEOUT, ringing).await;

    app.post(&format!("/api/v1/batch-call/stop/{batch}"), json!({}))
        .await
        .expect(200);
    app.drain().await;

    let cancels = "select count(*) from jobs where kind = 'cancel_calls' and state = 'done'";
    assert_eq!(app.count(cancels).await, 1);
    assert_eq!(
        app.count("select count(*) from calls where outcome = 'canceled'")
            .await,
        5
    );

    let status = app.batch_status(&batch).await;
    assert_eq!(status["batch"]["status"], "stopped");
    assert_eq!(status["status_counts"]["not_started"], 15);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_in_two_batches_is_in_one_call_at_a_time() {
    let app = App::start().await;
    let one = app.create_batch(json!({})).await;
    let two = app.create_batch(json!({})).await;
    app.add_people(&one, 50).await;
    app.add_people(&two, 50).await;
    app.start_batch(&one).await;
    app.start_batch(&two).await;
    app.wait_for_status(&one, "completed").await;
    app.wait_for_status(&two, "completed").await;
    let oracle = app.carrier.oracle();
    assert_eq!(oracle.accepted, 100);
    assert!(oracle.overlaps.is_empty(), "{:?}", oracle.overlaps);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_concurrency_limit_holds() {
    let app = App::start_with(AppOptions {
        max_concurrent: 7,
        workers: 2,
        ..AppOptions::default()
    })
    .await;
    let batch = app.create_batch(json!({"batch_size": 100})).await;
    app.add_people(&batch, 60).await;
    app.start_batch(&batch).await;
    app.wait_for_status(&batch, "completed").await;
    assert!(app.carrier.oracle().max_concurrent <= 7);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pace_is_the_trunks_and_not_more() {
    let app = App::start_with(AppOptions {
        cps: 25,
        workers: 3,
        ..AppOptions::default()
    })
    .await;
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 100).await;
    app.start_batch(&batch).await;
    app.wait_for_status(&batch, "completed").await;
    let oracle = app.carrier.oracle();
    assert!(oracle.worst_window.count <= 25, "{:?}", oracle.worst_window);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_with_a_lost_create_response_are_found_and_not_repeated() {
    let app = App::start().await;
    app.carrier.set_faults(Faults {
        drop_after: FaultChance::next(10),
        ..Faults::default()
    });
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 40).await;
    app.start_batch(&batch).await;
    let counts = app.wait_for_status(&batch, "completed").await;
    assert_eq!(counts["completed"], 40);
    let oracle = app.carrier.oracle();
    assert_eq!((oracle.accepted, oracle.rung_twice.len()), (40, 0));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn create_requests_that_never_arrived_are_lost_and_not_repeated() {
    let app = App::start().await;
    app.carrier.set_faults(Faults {
        drop_before: FaultChance::next(3),
        ..Faults::default()
    });

    let batch = app.create_batch(json!({})).await;
    sqlx::query("update trunks set ring_timeout_secs = 15")
        .execute(&app.context.pool)
        .await
        .unwrap();

    app.add_people(&batch, 10).await;
    app.start_batch(&batch).await;

    let counts = app.wait_for_status(&batch, "completed").await;
    assert_eq!(
        (counts["completed"].clone(), counts["failed"].clone()),
        (json!(7), json!(3))
    );
    assert_eq!(
        app.count("select count(*) from calls where outcome = 'lost'")
            .await,
        3
    );
    assert_eq!(app.carrier.oracle().accepted, 7);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_carrier_that_answers_429_is_slowed_down_and_every_row_is_called() {
    let app = App::start().await;
    app.carrier.set_faults(Faults {
        refuse_429: FaultChance::next(20),
        ..Faults::default()
    });
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 60).await;
    app.start_batch(&batch).await;
    let counts = app.wait_for_status(&batch, "completed").await;
    assert_eq!(counts["completed"], 60);
    assert_eq!(app.carrier.oracle().accepted, 60);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_duplicate_and_reordered_callbacks_lead_to_the_same_result() {
    let app = App::start().await;
    app.carrier.set_faults(Faults {
        callbacks_lost: FaultChance::Rate(0.1),
        callbacks_duplicated: FaultChance::Rate(0.3),
        callbacks_reordered: FaultChance::Rate(0.3),
        early_callback: FaultChance::Rate(0.3),
        ..Faults::default()
    });

    // A call whose final callback was lost is reconciled a minute after its ring time. The
    // database's clock cannot be moved, so such calls are aged instead.
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 100).await;
    app.start_batch(&batch).await;

    let silence = async || {
        let oracle = app.carrier.oracle();
        // Once the carrier has no live call left, no callback will follow.
        if oracle.accepted == 100 && oracle.live == 0 {
            sqlx::query(
                "update calls set changed_at = changed_at - interval '10 minutes', check_at = null
                 where status in ('accepted', 'dialing', 'ringing', 'in_progress')
                   and changed_at > now() - interval '5 minutes'
                   and changed_at < now() - interval '2 seconds'",
            )
            .execute(&app.context.pool)
            .await
            .unwrap();
        }
    };

    let counts = app
        .wait_for_status_while(&batch, "completed", silence)
        .await;
    assert_eq!(counts["completed"], 100);
    assert_eq!(app.carrier.oracle().accepted, 100);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trunk_that_the_carrier_refuses_is_paused_and_no_row_fails() {
    let app = App::start().await;
    sqlx::query("update trunks set account_id = 'XX'")
        .execute(&app.context.pool)
        .await
        .unwrap();

    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 5).await;
    app.start_batch(&batch).await;

    let paused = || async {
        app.count("select count(*) from trunks where status = 'paused'")
            .await
            == 1
    };
    eventually("the trunk is paused", TEST_TIMEOUT, paused).await;

    app.post(&format!("/api/v1/batch-call/pause/{batch}"), json!({}))
        .await
        .expect(200);
    app.drain().await;

    let counts = app.batch_status(&batch).await["status_counts"].clone();
    assert_eq!(counts["not_started"], 5);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_batch_does_not_delay_another_tenants_batch() {
    let app = App::start_with(AppOptions {
        cps: 50,
        ..AppOptions::default()
    })
    .await;

    // Both organisations use one trunk of the platform.
    let place = format!("trunks/platform/{}/credentials", app.tenant.trunk);
    let secret = json!({"password": AUTH_TOKEN}).to_string();
    let sealed = app.context.config.keys.seal(&place, secret.as_bytes());
    sqlx::query("update trunks set org_id = null, credentials = $1")
        .bind(sealed.unwrap())
        .execute(&app.context.pool)
        .await
        .unwrap();

    let other = app.create_tenant("Other").await;
    sqlx::query(
        "update phone_numbers set trunk_id = $1, phone_number = '+12125550111' where org_id = $2",
    )
    .bind(app.tenant.trunk)
    .bind(other.org)
    .execute(&app.context.pool)
    .await
    .unwrap();

    let big = app.create_batch(json!({})).await;
    app.add_people(&big, 1_000).await;
    app.start_batch(&big).await;
    let under_way = || async { app.carrier.oracle().accepted >= 20 };
    eventually("the big batch has begun", TEST_TIMEOUT, under_way).await;

    let small = TenantBatch {
        app: &app,
        tenant: &other,
    };
    let id = small.run(25).await;
    let status = small.status(&id).await;
    assert_eq!(status["status_counts"]["completed"], 25);

    app.post(&format!("/api/v1/batch-call/stop/{big}"), json!({}))
        .await
        .expect(200);
    // Both batches were served in turns, except for rows claimed before.
    let log = app.carrier.creates();

    let is_small = |create: &CreateRecord| create.from == "+12125550111";
    let first = log.iter().position(is_small).expect("a call");
    let last = log.iter().rposition(is_small).expect("a call");
    assert!(first < 600, "the small batch waited for {first} calls");

    let between = log[first..=last].iter().filter(|create| !is_small(create));
    let between = between.count();
    assert!(
        between <= 50,
        "{between} calls of the big batch came between"
    );
    app.finish().await;
}

/// Client for the batch of another tenant.
struct TenantBatch<'a> {
    app: &'a App,
    tenant: &'a crate::harness::app::Tenant,
}

impl TenantBatch<'_> {
    async fn send(
        &self,
        method: reqwest::Method,
        path: &str,
        body: serde_json::Value,
    ) -> serde_json::Value {
        let request = self.app.request_as(self.tenant, method, path).json(&body);
        let answer = crate::harness::app::send_request(request).await;
        assert!(answer.status.is_success(), "{}", answer.text);
        answer.json()
    }

    async fn status(&self, id: &str) -> serde_json::Value {
        let path = format!("/api/v1/batch-call/{id}/status");
        self.send(reqwest::Method::GET, &path, json!({})).await["data"].clone()
    }

    async fn run(&self, people: u32) -> String {
        let created = self
            .send(
                reqwest::Method::POST,
                "/api/v1/batch-call/create",
                json!({"caller_phone_id": self.tenant.phone, "agent_id": self.tenant.agent, "batch_name": "Small",
                       "variable_names": ["name"], "batch_size": 100}),
            )
            .await;

        let id = created["data"]["id"].as_str().unwrap().to_owned();
        let records: Vec<_> = (0..people)
            .map(|n| json!({"to_phonenumber": phone_number(20_000 + n), "name": "Somebody"}))
            .collect();

        let path = format!("/api/v1/batch-call/upload-json/{id}");

        self.send(reqwest::Method::POST, &path, json!({ "records": records }))
            .await;
        self.send(
            reqwest::Method::POST,
            &format!("/api/v1/batch-call/start/{id}"),
            json!({}),
        )
        .await;

        let done = || async { self.status(&id).await["batch"]["status"] == "completed" };
        eventually("the small batch completes", TEST_TIMEOUT, done).await;
        id
    }
}

#[test]
fn test_phone_numbers_are_valid() {
    for line in people_csv(20_000).lines().skip(1) {
        let number = line.split(',').next().unwrap();
        peal_shared::platform::e164::E164::parse(number, None).unwrap();
    }
}
