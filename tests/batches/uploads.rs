//! Uploads over HTTP: accepted and refused files, cleanup after refused or aborted uploads, and the
//! visibility of uploads, rows and calls.

use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use futures::stream;
use peal_shared::access::Role;
use reqwest::multipart::{Form, Part};
use reqwest::{Body, Method};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::app::{
    ApiResponse, App, AppOptions, TEST_TIMEOUT, Tenant, people_csv, phone_number, send_request,
};
use crate::harness::members::{create_member, with_key, with_session};
use crate::harness::{assert_denied_within_a_second, eventually};

const BATCHES_PATH: &str = "/api/v1/batch-call";
const UNKNOWN_ID: &str = "0197d7a5-0000-7000-8000-000000000000";

async fn app_with_small_upload_limit() -> App {
    App::start_with(AppOptions {
        workers: 0,
        settings: |settings| settings.upload_max_mb = "2".to_owned(),
        ..AppOptions::default()
    })
    .await
}

/// CSV file of a thousand rows, larger than the part that is read before the response.
fn large_csv() -> String {
    let name = "x".repeat(1_200);
    (0..1_000).fold("to_phonenumber,name\n".to_owned(), |csv, n| {
        csv + &format!("{},{name}\n", phone_number(n))
    })
}

fn csv_part(text: impl Into<String>) -> Part {
    Part::text(text.into()).file_name("people.csv")
}

async fn send_form(app: &App, batch: &str, form: Form) -> ApiResponse {
    let path = format!("{BATCHES_PATH}/upload/{batch}");
    send_request(app.request(Method::POST, &path).multipart(form)).await
}

fn error_code(problem: &Value) -> &str {
    problem["code"].as_str().expect("a code")
}

/// Number of files in the store, unfinished ones included.
fn count_files(directory: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    entries
        .map(|entry| match entry.expect("an entry").path() {
            path if path.is_dir() => count_files(&path),
            _ => 1,
        })
        .sum()
}

async fn assert_nothing_is_left(app: &App) {
    assert_eq!(app.count("select count(*) from ingests").await, 0);
    assert_eq!(app.count("select count(*) from batch_data").await, 0);
    assert_eq!(app.count("select count(*) from upload_files").await, 0);
    let store = app.store_dir();
    eventually("the store is empty", TEST_TIMEOUT, || async {
        count_files(&store) == 0
    })
    .await;
}

