//! Idempotent uploads: a file under one `Idempotency-Key` is ingested once, however often it is sent,
//! and every repetition gets the first response.

use std::collections::BTreeSet;

use futures::future::join_all;
use reqwest::multipart::{Form, Part};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::app::{App, AppOptions, TEST_TIMEOUT, Tenant, people_csv, send_request};
use crate::harness::eventually;

const BATCHES_PATH: &str = "/api/v1/batch-call";
const COUNT_INGESTS: &str = "select count(*) from ingests";
const COUNT_KEY_HOLDS: &str = "select count(*) from idempotency_holds";
const COUNT_FILES: &str = "select count(*) from upload_files";

async fn without_workers() -> App {
    App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await
}

fn upload_request(
    app: &App,
    caller: &Tenant,
    batch: &str,
    key: &str,
    file: &str,
) -> RequestBuilder {
    let part = Part::bytes(file.as_bytes().to_vec()).file_name("people.csv");
    app.request_as(
        caller,
        Method::POST,
        &format!("{BATCHES_PATH}/upload/{batch}"),
    )
    .header("idempotency-key", key)
    .multipart(Form::new().part("file", part))
}

/// Sends a file under a key; returns the body, and true when the response was replayed.
async fn send_upload(app: &App, batch: &str, key: &str, file: &str, status: u16) -> (Value, bool) {
    let response = send_request(upload_request(app, &app.tenant, batch, key, file)).await;
    let replayed = response.headers.get("idempotent-replayed").is_some();
    (response.expect(status), replayed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_upload_under_one_key_is_ingested_once() {
    let app = without_workers().await;
    let id = app.create_batch(json!({})).await;
    let (small, large) = (people_csv(3), people_csv(40_000));
    let (first, replayed) = send_upload(&app, &id, "small", &small, 200).await;
    assert!(!replayed);
    assert_eq!(first["data"]["inserted"], 3);
    assert_eq!(
        send_upload(&app, &id, "small", &small, 200).await,
        (first.clone(), true)
    );

    let (queued, replayed) = send_upload(&app, &id, "large", &large, 202).await;
    assert!(!replayed);
    assert_eq!(
        send_upload(&app, &id, "large", &large, 202).await,
        (queued, true)
    );
    assert_eq!(app.count(COUNT_INGESTS).await, 2);
    assert_eq!(
        app.count("select count(*) from audit_log where action = 'batch.upload'")
            .await,
        2
    );

    // The key cannot be used for another file or batch.
    let other = app.create_batch(json!({})).await;
    for (batch, file) in [(&id, &large), (&id, &people_csv(4)), (&other, &small)] {
        let (refused, _) = send_upload(&app, batch, "small", file, 422).await;
        assert_eq!(refused["errors"][0]["type"], "key_reused");
        assert_eq!(
            refused["errors"][0]["loc"],
            json!(["header", "Idempotency-Key"])
        );
    }

    // Keys are separate for each user.
    let eve = app.create_tenant("Other").await;
    let response = send_request(upload_request(&app, &eve, &id, "small", &small)).await;
    assert_eq!(response.expect(404)["code"], "not_found");
    for invalid in ["", &"k".repeat(256)] {
        send_request(upload_request(&app, &app.tenant, &id, invalid, &small))
            .await
            .expect(422);
    }

    // A repetition is replayed even when the batch was stopped meanwhile.
    sqlx::query("update call_batches set status = 'stopped'")
        .execute(&app.context.pool)
        .await
        .expect("stopped");
    assert_eq!(
        send_upload(&app, &id, "small", &small, 200).await,
        (first, true)
    );
    let (late, _) = send_upload(&app, &id, "late", &small, 409).await;
    assert_eq!(late["code"], "batch_started");
    assert_eq!(app.count(COUNT_INGESTS).await, 2);
    assert_eq!(app.count(COUNT_KEY_HOLDS).await, 0);
    assert_eq!(
        app.count(COUNT_FILES).await,
        1,
        "only the large file is stored"
    );
    app.drop_jobs().await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_upload_releases_its_key_and_a_failed_ingest_does_not() {
    let app = without_workers().await;
    let id = app.create_batch(json!({})).await;
    let (refused, _) = send_upload(&app, &id, "k", "name\nAda\n", 400).await;
    assert_eq!(refused["code"], "missing_phone_column");
    assert_eq!(app.count(COUNT_KEY_HOLDS).await, 0);
    send_upload(&app, &id, "k", &people_csv(2), 200).await;

    // The beginning is valid, so an ingest is created and fails.
    let torn = format!("{}\"never closed", people_csv(40));
    let torn = format!("{torn}{}", "x".repeat(200_000));
    let (failed, replayed) = send_upload(&app, &id, "torn", &torn, 400).await;
    assert!(!replayed);
    assert_eq!(failed["code"], "ingest_failed");
    let (again, replayed) = send_upload(&app, &id, "torn", &torn, 400).await;
    assert!(replayed);
    for name in ["type", "title", "status", "detail", "code"] {
        assert_eq!(again[name], failed[name]);
    }
    assert_eq!(app.count(COUNT_INGESTS).await, 2);
    app.drop_jobs().await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_rejected_rows_are_not_replayed() {
    let app = without_workers().await;
    let id = app.create_batch(json!({})).await;
    let file = "to_phonenumber,name\n+12125550123,Ada\n12-odd,Eve\n";
    let records = json!({"records": [{"to_phonenumber": "12-odd", "name": "Eve"}]});
    let add = async || {
        let path = format!("{BATCHES_PATH}/upload-json/{id}");
        let request = app.request(Method::POST, &path);
        let response = send_request(request.header("idempotency-key", "json").json(&records)).await;
        let replayed = response.headers.get("idempotent-replayed").is_some();
        (response.expect(200), replayed)
    };

    let mut first = [send_upload(&app, &id, "file", file, 200).await, add().await];
    for (body, replayed) in &mut first {
        assert!(!*replayed);
        assert_eq!(body["data"]["errors"][0]["value"], "12-odd");
        body["data"]["errors"][0]["value"] = json!("");
        *replayed = true;
    }

    let again = [send_upload(&app, &id, "file", file, 200).await, add().await];
    assert_eq!(again, first);

    let stored_values = "select count(*) from idempotency_keys where body::text like '%12-odd%'";
    assert_eq!(app.count(stored_values).await, 0);

    app.drop_jobs().await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_uploads_under_one_key_are_one_ingest() {
    let app = without_workers().await;
    let id = app.create_batch(json!({})).await;
    let file = people_csv(500);
    let all = (0..20).map(|_| send_request(upload_request(&app, &app.tenant, &id, "k", &file)));
    let mut made = BTreeSet::new();
    for response in join_all(all).await {
        match response.status.as_u16() {
            200 | 202 => {
                made.insert(response.json()["data"]["ingest_id"].to_string());
            }
            409 => assert_eq!(response.json()["code"], "idempotency_key_in_use"),
            503 => assert_eq!(response.json()["code"], "busy"),
            other => panic!("{other}: {}", response.text),
        }
    }
    assert_eq!(made.len(), 1);
    assert_eq!(app.count(COUNT_INGESTS).await, 1);
    assert_eq!(app.count(COUNT_KEY_HOLDS).await, 0);
    assert_eq!(app.count(COUNT_FILES).await, 0);
    app.drop_jobs().await;
    app.finish().await;
}

/// Body of a form with one file, as text that can be cut anywhere.
fn form_body(file: &str) -> String {
    format!(
        "--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.csv\"\r\n\r\n{file}\r\n--x--\r\n"
    )
}

/// Opens a connection and sends the head of an upload under a key.
async fn begin_upload(app: &App, batch: &str, key: &str, bytes: usize) -> TcpStream {
    let host = app.url.strip_prefix("http://").expect("a host");
    let mut socket = TcpStream::connect(host).await.expect("connected");
    let head = format!(
        "POST {BATCHES_PATH}/upload/{batch} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\nx-api-key: {}\r\n\
         idempotency-key: {key}\r\ncontent-length: {bytes}\r\n\
         content-type: multipart/form-data; boundary=x\r\n\r\n",
        app.tenant.api_key
    );
    socket.write_all(head.as_bytes()).await.expect("sent");
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_in_use_until_its_upload_has_ended() {
    let app = without_workers().await;
    let id = app.create_batch(json!({})).await;
    let file = people_csv(20_000);
    let whole = form_body(&file);
    let (first, rest) = whole.as_bytes().split_at(300_000);

    let mut socket = begin_upload(&app, &id, "k", whole.len()).await;
    socket.write_all(first).await.expect("sent");
    eventually("the upload has begun", TEST_TIMEOUT, || async {
        app.count(COUNT_KEY_HOLDS).await == 1
    })
    .await;

    let (refused, _) = send_upload(&app, &id, "k", &file, 409).await;
    assert_eq!(refused["code"], "idempotency_key_in_use");
    send_upload(&app, &id, "another", &people_csv(2), 200).await;

    socket.write_all(rest).await.expect("sent");
    let mut response = String::new();
    socket
        .read_to_string(&mut response)
        .await
        .expect("an answer");
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    let (_, replayed) = send_upload(&app, &id, "k", &file, 200).await;
    assert!(replayed);

    // An aborted upload releases its key; the key of a crashed process expires.
    let mut broken = begin_upload(&app, &id, "broken", whole.len()).await;
    broken.write_all(first).await.expect("sent");
    eventually("the upload has begun", TEST_TIMEOUT, || async {
        app.count(COUNT_KEY_HOLDS).await == 1
    })
    .await;
    drop(broken);
    eventually("the key is free", TEST_TIMEOUT, || async {
        app.count(COUNT_KEY_HOLDS).await == 0
    })
    .await;

    sqlx::query(
        "insert into idempotency_holds (org_id, user_id, key, holder, held_until)
         select org_id, id, 'dead', gen_random_uuid(), now() - interval '1 second'
         from users
         where org_id = $1",
    )
    .bind(app.tenant.org)
    .execute(&app.context.pool)
    .await
    .expect("held");
    send_upload(&app, &id, "dead", &people_csv(2), 200).await;
    app.drop_jobs().await;
    app.finish().await;
}
