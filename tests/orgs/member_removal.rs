//! Removal of members: batches of a removed owner do not dial, and owners of running batches are
//! not removed.

use peal_api::cli::admin::AdminRole;
use peal_worker::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::auth::login::{SessionUser, without_workers};
use crate::harness::app::{ApiResponse, App, TEST_TIMEOUT};
use crate::harness::members::{send_as, with_session};
use crate::harness::{eventually, wait_for_blocked_query};

const BATCHES_PATH: &str = "/api/v1/batch-call";

/// A batch of the tenant's user with one row.
async fn create_batch_with_row(app: &App) -> String {
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 1).await;
    batch
}

async fn user_id(app: &App) -> String {
    let me = app.get("/api/v1/me").await.expect(200);
    me["user_id"].as_str().expect("an id").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_start_of_a_removed_owner_dials_no_row() {
    let mut app = without_workers().await;
    let root = SessionUser::new(&app, "root@example.com", "Platform", AdminRole::SuperAdmin).await;
    let token = root.token.clone();
    let id = create_batch_with_row(&app).await;
    app.start_batch(&id).await;
    sqlx::query("update users set removed_at = now() where email = 'acme@example.com'")
        .execute(&app.context.pool)
        .await
        .expect("gone");
    app.start_worker(&Role::ALL).await;

    let paused = "select count(*) from call_batches where status = 'paused'";
    eventually("the batch is paused", TEST_TIMEOUT, || async {
        app.count(paused).await == 1
    })
    .await;

    let root = SessionUser {
        app: &app,
        id: String::new(),
        token,
    };
    let shown = root.get(&format!("{BATCHES_PATH}/{id}")).await.expect(200);
    let why = shown["data"]["status_reason"].as_str().expect("a reason");
    assert!(
        why.contains("no longer a member of the organization"),
        "{why}"
    );

    let resumed = root
        .send(
            Method::POST,
            &format!("{BATCHES_PATH}/resume/{id}"),
            json!({}),
        )
        .await
        .expect(400);
    assert_eq!(resumed["blockers"][0]["code"], "owner_removed");
    let readiness = root.get(&format!("{BATCHES_PATH}/{id}/readiness")).await;
    let readiness = readiness.expect(200).to_string();
    assert!(readiness.contains("owner_removed"), "{readiness}");
    assert_eq!(app.count("select count(*) from calls").await, 0);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_after_the_removal_of_its_owner_is_refused() {
    let app = without_workers().await;
    let id = create_batch_with_row(&app).await;
    let owner = user_id(&app).await;
    let mut removal = app.context.pool.begin().await.expect("a transaction");
    sqlx::query("update users set removed_at = now() where id::text = $1")
        .bind(&owner)
        .execute(&mut *removal)
        .await
        .expect("going");
    let start = format!("{BATCHES_PATH}/start/{id}");
    let commit = async {
        wait_for_blocked_query(&app.context.pool).await;
        removal.commit().await.expect("gone");
    };
    let (refused, ()) = tokio::join!(app.post(&start, json!({})), commit);
    let refused = refused.expect(400);
    assert_eq!(refused["blockers"][0]["code"], "owner_removed", "{refused}");
    let started = "select count(*) from call_batches where status <> 'not_started'";
    assert_eq!(app.count(started).await, 0);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_after_a_start_is_refused() {
    let app = without_workers().await;
    let admin = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let id = create_batch_with_row(&app).await;
    let owner = user_id(&app).await;
    let mut start = app.context.pool.begin().await.expect("a transaction");
    sqlx::query("select from users where id::text = $1 for share")
        .bind(&owner)
        .execute(&mut *start)
        .await
        .expect("kept");
    let member = format!("/api/v1/organizations/{}/users/{owner}", app.tenant.org);
    let commit = async {
        wait_for_blocked_query(&app.context.pool).await;
        sqlx::query("update call_batches set status = 'in_progress', started_at = now() where id::text = $1")
            .bind(&id)
            .execute(&mut *start)
            .await
            .expect("started");
        start.commit().await.expect("commit");
    };

    let (refused, ()) = tokio::join!(admin.delete(&member), commit);
    let refused: ApiResponse = refused;
    assert_eq!(refused.expect(409)["code"], "member_has_running_batches");

    let tenant = with_session(&app, &app.tenant).await;
    let stop = format!("{BATCHES_PATH}/stop/{id}");
    send_as(&app, &tenant, Method::POST, &stop, Value::Null)
        .await
        .expect(200);
    app.drop_jobs().await;
    app.finish().await;
}
