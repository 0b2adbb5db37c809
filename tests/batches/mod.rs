//! The batch-call routes of the HTTP contract: envelopes, statuses, errors.

pub mod batch_states;
pub mod campaign;
pub mod event_streams;
pub mod upload_keys;
pub mod uploads;

use futures::StreamExt;
use peal_shared::trunks;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::app::{
    App, AppOptions, JWT_SECRET, TEST_TIMEOUT, Tenant, people_csv, phone_number, send_request,
};
use crate::harness::eventually;

const BATCHES: &str = "/api/v1/batch-call";

async fn without_workers() -> App {
    App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_created_listed_changed_and_deleted() {
    let app = without_workers().await;
    let created = app
        .post(
            &format!("{BATCHES}/create"),
            json!({"caller_phone_id": app.tenant.phone, "agent_id": app.tenant.agent, "batch_name": "March"}),
        )
        .await
        .expect(201);
    assert_eq!(created["success"], true);

    let batch = &created["data"];
    assert_eq!(
        (
            &batch["status"],
            &batch["batch_size"],
            &batch["workflow_id"]
        ),
        (&json!("not_started"), &json!(1), &Value::Null)
    );
    assert_eq!(batch.get("call_flow_id"), Some(&Value::Null));
    let id = batch["id"].as_str().unwrap();

    for path in [
        "/me".to_owned(),
        "/browse".to_owned(),
        format!("/user/{}", batch["user_id"].as_str().unwrap()),
    ] {
        let page = app.get(&format!("{BATCHES}{path}")).await.expect(200);
        assert_eq!(page["data"]["total"], 1, "{path}");
        assert_eq!(page["data"]["items"][0]["id"], id, "{path}");
    }

    let changed = send_request(
        app.request(Method::PATCH, &format!("{BATCHES}/{id}/variables"))
            .json(&json!({"variable_names": ["name", "city"]})),
    )
    .await
    .expect(200);
    assert_eq!(changed["data"]["variable_names"], json!(["name", "city"]));

    let template = app.get(&format!("{BATCHES}/template/{id}")).await;
    assert_eq!(template.text.trim(), "to_phonenumber,name,city");
    let status = app.get(&format!("{BATCHES}/{id}/status")).await.expect(200);
    assert_eq!(
        status["data"]["status_counts"],
        json!({"not_started": 0, "calling": 0, "completed": 0, "failed": 0, "no_answer": 0, "total": 0})
    );

    send_request(app.request(Method::DELETE, &format!("{BATCHES}/{id}")))
        .await
        .expect(200);
    let gone = app.get(&format!("{BATCHES}/{id}")).await.expect(404);
    assert_eq!(gone["detail"], "Batch not found");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_batch_is_refused_with_the_field() {
    let app = without_workers().await;
    let good = json!({"caller_phone_id": app.tenant.phone, "agent_id": app.tenant.agent, "batch_name": "March"});

    let cases = [
        (json!({"batch_name": ""}), 422, "batch_name"),
        (json!({"batch_size": 0}), 422, "batch_size"),
        (json!({"status": "completed"}), 422, "status"),
        (
            json!({"variable_names": ["ok", "ok"]}),
            422,
            "variable_names",
        ),
        (
            json!({"variable_names": ["to_phonenumber"]}),
            422,
            "variable_names",
        ),
        (json!({"max_retries": 6}), 422, "max_retries"),
        (
            json!({"default_country": "Atlantis"}),
            422,
            "default_country",
        ),
        (
            json!({"caller_phone_id": "not an id"}),
            422,
            "caller_phone_id",
        ),
        (json!({"balance": 1_000_000}), 422, "balance"),
        (json!({"agent_id": null}), 400, "agent_id"),
        (
            json!({"workflow_id": "0197d7a5-0000-7000-8000-000000000000"}),
            400,
            "workflow_id",
        ),
        (
            json!({"agent_id": "0197d7a5-0000-7000-8000-000000000000"}),
            404,
            "Agent",
        ),
    ];

    for (change, status, word) in cases {
        let mut body = good.clone();
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }

        let refused = app.post(&format!("{BATCHES}/create"), body).await;
        let content_type = refused.headers["content-type"].to_str().unwrap().to_owned();
        let problem = refused.expect(status);
        assert_eq!(content_type, "application/problem+json");
        assert!(problem.to_string().contains(word), "{change} -> {problem}");
        assert!(
            problem["code"].is_string() && problem["request_id"].is_string(),
            "{problem}"
        );
    }

    assert_eq!(app.count("select count(*) from call_batches").await, 0);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_added_changed_and_removed_only_before_the_start() {
    let app = without_workers().await;
    let id = app.create_batch(json!({"default_country": "US"})).await;
    let upsert = format!("{BATCHES}/{id}/data/upsert");
    let items = json!({"items": [
        {"to_phonenumber": "(212) 555-1000", "variable_values": {"name": "Ada"}},
        {"to_phonenumber": "+1 212 555 1000", "variable_values": {"name": "Ada again"}},
        {"to_phonenumber": "9.19E+11"},
        {"to_phonenumber": phone_number(7), "variable_values": {"name": "Bob"}},
    ]});

    let added = app.post(&upsert, items).await.expect(200)["data"].clone();
    assert_eq!(
        (&added["inserted"], &added["duplicates"], &added["failed"]),
        (&json!(2), &json!(1), &json!(1))
    );
    assert!(
        added["errors"].to_string().contains("scientific"),
        "{added}"
    );

    let rows = app.get(&format!("{BATCHES}/{id}/data")).await.expect(200)["data"].clone();
    assert_eq!(rows.as_array().unwrap().len(), 2);
    assert_eq!(rows[0]["to_phonenumber"], "+12125551000");
    assert_eq!(rows[0]["variable_values"], json!({"name": "Ada"}));
    let row = rows[0]["id"].as_str().unwrap();
    let change = json!({"items": [{"id": row, "to_phonenumber": "+12125551001", "variable_values": {"name": "Eve"}}]});
    assert_eq!(
        app.post(&upsert, change).await.expect(200)["data"]["updated"],
        1
    );
    send_request(app.request(Method::DELETE, &format!("{BATCHES}/{id}/data/{row}")))
        .await
        .expect(200);

    let filtered = app
        .get(&format!("{BATCHES}/{id}/data?status=not_started"))
        .await
        .expect(200);
    assert_eq!(filtered["data"].as_array().unwrap().len(), 1);
    app.get(&format!("{BATCHES}/{id}/data?status=sleeping"))
        .await
        .expect(422);

    app.start_batch(&id).await;
    let late = app
        .post(
            &upsert,
            json!({"items": [{"to_phonenumber": phone_number(8)}]}),
        )
        .await
        .expect(409);
    assert_eq!(late["detail"], "batch already started");

    let path = format!("{BATCHES}/{id}/variables");
    send_request(
        app.request(Method::PATCH, &path)
            .json(&json!({"variable_names": []})),
    )
    .await
    .expect(409);
    send_request(app.request(Method::DELETE, &format!("{BATCHES}/{id}")))
        .await
        .expect(409);

    sqlx::query("update call_batches set status = 'stopped'")
        .execute(&app.context.pool)
        .await
        .unwrap();
    sqlx::query("delete from jobs")
        .execute(&app.context.pool)
        .await
        .unwrap();
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_every_blocker_and_start_refuses_them() {
    let app = without_workers().await;
    let id = app.create_batch(json!({"variable_names": []})).await;
    sqlx::query("update agents set is_active = false")
        .execute(&app.context.pool)
        .await
        .unwrap();
    let readiness = app
        .get(&format!("{BATCHES}/{id}/readiness"))
        .await
        .expect(200);
    let codes: Vec<&str> = readiness["blockers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|blocker| blocker["code"].as_str().unwrap())
        .collect();
    assert_eq!(readiness["can_start"], false);
    assert_eq!(codes, ["no_rows", "agent_inactive", "missing_variables"]);
    let refused = app
        .post(&format!("{BATCHES}/start/{id}"), json!({}))
        .await
        .expect(400);
    assert_eq!(refused["blockers"].as_array().unwrap().len(), 3);
    assert_eq!(
        app.batch_status(&id).await["batch"]["status"],
        "not_started"
    );
    for verb in ["pause", "resume", "stop"] {
        app.post(&format!("{BATCHES}/{verb}/{id}"), json!({}))
            .await
            .expect(409);
    }
    app.finish().await;
}

fn blocker_codes(blockers: &Value) -> Vec<&str> {
    blockers
        .as_array()
        .expect("blockers")
        .iter()
        .map(|blocker| blocker["code"].as_str().expect("a code"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_value_for_the_agents_message_block_dialling() {
    let mut app = without_workers().await;
    let id = app.create_batch(json!({"variable_names": []})).await;
    assert_eq!(app.upload(&id, &people_csv(3)).await["inserted"], 3);

    let variables = format!("{BATCHES}/{id}/variables");
    let names = json!({"variable_names": ["name", "city"]});
    send_request(app.request(Method::PATCH, &variables).json(&names))
        .await
        .expect(200);
    assert_eq!(app.upload(&id, &people_csv(3)).await["duplicates"], 3);

    let readiness = async || {
        app.get(&format!("{BATCHES}/{id}/readiness"))
            .await
            .expect(200)
    };
    assert_eq!(
        blocker_codes(&readiness().await["blockers"]),
        ["rows_without_values"]
    );

    let start = format!("{BATCHES}/start/{id}");
    let refused = app.post(&start, json!({})).await.expect(400);
    let words = refused["blockers"][0]["message"].as_str().expect("words");
    assert!(words.contains("no value for name,"), "{words}");
    assert!(words.contains("/data/upsert"), "{words}");

    let rows = app.get(&format!("{BATCHES}/{id}/data")).await.expect(200)["data"].clone();
    for (n, row) in (0..).zip(rows.as_array().expect("rows")) {
        assert_eq!(readiness().await["can_start"], false);
        let values = json!({"name": format!("Person {n}")});
        let items = json!({"items": [
            {"id": row["id"], "to_phonenumber": row["to_phonenumber"], "variable_values": values}
        ]});
        let upsert = format!("{BATCHES}/{id}/data/upsert");
        let changed = app.post(&upsert, items).await.expect(200);
        assert_eq!(changed["data"]["updated"], 1, "{changed}");
    }
    // The agent's message does not use the city.
    assert_eq!(readiness().await["can_start"], true);

    app.start_batch(&id).await;

    let spaces =
        "update batch_data set variable_values = jsonb_build_object('name', ' ') where row_no = 3";
    sqlx::query(spaces)
        .execute(&app.context.pool)
        .await
        .unwrap();
    app.start_worker(&peal_worker::Role::ALL).await;
    app.wait_for_status(&id, "paused").await;

    let why = app.batch_status(&id).await["batch"]["status_reason"].clone();
    assert!(why.to_string().contains("no value for name"), "{why}");
    assert_eq!(app.carrier.oracle().accepted, 0);
    app.finish().await;
}

/// Every route that names a batch, with a body that is valid for its owner.
fn batch_routes(id: &str) -> Vec<(Method, String, Value)> {
    let rows = json!({"items": [{"to_phonenumber": phone_number(1)}]});
    let records = json!({"records": [{"to_phonenumber": phone_number(1)}]});
    vec![
        (Method::GET, format!("{BATCHES}/{id}"), Value::Null),
        (Method::GET, format!("{BATCHES}/{id}/status"), Value::Null),
        (Method::GET, format!("{BATCHES}/{id}/data"), Value::Null),
        (
            Method::GET,
            format!("{BATCHES}/{id}/readiness"),
            Value::Null,
        ),
        (Method::GET, format!("{BATCHES}/{id}/events"), Value::Null),
        (Method::GET, format!("{BATCHES}/template/{id}"), Value::Null),
        (Method::GET, format!("{BATCHES}/{id}/ingests"), Value::Null),
        (Method::POST, format!("{BATCHES}/{id}/data/upsert"), rows),
        (Method::POST, format!("{BATCHES}/upload-json/{id}"), records),
        (
            Method::PATCH,
            format!("{BATCHES}/{id}/variables"),
            json!({"variable_names": ["x"]}),
        ),
        (Method::POST, format!("{BATCHES}/start/{id}"), Value::Null),
        (Method::POST, format!("{BATCHES}/pause/{id}"), Value::Null),
        (Method::POST, format!("{BATCHES}/resume/{id}"), Value::Null),
        (Method::POST, format!("{BATCHES}/stop/{id}"), Value::Null),
        (Method::DELETE, format!("{BATCHES}/{id}"), Value::Null),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_batch_does_not_exist_and_nothing_works_without_a_key() {
    let app = without_workers().await;
    let other = app.create_tenant("Other").await;
    let id = app.create_batch(json!({})).await;
    app.add_people(&id, 1).await;

    let send = async |tenant: Option<&Tenant>, (method, path, body): &(Method, String, Value)| {
        let mut request = match tenant {
            Some(tenant) => app.request_as(tenant, method.clone(), path),
            None => app.anonymous(method.clone(), path),
        };
        if !body.is_null() {
            request = request.json(body);
        }
        send_request(request).await.status.as_u16()
    };

    for route in &batch_routes(&id) {
        let (foreign, anonymous) = (send(Some(&other), route).await, send(None, route).await);
        assert_eq!(foreign, 404, "{route:?}");
        assert_eq!(anonymous, 401, "{route:?}");
    }

    let counts = app.batch_status(&id).await["status_counts"].clone();
    assert_eq!(
        (&counts["not_started"], &counts["total"]),
        (&json!(1), &json!(1))
    );

    let revoked = send_request(
        app.anonymous(Method::GET, &format!("{BATCHES}/me"))
            .header("x-api-key", "peal_live_wrong"),
    )
    .await;
    assert_eq!(revoked.status.as_u16(), 401);
    app.finish().await;
}

fn signed_token(claims: &Value, secret: &str, algorithm: jsonwebtoken::Algorithm) -> String {
    let header = jsonwebtoken::Header::new(algorithm);
    jsonwebtoken::encode(
        &header,
        claims,
        &jsonwebtoken::EncodingKey::from_secret(secret.as_bytes()),
    )
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn session_tokens_are_accepted_only_as_configured() {
    let app = without_workers().await;
    let user: uuid::Uuid = sqlx::query_scalar("select id from users")
        .fetch_one(&app.context.pool)
        .await
        .unwrap();

    let now = chrono::Utc::now().timestamp();
    let good =
        json!({"sub": user, "iss": "peal", "aud": "authenticated", "iat": now, "exp": now + 600});
    let with = |key: &str, value: Value| {
        let mut claims = good.clone();
        claims[key] = value;
        claims
    };
    let hs256 = jsonwebtoken::Algorithm::HS256;

    let me = async |token: String| {
        let request = app
            .anonymous(Method::GET, &format!("{BATCHES}/me"))
            .bearer_auth(token);
        send_request(request).await.status.as_u16()
    };
    assert_eq!(me(signed_token(&good, JWT_SECRET, hs256)).await, 200);

    let refused = [
        signed_token(&good, "another secret of thirty-two bytes..", hs256),
        signed_token(&good, JWT_SECRET, jsonwebtoken::Algorithm::HS384),
        signed_token(&with("exp", json!(now - 600)), JWT_SECRET, hs256),
        signed_token(
            &with("exp", json!((now + 600).to_string())),
            JWT_SECRET,
            hs256,
        ),
        signed_token(&with("aud", json!("somebody")), JWT_SECRET, hs256),
        signed_token(&with("iss", json!("somebody")), JWT_SECRET, hs256),
        signed_token(&with("nbf", json!(now + 600)), JWT_SECRET, hs256),
        signed_token(&with("sub", json!(uuid::Uuid::nil())), JWT_SECRET, hs256),
        signed_token(&json!({"sub": user}), JWT_SECRET, hs256),
        "not.a.token".to_owned(),
    ];

    for token in refused {
        assert_eq!(me(token.clone()).await, 401, "{token}");
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_event_stream_shows_the_waiting_reason_and_ends_with_the_batch() {
    let mut app = without_workers().await;
    let id = app.create_batch(json!({})).await;
    app.add_people(&id, 3).await;
    app.start_batch(&id).await;
    let request = app.request(Method::GET, &format!("{BATCHES}/{id}/events"));
    let mut stream = request.send().await.unwrap().bytes_stream();
    let mut text = String::new();
    let mut read_until = async |word: &str| {
        let deadline = tokio::time::Instant::now() + TEST_TIMEOUT;
        while !text.contains(word) {
            let piece = tokio::time::timeout_at(deadline, stream.next()).await;
            let piece = piece.unwrap_or_else(|_| panic!("no {word} in: {text}"));
            text.push_str(std::str::from_utf8(&piece.expect("open").expect("bytes")).unwrap());
        }
    };
    read_until("\"code\":\"starting\"").await;
    app.start_worker(&peal_worker::Role::ALL).await;
    read_until("event: end").await;
    read_until("\"completed\":3").await;
    app.finish().await;
}

/// The first event of a batch's stream.
async fn first_event(app: &App, batch: &str) -> Value {
    let path = format!("{BATCHES}/{batch}/events");
    let mut events = app.request(Method::GET, &path).send().await.unwrap();
    let mut text = String::new();
    while !text.contains("\n\n") {
        let piece = events.chunk().await.unwrap().expect("an event");
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
    let data = text.lines().find_map(|line| line.strip_prefix("data:"));
    serde_json::from_str(data.expect("data").trim()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_trunk_and_a_missing_worker_have_different_waiting_codes() {
    let mut app = without_workers().await;
    let id = app.create_batch(json!({})).await;
    app.add_people(&id, 3).await;
    app.start_batch(&id).await;
    app.start_worker(&[peal_worker::Role::Misc]).await;

    let launched = "select count(*) from call_batches where launched_at is not null";
    let is_launched = || async { app.count(launched).await == 1 };
    eventually("the batch is launched", TEST_TIMEOUT, is_launched).await;

    // A slowdown halves every ten seconds, so it is gone after a day.
    for (clock, code) in [
        (
            "next_slot = now() - interval '1 hour', slowdown = 32, slowed_at = now() - interval '1 day'",
            "waiting_for_worker",
        ),
        (
            "slowdown = 20, slowed_at = now() - interval '38 seconds'",
            "carrier_pushback",
        ),
        (
            "slowdown = 1, slowed_at = null, next_slot = now() + interval '1 hour'",
            "pace",
        ),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(format!("update pacers set {clock}")))
            .execute(&app.context.pool)
            .await
            .unwrap();

        // The watcher of the previous stream may still report its last state.
        let reported = || async {
            let waiting = first_event(&app, &id).await["waiting"].clone();
            waiting["code"] == code && waiting["until"].is_string()
        };
        eventually(code, TEST_TIMEOUT, reported).await;
    }

    app.post(&format!("{BATCHES}/stop/{id}"), json!({}))
        .await
        .expect(200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_progress_of_a_paused_batch_shows_the_pause() {
    let app = App::start_with(AppOptions {
        cps: 20,
        ..AppOptions::default()
    })
    .await;

    let id = app.create_batch(json!({})).await;
    app.add_people(&id, 100).await;
    // Keeps the batch from completing before it is paused.
    sqlx::query("update batch_data set due_at = now() + interval '1 hour' where row_no = 100")
        .execute(&app.context.pool)
        .await
        .unwrap();

    app.start_batch(&id).await;
    let dialled = || async { app.carrier.oracle().accepted >= 5 };
    eventually("some calls are made", TEST_TIMEOUT, dialled).await;
    app.post(&format!("{BATCHES}/pause/{id}"), json!({}))
        .await
        .expect(200);

    let progress = first_event(&app, &id).await;
    assert!(
        progress["calls_per_second"].as_f64() > Some(0.0),
        "{progress}"
    );
    assert_eq!(progress["waiting"]["code"], "paused", "{progress}");

    app.post(&format!("{BATCHES}/stop/{id}"), json!({}))
        .await
        .expect(200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_calls_are_queued_and_placed() {
    let app = App::start().await;
    let agent = app.tenant.agent;
    let path = format!("/api/call/create_call?phoneNumber=%2B12125559999&agent_id={agent}");

    let queued = app
        .post(&path, json!({"variable_values": {"name": "Ada"}}))
        .await
        .expect(202);
    assert_eq!(
        (&queued["status"], &queued["source"]),
        (&json!("queued"), &json!("create_call"))
    );
    assert_eq!(queued["target_number"], "+12125559999");

    let path = format!("/api/call/{}", queued["call_session_id"].as_str().unwrap());
    let ended = || async { app.get(&path).await.expect(200)["outcome"] == "completed" };
    eventually("the call ends", TEST_TIMEOUT, ended).await;

    // Two calls to one number are placed one after the other.
    let path = format!("/api/call/create_call?phoneNumber=%2B12125558888&agent_id={agent}");
    for _ in 0..2 {
        app.post(&path, json!({})).await.expect(202);
    }
    app.post(
        "/api/call/create_call?phoneNumber=12345&agent_id=x",
        json!({}),
    )
    .await
    .expect(422);
    app.post(
        "/api/call/create_call?phoneNumber=%2B12125558888",
        json!({}),
    )
    .await
    .expect(400);

    let all = || async {
        app.count("select count(*) from calls where outcome = 'completed'")
            .await
            == 3
    };
    eventually("all three end", TEST_TIMEOUT, all).await;
    assert_eq!(app.carrier.oracle().accepted, 3);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_needs_no_key() {
    let app = without_workers().await;
    let health = send_request(app.anonymous(Method::GET, "/health"))
        .await
        .expect(200);
    assert_eq!(
        (&health["status"], &health["database"]),
        (&json!("healthy"), &json!("connected"))
    );
    assert!(
        health["timestamp"].is_f64() && health["version"].is_string(),
        "{health}"
    );
    send_request(app.anonymous(Method::GET, "/health/ready"))
        .await
        .expect(200);
    let lost = send_request(app.anonymous(Method::GET, "/nowhere"))
        .await
        .expect(404);
    assert_eq!(lost["code"], "route_not_found");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_is_ingested_by_a_job_and_its_uploader_is_notified() {
    let app = App::start().await;
    let id = app.create_batch(json!({})).await;
    let mut csv = String::from("to_phonenumber,name\n");
    for n in 0..1_000 {
        csv.push_str(&format!("{},{}\n", phone_number(n), "x".repeat(1_200)));
    }
    csv.push_str("nonsense,Nobody\n");

    let ingest = app.upload(&id, &csv).await;
    assert_eq!(
        (&ingest["inserted"], &ingest["failed"]),
        (&json!(1_000), &json!(1)),
        "{ingest}"
    );

    let path = format!(
        "{BATCHES}/{id}/ingests/{}/errors",
        ingest["ingest_id"].as_str().unwrap()
    );
    let errors = app.get(&path).await;
    assert!(errors.text.contains("1002"), "{}", errors.text);

    let mailed = || async {
        app.count("select count(*) from emails where sent_at is not null")
            .await
            == 1
    };
    eventually("the uploader is notified", TEST_TIMEOUT, mailed).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_call_on_a_paused_trunk_is_refused_with_the_reason() {
    let app = App::start().await;
    let (agent, trunk) = (app.tenant.agent, app.tenant.trunk);
    let path = format!("/api/call/create_call?phoneNumber=%2B12125559999&agent_id={agent}");
    let mut db = app.context.pool.acquire().await.unwrap();
    let why = "the carrier refuses the account (code 20003): authenticate";
    trunks::pause_unscoped(&mut db, trunk, why).await.unwrap();
    let refused = app.post(&path, json!({})).await.expect(409);
    assert_eq!(refused["code"], "trunk_paused");
    assert_eq!(
        refused["detail"],
        format!("the caller number's trunk is paused: {why}; call again when it has been resumed")
    );
    assert_eq!(app.count("select count(*) from calls").await, 0);
    trunks::resume_unscoped(&mut db, trunk).await.unwrap();
    drop(db);
    app.post(&path, json!({})).await.expect(202);
    let ended = "select count(*) from calls where outcome = 'completed'";
    let rung = || async { app.count(ended).await == 1 };
    eventually("the call is made", TEST_TIMEOUT, rung).await;
    app.finish().await;
}
