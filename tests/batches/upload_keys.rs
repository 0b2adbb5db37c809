//! Uploads that are sent again: under one `Idempotency-Key` a file is read once, however often
//! and by however many it is sent, and every time is answered as the first.

use std::collections::BTreeSet;

use futures::future::join_all;
use reqwest::multipart::{Form, Part};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::app::{App, AppOptions, TEST_TIMEOUT, Tenant, people_csv, send_request};
use crate::harness::eventually;

const BASE: &str = "/api/v1/batch-call";
const INGESTS: &str = "select count(*) from ingests";
const HOLDS: &str = "select count(*) from idempotency_holds";
const FILES: &str = "select count(*) from upload_files";

async fn quiet() -> App {
    App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await
}

fn upload(app: &App, who: &Tenant, batch: &str, key: &str, file: &str) -> RequestBuilder {
    let part = Part::bytes(file.as_bytes().to_vec()).file_name("people.csv");
    app.request_as(who, Method::POST, &format!("{BASE}/upload/{batch}"))
        .header("idempotency-key", key)
        .multipart(Form::new().part("file", part))
}

/// Sends a file under a key; the body, and whether it was answered so before.
async fn sent(app: &App, batch: &str, key: &str, file: &str, status: u16) -> (Value, bool) {
    let told = send_request(upload(app, &app.tenant, batch, key, file)).await;
    let replayed = told.headers.get("idempotent-replayed").is_some();
    (told.expect(status), replayed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_sent_again_under_its_key_is_read_once() {
    let app = quiet().await;
    let id = app.create_batch(json!({})).await;
    let (small, large) = (people_csv(3), people_csv(40_000));
    let (first, replayed) = sent(&app, &id, "small", &small, 200).await;
    assert!(!replayed);
    assert_eq!(first["data"]["inserted"], 3);
    assert_eq!(
        sent(&app, &id, "small", &small, 200).await,
        (first.clone(), true)
    );
    let (queued, replayed) = sent(&app, &id, "large", &large, 202).await;
    assert!(!replayed);
    assert_eq!(sent(&app, &id, "large", &large, 202).await, (queued, true));
    assert_eq!(app.count(INGESTS).await, 2);
    assert_eq!(
        app.count("select count(*) from audit_log where action = 'batch.upload'")
            .await,
        2
    );

    // Another file, or another batch, is another request.
    let other = app.create_batch(json!({})).await;
    for (batch, file) in [(&id, &large), (&id, &people_csv(4)), (&other, &small)] {
        let (refused, _) = sent(&app, batch, "small", file, 422).await;
        assert_eq!(refused["errors"][0]["type"], "key_reused");
        assert_eq!(
            refused["errors"][0]["loc"],
            json!(["header", "Idempotency-Key"])
        );
    }
    // Keys are their users' own.
    let eve = app.create_tenant("Other").await;
    let told = send_request(upload(&app, &eve, &id, "small", &small)).await;
    assert_eq!(told.expect(404)["code"], "not_found");
    for odd in ["", &"k".repeat(256)] {
        send_request(upload(&app, &app.tenant, &id, odd, &small))
            .await
            .expect(422);
    }
    // Whatever has become of the batch meanwhile.
    sqlx::query("update call_batches set status = 'stopped'")
        .execute(&app.context.pool)
        .await
        .expect("stopped");
    assert_eq!(sent(&app, &id, "small", &small, 200).await, (first, true));
    let (late, _) = sent(&app, &id, "late", &small, 409).await;
    assert_eq!(late["code"], "batch_started");
    assert_eq!(app.count(INGESTS).await, 2);
    assert_eq!(app.count(HOLDS).await, 0);
    assert_eq!(app.count(FILES).await, 1, "of the large file");
    app.drop_jobs().await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_file_leaves_its_key_free_and_a_failed_one_does_not() {
    let app = quiet().await;
    let id = app.create_batch(json!({})).await;
    let (refused, _) = sent(&app, &id, "k", "name\nAda\n", 400).await;
    assert_eq!(refused["code"], "missing_phone_column");
    assert_eq!(app.count(HOLDS).await, 0);
    sent(&app, &id, "k", &people_csv(2), 200).await;

    // Its beginning is fine, so there is an ingest, which fails.
    let torn = format!("{}\"never closed", people_csv(40));
    let torn = format!("{torn}{}", "x".repeat(200_000));
    let (failed, replayed) = sent(&app, &id, "torn", &torn, 400).await;
    assert!(!replayed);
    assert_eq!(failed["code"], "ingest_failed");
    let (again, replayed) = sent(&app, &id, "torn", &torn, 400).await;
    assert!(replayed);
    for name in ["type", "title", "status", "detail", "code"] {
        assert_eq!(again[name], failed[name]);
    }
    assert_eq!(app.count(INGESTS).await, 2);
    app.drop_jobs().await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_refused_rows_said_is_told_once() {
    let app = quiet().await;
    let id = app.create_batch(json!({})).await;
    let file = "to_phonenumber,name\n+12125550123,Ada\n12-odd,Eve\n";
    let records = json!({"records": [{"to_phonenumber": "12-odd", "name": "Eve"}]});
    let add = async || {
        let path = format!("{BASE}/upload-json/{id}");
        let request = app.request(Method::POST, &path);
        let told = send_request(request.header("idempotency-key", "json").json(&records)).await;
        let replayed = told.headers.get("idempotent-replayed").is_some();
        (told.expect(200), replayed)
    };
    let mut first = [sent(&app, &id, "file", file, 200).await, add().await];
    for (body, replayed) in &mut first {
        assert!(!*replayed);
        assert_eq!(body["data"]["errors"][0]["value"], "12-odd");
        body["data"]["errors"][0]["value"] = json!("");
        *replayed = true;
    }
    let again = [sent(&app, &id, "file", file, 200).await, add().await];
    assert_eq!(again, first);
    let said = "select count(*) from idempotency_keys where body::text like '%12-odd%'";
    assert_eq!(app.count(said).await, 0);
    app.drop_jobs().await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_at_once_under_one_key_are_one_upload() {
    let app = quiet().await;
    let id = app.create_batch(json!({})).await;
    let file = people_csv(500);
    let all = (0..20).map(|_| send_request(upload(&app, &app.tenant, &id, "k", &file)));
    let mut made = BTreeSet::new();
    for told in join_all(all).await {
        match told.status.as_u16() {
            200 | 202 => {
                made.insert(told.json()["data"]["ingest_id"].to_string());
            }
            409 => assert_eq!(told.json()["code"], "idempotency_key_in_use"),
            503 => assert_eq!(told.json()["code"], "busy"),
            odd => panic!("{odd}: {}", told.text),
        }
    }
    assert_eq!(made.len(), 1);
    assert_eq!(app.count(INGESTS).await, 1);
    assert_eq!(app.count(HOLDS).await, 0);
    assert_eq!(app.count(FILES).await, 0);
    app.drop_jobs().await;
    app.finish().await;
}

/// A form with one file, written by hand, so that it can stop anywhere.
fn form(file: &str) -> String {
    format!(
        "--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.csv\"\r\n\r\n{file}\r\n--x--\r\n"
    )
}

/// A connection on which an upload under a key has begun.
async fn begin(app: &App, batch: &str, key: &str, bytes: usize) -> TcpStream {
    let host = app.url.strip_prefix("http://").expect("a host");
    let mut socket = TcpStream::connect(host).await.expect("connected");
    let head = format!(
        "POST {BASE}/upload/{batch} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\nx-api-key: {}\r\n\
         idempotency-key: {key}\r\ncontent-length: {bytes}\r\n\
         content-type: multipart/form-data; boundary=x\r\n\r\n",
        app.tenant.api_key
    );
    socket.write_all(head.as_bytes()).await.expect("sent");
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_upload_is_under_way_is_in_use_until_it_has_ended() {
    let app = quiet().await;
    let id = app.create_batch(json!({})).await;
    let file = people_csv(20_000);
    let whole = form(&file);
    let (now, later) = whole.as_bytes().split_at(300_000);
    let mut socket = begin(&app, &id, "k", whole.len()).await;
    socket.write_all(now).await.expect("sent");
    eventually("the upload has begun", TEST_TIMEOUT, || async {
        app.count(HOLDS).await == 1
    })
    .await;
    let (refused, _) = sent(&app, &id, "k", &file, 409).await;
    assert_eq!(refused["code"], "idempotency_key_in_use");
    sent(&app, &id, "another", &people_csv(2), 200).await;
    socket.write_all(later).await.expect("sent");
    let mut told = String::new();
    socket.read_to_string(&mut told).await.expect("an answer");
    assert!(told.starts_with("HTTP/1.1 200"), "{told}");
    let (_, replayed) = sent(&app, &id, "k", &file, 200).await;
    assert!(replayed);

    // One that breaks off gives its key back; one whose process has died loses it in time.
    let mut broken = begin(&app, &id, "broken", whole.len()).await;
    broken.write_all(now).await.expect("sent");
    eventually("the upload has begun", TEST_TIMEOUT, || async {
        app.count(HOLDS).await == 1
    })
    .await;
    drop(broken);
    eventually("the key is free", TEST_TIMEOUT, || async {
        app.count(HOLDS).await == 0
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
    sent(&app, &id, "dead", &people_csv(2), 200).await;
    app.drop_jobs().await;
    app.finish().await;
}