async fn request_status(
    app: &App,
    tenant: &Tenant,
    method: Method,
    path: &str,
    body: Value,
) -> u16 {
    let mut request = app.request_as(tenant, method, path);
    if !body.is_null() {
        request = request.json(&body);
    }
    send_request(request).await.status.as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_without_exactly_one_file_is_refused_with_the_field() {
    let app = app_with_small_upload_limit().await;
    let id = app.create_batch(json!({})).await;
    let cases = [
        (Form::new().part("datei", csv_part(people_csv(3))), "datei"),
        (
            Form::new()
                .part("file", csv_part(people_csv(3)))
                .part("more", csv_part(people_csv(3))),
            "more",
        ),
    ];
    for (form, field) in cases {
        let problem = send_form(&app, &id, form).await.expect(422);
        assert_eq!(problem["errors"][0]["loc"], json!(["body", field]));
    }

    let empty = send_request(raw_upload(&app, &id, "--x--\r\n"))
        .await
        .expect(422);
    assert_eq!(empty["errors"][0]["loc"], json!(["body", "file"]));
    let path = format!("{BATCHES_PATH}/upload/{id}");
    app.post(&path, json!({})).await.expect(415);
    assert_nothing_is_left(&app).await;
    app.finish().await;
}

/// Body of a form with one file, as text that can be cut anywhere.
fn form_body(file: &str) -> String {
    format!(
        "--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.csv\"\r\n\r\n{file}\r\n--x--\r\n"
    )
}

fn raw_upload(app: &App, batch: &str, body: impl Into<Body>) -> reqwest::RequestBuilder {
    app.request(Method::POST, &format!("{BATCHES_PATH}/upload/{batch}"))
        .header("content-type", "multipart/form-data; boundary=x")
        .body(body)
}

/// Opens a connection and sends the head of an upload with this length.
async fn begin_upload(app: &App, batch: &str, bytes: usize) -> TcpStream {
    let host = app.url.strip_prefix("http://").unwrap();
    let mut socket = TcpStream::connect(host).await.unwrap();
    let head = format!(
        "POST {BATCHES_PATH}/upload/{batch} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\nx-api-key: {}\r\ncontent-length: {bytes}\r\ncontent-type: multipart/form-data; boundary=x\r\n\r\n",
        app.tenant.api_key
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket
}

/// Response to a client that reads only after it has sent the whole body.
async fn send_without_reading(app: &App, batch: &str, body: &str) -> String {
    let mut socket = begin_upload(app, batch, body.len()).await;
    socket
        .write_all(body.as_bytes())
        .await
        .expect("the whole body is accepted");
    let mut response = String::new();
    socket
        .read_to_string(&mut response)
        .await
        .expect("an answer");
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let app = app_with_small_upload_limit().await;
    let id = app.create_batch(json!({})).await;
    let large = form_body(&people_csv(200_000));
    assert!(large.len() > 5_000_000);
    let in_pieces = |body: &str| {
        let body = Bytes::from(body.to_owned());
        let pieces: Vec<_> = (0..body.len())
            .step_by(10_000)
            .map(|at| Ok::<_, std::io::Error>(body.slice(at..body.len().min(at + 10_000))))
            .collect();
        Body::wrap_stream(stream::iter(pieces))
    };
    for body in [Body::from(large.clone()), in_pieces(&large)] {
        let problem = send_request(raw_upload(&app, &id, body)).await.expect(413);
        assert_eq!(error_code(&problem), "too_large");
    }

    let compressed = form_body(&format!("BZh{}", "9".repeat(5_000_000)));
    let problem = send_request(raw_upload(&app, &id, in_pieces(&compressed))).await;
    assert_eq!(error_code(&problem.expect(400)), "compressed_file");
    let small_enough = form_body(&format!("BZh{}", "9".repeat(1_900_000)));
    for (batch, body, expected) in [
        (id.as_str(), &large, "too_large"),
        (&id, &small_enough, "compressed_file"),
        (UNKNOWN_ID, &large, "not_found"),
    ] {
        let response = send_without_reading(&app, batch, body).await;
        assert!(response.contains(expected), "{response}");
    }

    let unknown = send_request(raw_upload(&app, UNKNOWN_ID, large.clone()))
        .await
        .expect(404);
    assert_eq!(error_code(&unknown), "not_found");
    assert_nothing_is_left(&app).await;

    sqlx::query("update call_batches set status = 'stopped'")
        .execute(&app.context.pool)
        .await
        .unwrap();
    let started = send_request(raw_upload(&app, &id, large)).await.expect(409);
    assert_eq!(error_code(&started), "batch_started");
    assert_nothing_is_left(&app).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_form_without_a_file_is_refused() {
    let app = app_with_small_upload_limit().await;
    let id = app.create_batch(json!({})).await;
    let header = "--x\r\ncontent-disposition: form-data; name=\"file\"; x=\"";
    for beginning in ["", header] {
        let endless = stream::unfold(0_u64, |sent| async move {
            tokio::task::yield_now().await;
            let piece = Bytes::from(vec![b'a'; 10_000]);
            // Ends the stream if the server does not refuse it.
            (sent < 500_000_000).then_some((Ok::<_, std::io::Error>(piece), sent + 10_000))
        });
        let beginning = stream::iter([Ok(Bytes::from(beginning))]);
        let body = Body::wrap_stream(futures::StreamExt::chain(beginning, endless));
        let problem = send_request(raw_upload(&app, &id, body)).await.expect(400);
        assert_eq!(error_code(&problem), "form_unreadable");
    }
    assert_nothing_is_left(&app).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_upload_gets_408_and_leaves_nothing() {
    let app = App::start_with(AppOptions {
        workers: 0,
        settings: |settings| settings.upload_stall_secs = "1".to_owned(),
        ..AppOptions::default()
    })
    .await;
    let id = app.create_batch(json!({})).await;
    let whole = form_body(&people_csv(40_000));
    let stalled = [0, 40, 200_000, whole.len() - 5].map(async |sent| {
        let mut socket = begin_upload(&app, &id, whole.len()).await;
        socket.write_all(&whole.as_bytes()[..sent]).await.unwrap();
        // No more bytes follow, and the connection stays open.
        let mut response = Vec::new();
        while !response.ends_with(b"}") {
            let piece = tokio::time::timeout(TEST_TIMEOUT, socket.read_buf(&mut response)).await;
            let bytes = piece.expect("an answer in time").expect("an answer");
            assert!(bytes > 0, "{sent}: hung up without an answer");
        }
        let response = String::from_utf8(response).unwrap();
        assert!(response.starts_with("HTTP/1.1 408"), "{sent}: {response}");
        assert!(
            response.contains("application/problem+json"),
            "{sent}: {response}"
        );
        assert!(response.contains("upload_stalled"), "{sent}: {response}");
    });

    futures::future::join_all(stalled).await;
    assert_nothing_is_left(&app).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_upload_leaves_nothing() {
    let app = app_with_small_upload_limit().await;
    let id = app.create_batch(json!({})).await;
    let whole = form_body(&large_csv());
    for sent in [40, 200_000, whole.len() - 5] {
        let mut socket = begin_upload(&app, &id, whole.len()).await;
        socket.write_all(&whole.as_bytes()[..sent]).await.unwrap();
        socket.shutdown().await.unwrap();
        // The server closes the connection after its cleanup.
        let mut rest = Vec::new();
        let _closed = socket.read_to_end(&mut rest).await;
        assert!(!rest.starts_with(b"HTTP/1.1 2"), "{sent}");
    }
    assert_nothing_is_left(&app).await;
    let accepted = send_request(raw_upload(&app, &id, whole)).await.expect(202);
    assert_eq!(accepted["data"]["status"], "queued");
    assert_eq!(count_files(&app.store_dir()), 1);

    // A batch with a queued ingest is not deleted, since its file would be lost.
    let busy = send_request(app.request(Method::DELETE, &format!("{BATCHES_PATH}/{id}"))).await;
    assert_eq!(error_code(&busy.expect(409)), "ingest_running");

    let mut app = app;
    app.start_worker(&peal_worker::Role::ALL).await;
    eventually("the file is read and removed", TEST_TIMEOUT, || async {
        count_files(&app.store_dir()) == 0
    })
    .await;
    assert_eq!(app.count("select count(*) from batch_data").await, 1_000);
    send_request(app.request(Method::DELETE, &format!("{BATCHES_PATH}/{id}")))
        .await
        .expect(200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_job_dies_fails_and_its_uploader_is_notified() {
    let mut app = app_with_small_upload_limit().await;
    let id = app.create_batch(json!({})).await;

    let whole = form_body(&large_csv());
    for death in [
        // The last attempt fails on an unreadable checkpoint.
        "with broken as (
             update ingests set state = 'running', started_at = now(), checkpoint = '[]'
             where state = 'queued'
         )
         update jobs set attempts = max_attempts - 1 where state = 'ready'",
        // The last attempt crashed its worker.
        "update jobs
         set state = 'dead', finished_at = now(), last_error = 'without a word'
         where state = 'ready'",
    ] {
        let accepted = send_request(raw_upload(&app, &id, whole.clone()))
            .await
            .expect(202);
        assert_eq!(count_files(&app.store_dir()), 1);
        sqlx::query(death).execute(&app.context.pool).await.unwrap();

        app.start_worker(&peal_worker::Role::ALL).await;
        let ingest = accepted["data"]["ingest_id"].as_str().unwrap();
        let path = format!("{BATCHES_PATH}/{id}/ingests/{ingest}");
        let ended = || async { app.get(&path).await.expect(200)["data"]["status"] == "failed" };
        eventually("the ingest is given up", TEST_TIMEOUT, ended).await;
        let report = app.get(&path).await.expect(200)["data"].clone();
        assert_eq!(report["failure"]["code"], "gave_up");

        eventually("the file is removed", TEST_TIMEOUT, || async {
            count_files(&app.store_dir()) == 0
        })
        .await;
        eventually("the uploader is notified", TEST_TIMEOUT, || async {
            let notified = "select count(*) from emails where kind = 'ingest_finished' and sent_at is not null";
            app.count(notified).await == app.count("select count(*) from ingests").await
        })
        .await;
        app.stop_workers().await;
    }

    sqlx::query("delete from jobs where state = 'dead'")
        .execute(&app.context.pool)
        .await
        .unwrap();
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_inserted_once_and_its_errors_can_be_downloaded() {
    let app = app_with_small_upload_limit().await;
    let id = app
        .create_batch(json!({"variable_names": ["name", "city"]}))
        .await;
    let list = format!(
        "to_phonenumber,name,city\n{},Ada,\n{},,Rome\nnonsense,Bob,Oslo\n",
        phone_number(1),
        phone_number(2)
    );
    let first = app.upload(&id, &list).await;
    let counts = |report: &Value| {
        ["inserted", "duplicates", "failed", "total_rows"].map(|key| report[key].as_i64().unwrap())
    };
    // The agent's greeting uses the name but not the city.
    assert_eq!(counts(&first), [1, 0, 2, 3], "{first}");
    let errors_by_row: Vec<_> = first["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| {
            (
                error["row"].as_i64().unwrap(),
                error["column"].as_str().unwrap(),
                error_code(error),
            )
        })
        .collect();
    assert_eq!(errors_by_row[0], (3, "name", "missing_variable"));
    assert_eq!(
        (errors_by_row[1].0, errors_by_row[1].1),
        (4, "to_phonenumber")
    );

    let errors = app.get(first["error_report_url"].as_str().unwrap()).await;
    assert_eq!(errors.headers["content-type"], "text/csv; charset=utf-8");
    assert!(
        errors
            .text
            .starts_with("to_phonenumber,name,city,line,column,value,code,message\r\n"),
        "{}",
        errors.text
    );
    assert!(
        errors.text.contains("missing_variable") && errors.text.contains("nonsense"),
        "{}",
        errors.text
    );

    let again = app.upload(&id, &list).await;
    assert_eq!(counts(&again), [0, 1, 2, 3], "{again}");
    assert_eq!(count_files(&app.store_dir()), 0);

    let record = json!({"records": [{"to_phonenumber": phone_number(5), "city": "Rome"}]});
    let path = format!("{BATCHES_PATH}/upload-json/{id}");
    let refused = app.post(&path, record).await.expect(200)["data"].clone();
    assert_eq!(counts(&refused), [0, 0, 1, 1]);
    sqlx::query("delete from jobs")
        .execute(&app.context.pool)
        .await
        .unwrap();
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrected_error_file_inserts_the_rejected_rows() {
    let app = app_with_small_upload_limit().await;
    // Variables may have the names of the reason columns, with or without a column in the list.
    let id = app
        .create_batch(json!({"variable_names": ["name", "code", "value"]}))
        .await;
    let list = format!(
        "ref;name;timezone;code;to_phonenumber\n1;Ada;;=1+1;{}\n2;\"O;Neil\";Asia/Tokyo;=2+2;12\n3;;;-7;{}\n",
        phone_number(1),
        phone_number(2)
    );
    let counts = |report: &Value| ["inserted", "failed"].map(|key| report[key].as_i64().unwrap());
    let first = app.upload(&id, &list).await;
    assert_eq!(counts(&first), [1, 2]);
    let errors = app
        .get(first["error_report_url"].as_str().unwrap())
        .await
        .text;
    let lines: Vec<&str> = errors.lines().collect();
    assert_eq!(
        lines[0],
        "to_phonenumber,timezone,name,code,line,column,value,code,message"
    );
    assert!(
        lines[1].starts_with("12,Asia/Tokyo,O;Neil,'=2+2,3,to_phonenumber,12,missing_country,"),
        "{errors}"
    );
    assert!(
        lines[2].starts_with(&format!(
            "{},,,'-7,4,name,,missing_variable,",
            phone_number(2)
        )),
        "{errors}"
    );
    assert_eq!(lines.len(), 3);

    // Unchanged, its rows are rejected for the same reasons.
    let again = app.upload(&id, &errors).await;
    assert_eq!(counts(&again), [0, 2]);

    let corrected = errors
        .replacen("\n12,", &format!("\n{},", phone_number(3)), 1)
        .replacen(",,,'-7", ",,Bo,'-7", 1);
    let last = app.upload(&id, &corrected).await;
    assert_eq!(counts(&last), [2, 0]);
    let warnings = last["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 1, "{last}");
    assert!(
        warnings[0].as_str().unwrap().contains("\"value\""),
        "{last}"
    );

    let rows = app
        .get(&format!("{BATCHES_PATH}/{id}/data"))
        .await
        .expect(200)["data"]
        .clone();
    let values = |row: usize| &rows[row]["variable_values"];
    assert_eq!(values(0), &json!({"name": "Ada", "code": "=1+1"}));
    assert_eq!(values(1), &json!({"name": "O;Neil", "code": "=2+2"}));
    assert_eq!(values(2), &json!({"name": "Bo", "code": "-7"}));
    sqlx::query("delete from jobs")
        .execute(&app.context.pool)
        .await
        .unwrap();
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_with_the_most_variables_accepts_its_own_template() {
    let app = app_with_small_upload_limit().await;
    let mut names: Vec<String> = (1..50).map(|n| format!("v{n}")).collect();
    names.push("name".to_owned());
    let id = app.create_batch(json!({ "variable_names": names })).await;
    let template = app.get(&format!("{BATCHES_PATH}/template/{id}")).await.text;
    let person = format!("{}{},Ada", phone_number(1), ",x".repeat(49));
    let list = format!("{},timezone\n{person},Asia/Tokyo\n", template.trim());
    let report = app.upload(&id, &list).await;
    assert_eq!(report["inserted"], 1, "{report}");
    assert_eq!(report["warnings"], json!([]));
    let rows = app
        .get(&format!("{BATCHES_PATH}/{id}/data"))
        .await
        .expect(200);
    let values = &rows["data"][0]["variable_values"];
    assert_eq!(values.as_object().map(serde_json::Map::len), Some(50));
    assert_eq!(
        (&values["v1"], &values["name"]),
        (&json!("x"), &json!("Ada"))
    );

    let wider = format!("{},timezone,more\n{person},,\n", template.trim());
    let refused = send_form(&app, &id, Form::new().part("file", csv_part(wider))).await;
    assert_eq!(error_code(&refused.expect(400)), "too_many_columns");
    app.finish().await;
}

/// Changes the variables of the batch.
async fn change_variables(app: &App, batch: &str) -> ApiResponse {
    let path = format!("{BATCHES_PATH}/{batch}/variables");
    let body = json!({"variable_names": ["name", "city"]});
    send_request(app.request(Method::PATCH, &path).json(&body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_reports_progress_and_blocks_changes_of_variables() {
    let mut app = app_with_small_upload_limit().await;
    let id = app.create_batch(json!({})).await;
    let list = large_csv();
    let bytes = list.len();
    let accepted = send_form(&app, &id, Form::new().part("file", csv_part(list))).await;
    let report = accepted.expect(202)["data"].clone();
    assert_eq!(report["ingest_job_id"], report["ingest_id"]);
    assert_eq!(
        (&report["file_bytes"], &report["bytes_read"]),
        (&json!(bytes), &json!(0))
    );

    let refused = change_variables(&app, &id).await.expect(409);
    assert_eq!(error_code(&refused), "ingest_running");

    app.start_worker(&peal_worker::Role::ALL).await;
    let ingest = report["ingest_id"].as_str().expect("an id");
    let path = format!("{BATCHES_PATH}/{id}/ingests/{ingest}");
    let is_ingested =
        || async { app.get(&path).await.expect(200)["data"]["status"] == "completed" };
    eventually("the file is ingested", TEST_TIMEOUT, is_ingested).await;
    let report = app.get(&path).await.expect(200)["data"].clone();
    assert_eq!(report["bytes_read"], json!(bytes), "{report}");
    change_variables(&app, &id).await.expect(200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_visible_according_to_the_role() {
    let app = app_with_small_upload_limit().await;
    let id = app.create_batch(json!({})).await;
    let colleague = create_member(&app, "colleague@example.com", Role::User).await;
    let admin = create_member(&app, "admin@example.com", Role::OrgAdmin).await;
    let other = app.create_tenant("Other").await;
    let root = Tenant {
        session: create_member(&app, "root@example.com", Role::SuperAdmin)
            .await
            .session,
        ..other.clone()
    };

    // A key sees only its user's own batches, regardless of the user's role.
    let key = with_key(&admin);

    let paths = ["", "/status", "/data", "/readiness", "/ingests"];
    for path in paths.map(|rest| format!("{BATCHES_PATH}/{id}{rest}")) {
        for (tenant, expected) in [
            (&colleague, 404),
            (&admin, 200),
            (&key, 404),
            (&root, 200),
            (&other, 404),
        ] {
            let response_status =
                request_status(&app, tenant, Method::GET, &path, Value::Null).await;
            assert_eq!(response_status, expected, "{path}");
        }
    }

    let batches = async |tenant: &Tenant| {
        let request = app.request_as(tenant, Method::GET, &format!("{BATCHES_PATH}/browse"));
        send_request(request).await.expect(200)["data"]["total"].clone()
    };
    assert_eq!(batches(&colleague).await, 0);
    assert_eq!(batches(&admin).await, 1);
    assert_eq!(batches(&key).await, 0);
    assert_eq!(batches(&root).await, 1);
    assert_eq!(batches(&other).await, 0);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_created_only_for_oneself_or_a_member() {
    let app = app_with_small_upload_limit().await;
    let other = app.create_tenant("Other").await;
    let user_of = async |org: peal_shared::platform::ids::OrgId| -> uuid::Uuid {
        sqlx::query_scalar("select id from users where org_id = $1 order by created_at limit 1")
            .bind(org)
            .fetch_one(&app.context.pool)
            .await
            .unwrap()
    };
    let (ours, theirs) = (user_of(app.tenant.org).await, user_of(other.org).await);
    let colleague = create_member(&app, "colleague@example.com", Role::User).await;
    let root = create_member(&app, "root@example.com", Role::SuperAdmin).await;
    let path = format!("{BATCHES_PATH}/create");
    let body = |tenant: &Tenant, user: Option<uuid::Uuid>| {
        json!({"caller_phone_id": tenant.phone, "agent_id": tenant.agent, "batch_name": "March",
               "user_id": user, "call_flow_id": null})
    };

    let admin = with_session(&app, &app.tenant).await;
    for (caller, body, expected) in [
        (&colleague, body(&app.tenant, Some(ours)), 403),
        (&app.tenant, body(&app.tenant, Some(theirs)), 403),
        (&admin, body(&app.tenant, Some(theirs)), 404),
        (
            &admin,
            body(&app.tenant, Some(UNKNOWN_ID.parse().unwrap())),
            404,
        ),
        (&app.tenant, body(&app.tenant, Some(ours)), 201),
        (&app.tenant, body(&other, None), 404),
        (&root, body(&other, None), 400),
        (&root, body(&other, Some(theirs)), 201),
    ] {
        let created = request_status(&app, caller, Method::POST, &path, body.clone()).await;
        assert_eq!(created, expected, "{body}");
    }

    let mut foreign_phone = body(&app.tenant, None);
    foreign_phone["caller_phone_id"] = json!(other.phone);
    app.post(&path, foreign_phone).await.expect(404);
    let mut flow = body(&app.tenant, None);
    flow["call_flow_id"] = json!(UNKNOWN_ID);
    app.post(&path, flow).await.expect(422);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_uploads_rows_calls_and_numbers_return_404() {
    let app = app_with_small_upload_limit().await;
    let other = app.create_tenant("Other").await;
    let id = app.create_batch(json!({})).await;
    let ingest = app
        .upload(&id, &format!("{}nonsense,X\n", people_csv(2)))
        .await;
    let ingest = ingest["ingest_id"].as_str().unwrap();
    let rows = app
        .get(&format!("{BATCHES_PATH}/{id}/data"))
        .await
        .expect(200);
    let row = rows["data"][0]["id"].as_str().unwrap();
    let phone = app.tenant.phone;
    let call_path = |agent, extra: &str| {
        format!("/api/call/create_call?phoneNumber=%2B12125559999&agent_id={agent}{extra}")
    };
    let call = app
        .post(
            &call_path(app.tenant.agent, ""),
            json!({"variable_values": {"name": "Ada"}}),
        )
        .await
        .expect(202);
    let call = call["call_session_id"].as_str().unwrap();

    let upload = app.request_as(&other, Method::POST, &format!("{BATCHES_PATH}/upload/{id}"));
    let upload =
        send_request(upload.multipart(Form::new().part("file", csv_part(people_csv(1))))).await;
    upload.expect(404);

    for (method, path) in [
        (Method::GET, format!("{BATCHES_PATH}/{id}/ingests/{ingest}")),
        (
            Method::GET,
            format!("{BATCHES_PATH}/{id}/ingests/{ingest}/errors"),
        ),
        (Method::DELETE, format!("{BATCHES_PATH}/{id}/data/{row}")),
        (Method::GET, format!("/api/call/{call}")),
        (Method::POST, call_path(app.tenant.agent, "")),
        (
            Method::POST,
            call_path(other.agent, &format!("&phone_number_id={phone}")),
        ),
    ] {
        let response_status = request_status(&app, &other, method, &path, Value::Null).await;
        assert_eq!(response_status, 404, "{path}");
    }

    // An ingest is not found under another batch, even by its owner.
    let second = app.create_batch(json!({})).await;
    app.get(&format!("{BATCHES_PATH}/{second}/ingests/{ingest}"))
        .await
        .expect(404);
    app.get(&format!("{BATCHES_PATH}/{second}/ingests/{ingest}/errors"))
        .await
        .expect(404);
    assert_eq!(app.count("select count(*) from batch_data").await, 2);

    app.drop_jobs().await;
    app.drop_calls().await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_refused_within_a_second() {
    let app = app_with_small_upload_limit().await;
    let path = format!("{BATCHES_PATH}/me");
    app.get(&path).await.expect(200);
    sqlx::query("update api_keys set revoked_at = now()")
        .execute(&app.context.pool)
        .await
        .unwrap();
    let ask = || async { app.get(&path).await.status.as_u16() };
    assert_denied_within_a_second(Instant::now(), ask).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_item_of_an_upsert_succeeds_or_fails_on_its_own() {
    let app = app_with_small_upload_limit().await;
    let id = app.create_batch(json!({})).await;
    app.add_people(&id, 4).await;
    let path = format!("{BATCHES_PATH}/{id}/data");
    let read = async || app.get(&path).await.expect(200)["data"].clone();
    let rows = read().await;
    let row = |n: usize| rows[n]["id"].clone();
    let variables = json!({"name": "Eve"});

    let items = json!({"items": [
        {"id": row(0), "to_phonenumber": phone_number(50), "variable_values": variables},
        {"id": row(1), "to_phonenumber": "nonsense", "variable_values": variables},
        {"id": row(1), "to_phonenumber": phone_number(3), "variable_values": variables},
        {"id": UNKNOWN_ID, "to_phonenumber": phone_number(51), "variable_values": variables},
        {"id": row(2), "to_phonenumber": phone_number(52)},
        {"id": row(2), "to_phonenumber": phone_number(53)},
        {"id": row(3), "to_phonenumber": phone_number(52)},
        {"id": row(3), "to_phonenumber": phone_number(3), "variable_values": {"name": ""}},
        {"to_phonenumber": phone_number(60), "variable_values": variables},
    ]});

    let result = app
        .post(&format!("{BATCHES_PATH}/{id}/data/upsert"), items)
        .await
        .expect(200)["data"]
        .clone();
    assert_eq!(
        (&result["updated"], &result["inserted"]),
        (&json!(2), &json!(1)),
        "{result}"
    );

    let errors = result["errors"].as_array().unwrap().iter();
    let errors: Vec<_> = errors
        .map(|error| (error["index"].as_i64().unwrap(), error_code(error)))
        .collect();
    let expected = [
        (2, "duplicate_number"),
        (3, "not_found"),
        (5, "duplicate_item"),
        (6, "duplicate_number"),
        (7, "missing_variable"),
    ];
    assert_eq!(errors[0].0, 1);
    assert_eq!(errors[1..], expected);

    let after = read().await;
    let shown: Vec<_> = (0..5)
        .map(|n| {
            (
                after[n]["to_phonenumber"].clone(),
                after[n]["variable_values"]["name"].clone(),
            )
        })
        .collect();

    let person = |n: u32| json!(format!("Person {n}"));
    assert_eq!(
        shown,
        [
            (json!(phone_number(50)), json!("Eve")),
            (json!(phone_number(1)), person(1)),
            (json!(phone_number(52)), person(2)),
            (json!(phone_number(3)), person(3)),
            (json!(phone_number(60)), json!("Eve")),
        ]
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_rows_is_limited_by_bytes() {
    let app = app_with_small_upload_limit().await;
    let id = app.create_batch(json!({})).await;
    app.add_people(&id, 5).await;
    sqlx::query("update batch_data set variable_values = jsonb_build_object('name', repeat('x', 3000000)) where row_no < 5")
        .execute(&app.context.pool)
        .await
        .unwrap();
    let page = async |query: &str| {
        let page = app.get(&format!("{BATCHES_PATH}/{id}/data?{query}")).await;
        let rows = page.expect(200)["data"].as_array().unwrap().len();
        (rows, page.headers.contains_key("x-truncated"))
    };
    assert_eq!(page("").await, (3, true));
    assert_eq!(page("after=3").await, (2, false));
    assert_eq!(page("limit=1").await, (1, true));
    assert_eq!(page("after=4&limit=1").await, (1, false));
    assert_eq!(page("status=failed").await, (0, false));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_uploads_are_limited() {
    let app = app_with_small_upload_limit().await;
    let id = app.create_batch(json!({})).await;

    let whole = form_body(&people_csv(3));
    let mut open = Vec::new();
    // An upload takes its permit shortly after it begins, so a few more may be accepted.
    loop {
        assert!(open.len() < 64, "no upload is refused");
        let mut socket = begin_upload(&app, &id, whole.len()).await;
        socket.write_all(&whole.as_bytes()[..50]).await.unwrap();
        open.push(socket);
        let more = send_request(raw_upload(&app, &id, whole.clone())).await;
        if more.status.as_u16() == 503 {
            assert!(more.headers.contains_key("retry-after"));
            break;
        }
    }

    assert!(open.len() >= 32, "refused after {}", open.len());
    drop(open);
    eventually("a permit is free again", TEST_TIMEOUT, || async {
        send_request(raw_upload(&app, &id, whole.clone()))
            .await
            .status
            .as_u16()
            == 200
    })
    .await;

    sqlx::query("delete from jobs")
        .execute(&app.context.pool)
        .await
        .unwrap();
    app.finish().await;
}
