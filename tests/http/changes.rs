//! Rules of every changing request: it happens once under one `Idempotency-Key`, it leaves one row
//! in the audit log, and row-level security keeps it inside its organisation.

use std::collections::BTreeSet;

use futures::future::join_all;
use peal_shared::access::row_level_security;
use peal_shared::platform::ids::UserId;
use peal_shared::users;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Row as _;

use crate::harness::app::{App, AppOptions, Tenant, send_request};

const CREATE_PATH: &str = "/api/v1/batch-call/create";
const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

async fn without_workers() -> App {
    App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await
}

fn batch_body(tenant: &Tenant, name: &str) -> Value {
    json!({"caller_phone_id": tenant.phone, "agent_id": tenant.agent, "batch_name": name})
}

fn create_request(app: &App, tenant: &Tenant, key: &str, body: &Value) -> reqwest::RequestBuilder {
    app.request_as(tenant, Method::POST, CREATE_PATH)
        .header(IDEMPOTENCY_KEY, key)
        .json(body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_under_one_key_happens_once() {
    let app = without_workers().await;
    let march = batch_body(&app.tenant, "March");
    let first = send_request(create_request(&app, &app.tenant, "k-1", &march)).await;
    assert!(first.headers.get("idempotent-replayed").is_none());

    let again = send_request(create_request(&app, &app.tenant, "k-1", &march)).await;
    assert_eq!(again.headers["idempotent-replayed"], "true");

    let id = first.expect(201)["data"]["id"].clone();
    assert_eq!(again.expect(201)["data"]["id"], id);

    let other = send_request(create_request(
        &app,
        &app.tenant,
        "k-1",
        &batch_body(&app.tenant, "May"),
    ))
    .await;
    let problem = other.expect(422);
    assert_eq!(problem["errors"][0]["type"], "key_reused");

    let stranger = app.create_tenant("Other").await;
    let theirs = send_request(create_request(
        &app,
        &stranger,
        "k-1",
        &batch_body(&stranger, "March"),
    ))
    .await;
    assert_ne!(theirs.expect(201)["data"]["id"], id);
    assert_eq!(app.count("select count(*) from call_batches").await, 2);

    for odd in ["", "\u{7f}", &"k".repeat(256)] {
        let refused = app.request(Method::POST, CREATE_PATH).json(&march);
        let refused = refused.header(
            IDEMPOTENCY_KEY,
            reqwest::header::HeaderValue::from_bytes(odd.as_bytes())
                .unwrap_or_else(|_| "".parse().expect("empty")),
        );
        send_request(refused).await.expect(422);
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_does_not_use_up_its_key() {
    let app = without_workers().await;
    let mut wrong = batch_body(&app.tenant, "March");
    wrong["agent_id"] = json!(uuid::Uuid::nil());
    send_request(create_request(&app, &app.tenant, "k-1", &wrong))
        .await
        .expect(404);
    send_request(create_request(
        &app,
        &app.tenant,
        "k-1",
        &batch_body(&app.tenant, "March"),
    ))
    .await
    .expect(201);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_under_one_key_have_one_effect() {
    let app = without_workers().await;
    let march = batch_body(&app.tenant, "March");
    let answers =
        join_all((0..100).map(|_| send_request(create_request(&app, &app.tenant, "k-1", &march))))
            .await;

    let mut made = BTreeSet::new();
    for answer in answers {
        match answer.status.as_u16() {
            201 => {
                made.insert(answer.json()["data"]["id"].to_string());
            }
            409 => assert_eq!(answer.json()["code"], "idempotency_key_in_use"),
            odd => panic!("{odd}: {}", answer.json()),
        }
    }

    assert_eq!(made.len(), 1);
    assert_eq!(app.count("select count(*) from call_batches").await, 1);
    assert_eq!(app.count("select count(*) from audit_log").await, 1);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_leaves_one_row_in_the_audit_log() {
    let app = without_workers().await;
    let batch = app.create_batch(json!({})).await;
    let path = |rest: &str| format!("/api/v1/batch-call/{rest}");

    let request = app
        .request(Method::PATCH, &path(&format!("{batch}/variables")))
        .header("x-request-id", "asked-by-me")
        .json(&json!({"variable_names": ["name", "city"]}));
    send_request(request).await.expect(200);

    app.post(
        &path(&format!("upload-json/{batch}")),
        json!({"records": [{"to_phonenumber": "+12025550123"}]}),
    )
    .await
    .expect(200);

    // A refused change leaves no row.
    app.post(&path(&format!("pause/{batch}")), json!({}))
        .await
        .expect(409);
    send_request(app.request(Method::DELETE, &path(&batch)))
        .await
        .expect(200);

    let rows = sqlx::query(
        "select action, org_id, actor_kind, host(ip) as ip, request_id, before_digest is null as fresh,
                after_digest is null as gone, changed
         from audit_log order by id",
    )
    .fetch_all(&app.context.pool)
    .await
    .expect("the log");

    let actions: Vec<&str> = rows.iter().map(|row| row.get("action")).collect();
    assert_eq!(
        actions,
        [
            "batch.create",
            "batch.set_variables",
            "batch.add_records",
            "batch.delete"
        ]
    );

    let change = &rows[1];
    assert_eq!(change.get::<&str, _>("request_id"), "asked-by-me");
    assert_eq!(change.get::<&str, _>("actor_kind"), "api_key");
    assert_eq!(change.get::<&str, _>("ip"), "127.0.0.1");
    let changed: Vec<String> = change.get("changed");
    assert_eq!(changed, ["updated_at", "variable_names"]);
    assert!(rows[0].get("fresh") && rows[3].get("gone"));

    for tampering in [
        "update audit_log set action = 'batch.nothing'",
        "delete from audit_log",
        "truncate audit_log",
    ] {
        let refused = sqlx::query(tampering).execute(&app.context.pool).await;
        assert!(refused.is_err(), "{tampering}");
    }
    app.finish().await;
}

/// Tables without data of tenants.
const SHARED_TABLES: [&str; 3] = ["_sqlx_migrations", "queues", "zone_sets"];

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_transaction_sees_only_its_own_organisation() {
    let app = without_workers().await;
    let stranger = app.create_tenant("Other").await;
    app.create_batch(json!({})).await;
    let pool = &app.context.pool;

    let open: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class
         where relnamespace = 'public'::regnamespace and relkind = 'r'
           and not (relrowsecurity and relforcerowsecurity)
         order by relname",
    )
    .fetch_all(pool)
    .await
    .expect("tables");
    assert_eq!(
        open, SHARED_TABLES,
        "enable row-level security in the migration that creates a table"
    );

    let mut db = pool.acquire().await.expect("connection");
    let theirs: UserId = sqlx::query_scalar("select id from users where org_id = $1")
        .bind(stranger.org)
        .fetch_one(&mut *db)
        .await
        .expect("a user");
    let them = users::principal_unscoped(&mut db, theirs)
        .await
        .expect("a principal")
        .expect("a principal");
    drop(db);

    let mut bound = row_level_security::begin(pool, &them.scope())
        .await
        .expect("begin");
    let seen: (i64, i64, i64) = sqlx::query_as(
        "select (select count(*) from call_batches), (select count(*) from organizations),
                (select count(*) from agents where id <> $1)",
    )
    .bind(stranger.agent)
    .fetch_one(&mut *bound)
    .await
    .expect("counts");
    assert_eq!(seen, (0, 1, 0));

    let smuggled = sqlx::query("update agents set org_id = $1")
        .bind(app.tenant.org)
        .execute(&mut *bound)
        .await;
    assert!(smuggled.is_err());
    drop(bound);

    let mut unbound = pool
        .begin_with("begin; set local role peal_tenant")
        .await
        .expect("begin");
    let seen: i64 = sqlx::query_scalar("select count(*) from organizations")
        .fetch_one(&mut *unbound)
        .await
        .expect("count");
    assert_eq!(seen, 0);
    drop(unbound);

    let role: String = sqlx::query_scalar("select current_user::text")
        .fetch_one(pool)
        .await
        .expect("role");
    assert_eq!(role, "peal_system", "a connection is never left bound");
    app.finish().await;
}
