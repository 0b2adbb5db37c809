//! Overload: every class of requests has its own limit, and a flood in one does not affect the
//! others.

use std::time::{Duration, Instant};

use peal_simulator::sign;
use reqwest::{Method, StatusCode};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, Postgres, Transaction};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::harness::app::{
    ACCOUNT, AUTH_TOKEN, ApiResponse, App, AppOptions, TEST_TIMEOUT, send_request,
};
use crate::harness::eventually;

/// Response to a request that must not wait for a blocked resource.
async fn send_within_timeout(request: reqwest::RequestBuilder) -> ApiResponse {
    let answer = timeout(TEST_TIMEOUT, send_request(request)).await;
    answer.expect("an answer despite the lock")
}

/// Locks a table until the transaction ends, without a timeout.
async fn lock_table(pool: &PgPool, table: &str) -> Transaction<'static, Postgres> {
    let mut lock = pool.begin().await.unwrap();
    let statements = format!(
        "set local idle_in_transaction_session_timeout = 0;
         lock table {table} in access exclusive mode"
    );
    sqlx::raw_sql(AssertSqlSafe(statements))
        .execute(&mut *lock)
        .await
        .unwrap();
    lock
}

/// Disables the lock and statement timeouts of the API's connections, which would end a wait for a
/// lock after five seconds.
async fn disable_timeouts(app: &App) {
    let pool = &app.context.pool;
    // Holds each connection until the last one is changed.
    let mut connections = Vec::new();
    for _ in 0..pool.options().get_max_connections() {
        let mut connection = pool.acquire().await.unwrap();
        sqlx::raw_sql("set lock_timeout = 0; set statement_timeout = 0")
            .execute(&mut *connection)
            .await
            .unwrap();
        connections.push(connection);
    }
}

/// Fails unless the response is a 503 of code `busy` with this detail, which differs between overload
/// and a slow database.
fn expect_shed(answer: &ApiResponse, detail: &str) {
    let (status, text) = (answer.status, &answer.text);
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    let problem = answer.json();
    assert_eq!(
        (&problem["code"], &problem["detail"]),
        (&json!("busy"), &json!(detail))
    );
}

/// A status callback about a call that Peal placed, as its carrier sends it.
async fn send_callback(app: &App, sequence: u32) -> ApiResponse {
    let call: (
        peal_shared::platform::ids::TrunkId,
        peal_shared::platform::ids::CallId,
        String,
    ) = sqlx::query_as("select trunk_id, id, carrier_call_id from calls limit 1")
        .fetch_one(&app.context.callback_pool)
        .await
        .unwrap();
    let (trunk, id, carrier_call_id) = call;
    let config = &app.context.config;
    let urls = peal_shared::calls::urls::CallUrls::new(&config.public_url, &config.keys, trunk, id);
    let form = vec![
        ("CallSid", carrier_call_id),
        ("AccountSid", ACCOUNT.to_owned()),
        ("CallStatus", "completed".to_owned()),
        ("CallbackSource", "call-progress-events".to_owned()),
        ("SequenceNumber", sequence.to_string()),
    ];
    let url = urls.status.as_str();
    let path = url.strip_prefix(&app.url).expect("our own address");
    let request = app
        .anonymous(Method::POST, path)
        .form(&form)
        .header("x-twilio-signature", sign(AUTH_TOKEN, url, &form));
    send_within_timeout(request).await
}

/// An API that runs two reads and one change at a time, with a queue timeout of 100 ms.
async fn app_with_low_limits() -> App {
    App::start_with(AppOptions {
        settings: |settings| {
            settings.limits.limit_reads = Some("2".to_owned());
            settings.limits.limit_control = Some("1".to_owned());
            settings.limits.limit_wait_ms = Some("100".to_owned());
            settings.limits.limit_streams = Some("3".to_owned());
            settings.limits.limit_streams_per_org = Some("2".to_owned());
            settings.limits.limit_header_secs = Some("1".to_owned());
            settings.limits.limit_connections = Some("40".to_owned());
        },
        ..AppOptions::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn blocked_reads_are_shed_and_other_classes_are_served() {
    let app = app_with_low_limits().await;
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 1).await;
    app.start_batch(&batch).await;
    app.wait_for_status(&batch, "completed").await;
    let list = "/api/v1/batch-call/me";
    app.get(list).await.expect(200);
    disable_timeouts(&app).await;

    // Batches cannot be read.
    let lock = lock_table(&app.context.callback_pool, "call_batches").await;
    let mut stuck = JoinSet::new();
    for _ in 0..2 {
        stuck.spawn(send_request(app.request(Method::GET, list)));
    }
    let (_, under_way) = app.context.metrics.http.class_metrics("reads");
    eventually("both permits are taken", TEST_TIMEOUT, || async {
        under_way.get() == 2
    })
    .await;

    for round in 0..5 {
        let stream = format!("/api/v1/batch-call/{batch}/events");
        for path in [list, &stream] {
            let shed = send_within_timeout(app.request(Method::GET, path)).await;
            expect_shed(&shed, "too many requests of class reads; try again shortly");
        }

        let callback_response = send_callback(&app, 100 + round).await;
        assert_eq!(
            callback_response.status,
            StatusCode::NO_CONTENT,
            "{}",
            callback_response.text
        );
        for path in ["/health", "/health/ready"] {
            let health = send_within_timeout(app.anonymous(Method::GET, path)).await;
            assert_eq!(health.status, StatusCode::OK, "{}", health.text);
        }

        // A change that reads no batch is in another class.
        let path = format!(
            "/api/call/create_call?phoneNumber=%2B12125557777&agent_id={}",
            peal_shared::platform::ids::AgentId::new()
        );
        let change = send_within_timeout(app.request(Method::POST, &path).json(&json!({}))).await;
        assert_eq!(change.status, StatusCode::NOT_FOUND, "{}", change.text);
    }
    // Both reads were blocked all the time.
    assert_eq!(under_way.get(), 2);
    assert!(stuck.try_join_next().is_none());

    lock.rollback().await.unwrap();
    while let Some(read) = stuck.join_next().await {
        let read = read.unwrap();
        assert_eq!(read.status, StatusCode::OK, "{}", read.text);
    }
    app.get(list).await.expect(200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_times_out_releases_its_permit() {
    let app = App::start_with(AppOptions {
        workers: 0,
        settings: |settings| {
            settings.limits.limit_reads = Some("1".to_owned());
            settings.limits.limit_statement_secs = Some("1".to_owned());
        },
        ..AppOptions::default()
    })
    .await;
    let lock = lock_table(&app.context.callback_pool, "call_batches").await;
    let list = "/api/v1/batch-call/me";
    // The statement timeout ends it, not the lock timeout.
    let slow = send_within_timeout(app.request(Method::GET, list)).await;
    expect_shed(&slow, "the database is slow; try again shortly");
    lock.rollback().await.unwrap();
    app.get(list).await.expect(200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_batch_may_take_longer_than_other_statements() {
    let app = App::start_with(AppOptions {
        workers: 0,
        settings: |settings| settings.limits.limit_statement_secs = Some("1".to_owned()),
        ..AppOptions::default()
    })
    .await;
    let batch = app.create_batch(json!({})).await;
    let mut owner = PgConnection::connect(app.database_url()).await.unwrap();
    for statement in [
        "create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(1.5); return old; end'",
        "create trigger slow before delete on call_batches for each row execute function slow()",
    ] {
        sqlx::query(statement).execute(&mut owner).await.unwrap();
    }
    let path = format!("/api/v1/batch-call/{batch}");
    send_request(app.request(Method::DELETE, &path))
        .await
        .expect(200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn event_streams_are_limited_in_total_and_by_organisation() {
    let app = app_with_low_limits().await;
    let other = app.create_tenant("Globex").await;
    let batch = app.create_batch(json!({})).await;
    let events = format!("/api/v1/batch-call/{batch}/events");
    let open = async || app.request(Method::GET, &events).send().await.unwrap();
    let (first, second) = (open().await, open().await);
    assert_eq!(
        (first.status(), second.status()),
        (StatusCode::OK, StatusCode::OK)
    );
    let third = send_within_timeout(app.request(Method::GET, &events)).await;
    assert_eq!(
        third.status,
        StatusCode::TOO_MANY_REQUESTS,
        "{}",
        third.text
    );
    assert_eq!(third.headers["retry-after"], "10");
    assert_eq!(third.json()["code"], "too_many_streams");

    // The other organisation takes the last stream.
    let create = app
        .request_as(&other, Method::POST, "/api/v1/batch-call/create")
        .json(&json!({
            "caller_phone_id": other.phone, "agent_id": other.agent, "batch_name": "Theirs",
            "variable_names": ["name"], "batch_size": 1,
        }));
    let created = send_request(create).await;
    assert!(created.status.is_success(), "{}", created.text);
    let other_batch = created.json()["data"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let other_events = format!("/api/v1/batch-call/{other_batch}/events");
    let last = app
        .request_as(&other, Method::GET, &other_events)
        .send()
        .await
        .unwrap();
    assert_eq!(last.status(), StatusCode::OK);
    let full = send_within_timeout(app.request_as(&other, Method::GET, &other_events)).await;
    expect_shed(&full, "too many event streams at once; try again shortly");

    // A closed stream frees its permit.
    drop(first);
    let streams = &app.context.metrics.http.streams;
    eventually("the stream is over", TEST_TIMEOUT, || async {
        streams.get() == 2
    })
    .await;
    assert_eq!(open().await.status(), StatusCode::OK);
    drop((second, last));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed() {
    let app = app_with_low_limits().await;
    let host = app.url.trim_start_matches("http://").to_owned();

    // As many as may be open, half of them silent, half in the middle of a head.
    let mut idle = Vec::new();
    for n in 0..40 {
        let mut stream = TcpStream::connect(&host).await.unwrap();
        if n % 2 == 0 {
            stream
                .write_all(b"GET /health HTTP/1.1\r\nHost: a\r\nX-")
                .await
                .unwrap();
        }
        idle.push(stream);
    }

    let health = send_request(app.anonymous(Method::GET, "/health")).await;
    assert_eq!(health.status, StatusCode::OK);

    for mut stream in idle {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(TEST_TIMEOUT, stream.read_to_end(&mut rest)).await;
        assert!(read.is_ok(), "the connection stays open");
        assert!(!rest.starts_with(b"HTTP/1.1 200"), "{rest:?}");
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_waits_for_a_full_event_queue_before_it_is_refused() {
    let app = App::start_with(AppOptions {
        settings: |settings| settings.inbox_capacity = "1".to_owned(),
        ..AppOptions::default()
    })
    .await;
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 1).await;
    app.start_batch(&batch).await;
    app.wait_for_status(&batch, "completed").await;
    // A late callback of this call would take the place.
    app.drain().await;

    // Events cannot be inserted.
    let lock = lock_table(&app.context.pool, "call_events").await;
    let waiting = "select count(*) from pg_locks
                   where relation = 'call_events'::regclass and not granted and mode = 'RowExclusiveLock'";
    let shed = async {
        eventually("the queue is full", TEST_TIMEOUT, || async {
            app.count(waiting).await > 0
        })
        .await;
        let started = Instant::now();
        let answer = send_callback(&app, 101).await;
        let waited = started.elapsed();
        lock.rollback().await.unwrap();
        (answer, waited)
    };

    let (taken, (refused, waited)) = tokio::join!(send_callback(&app, 100), shed);
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(refused.json()["code"], "busy");
    assert!(waited > Duration::from_millis(400), "{waited:?}");
    assert_eq!(taken.status, StatusCode::NO_CONTENT, "{}", taken.text);

    let again = send_callback(&app, 101).await;
    assert_eq!(again.status, StatusCode::NO_CONTENT, "{}", again.text);
    app.finish().await;
}

/// Opens a connection that sends the beginning of a body and stalls.
async fn stalled_upload(app: &App, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(app.url.trim_start_matches("http://"))
        .await
        .unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: peal\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_unauthenticated_clients_only_block_each_other() {
    let app = App::start_with(AppOptions {
        settings: |settings| {
            settings.inbox_capacity = "1".to_owned();
            settings.limits.limit_control = Some("1".to_owned());
            settings.limits.limit_wait_ms = Some("100".to_owned());
        },
        ..AppOptions::default()
    })
    .await;
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 1).await;
    app.start_batch(&batch).await;
    app.wait_for_status(&batch, "completed").await;

    let (_, under_way) = app.context.metrics.http.class_metrics("anonymous");
    let mut stalled = Vec::new();
    for path in [
        "/api/v1/auth/login",
        "/api/v1/organizations/invites/accept",
        "/api/v1/batch-call/status-callback",
    ] {
        stalled.push(stalled_upload(&app, path).await);
        stalled.push(stalled_upload(&app, path).await);
    }
    eventually("they are being read", TEST_TIMEOUT, || async {
        under_way.get() == 4
    })
    .await;
    let callback_response = send_callback(&app, 100).await;
    assert_eq!(
        callback_response.status,
        StatusCode::NO_CONTENT,
        "{}",
        callback_response.text
    );
    let path = format!(
        "/api/call/create_call?phoneNumber=%2B12125557777&agent_id={}",
        peal_shared::platform::ids::AgentId::new()
    );
    let change = send_within_timeout(app.request(Method::POST, &path).json(&json!({}))).await;
    assert_eq!(change.status, StatusCode::NOT_FOUND, "{}", change.text);
    drop(stalled);
    app.finish().await;
}
