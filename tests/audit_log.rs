//! The audit log over HTTP.

use peal_api::cli::admin::AdminRole;
use peal_worker::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::auth::login::{SessionUser, login, without_workers};
use crate::harness::app::{App, TEST_TIMEOUT, send_request};
use crate::harness::eventually;

const LOG: &str = "/api/v1/audit-log";

#[tokio::test(flavor = "multi_thread")]
async fn administrators_read_the_log_page_by_page() {
    let app = without_workers().await;
    let admin = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let bob = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;
    let eve = SessionUser::new(&app, "eve@example.com", "Other", AdminRole::OrgAdmin).await;

    let mut batches = Vec::new();
    for n in 0..3 {
        let named = json!({"batch_name": format!("Batch {n}")});
        batches.push(app.create_batch(named).await);
    }

    let first = admin
        .get(&format!("{LOG}?action=batch.create&limit=2"))
        .await
        .expect(200);
    assert_eq!(first["entries"][0]["subject_id"], batches[2]);
    assert_eq!(first["entries"][0]["actor_kind"], "api_key");
    assert_eq!(first["entries"][0]["ip"], "127.0.0.1");
    assert_eq!(first["entries"].as_array().map(Vec::len), Some(2));

    let next = first["next"].as_str().expect("another page");
    let second = format!("{LOG}?action=batch.create&limit=2&before={next}");
    let second = admin.get(&second).await.expect(200);
    assert_eq!(second["entries"][0]["subject_id"], batches[0]);
    assert!(second["next"].is_null());

    let one = admin
        .get(&format!("{LOG}?subject_id={}", batches[1]))
        .await
        .expect(200);
    assert_eq!(one["entries"].as_array().map(Vec::len), Some(1));

    let own = admin
        .get(&format!("{LOG}?actor_user_id={}", admin.id))
        .await
        .expect(200);
    assert_eq!(own["entries"][0]["action"], "session.open");

    let none = admin
        .get(&format!("{LOG}?to_date=2020-01-01T00:00:00Z"))
        .await
        .expect(200);
    assert_eq!(none["entries"], json!([]));

    let theirs = eve.get(LOG).await.expect(200);
    assert_eq!(
        theirs["entries"].as_array().map(Vec::len),
        Some(1),
        "{theirs}"
    );

    let foreign = format!("{LOG}?organization_id={}", app.tenant.org);
    assert_eq!(eve.get(&foreign).await.expect(200)["entries"], json!([]));

    bob.get(LOG).await.expect(403);
    for wrong in ["limit=0", "limit=201", "actor_user_id=x", "colour=red"] {
        admin.get(&format!("{LOG}?{wrong}")).await.expect(422);
    }
    app.finish().await;
}

/// Refusals in the log that match a query, by action, oldest first.
async fn refusals(person: &SessionUser<'_>, query: &str) -> Vec<Value> {
    let mut all = Vec::new();
    for action in ["auth.refused", "login.failed", "credential.refused"] {
        let path = format!("{LOG}?action={action}&limit=200&{query}");
        let page = person.get(&path).await.expect(200);
        all.extend(
            page["entries"]
                .as_array()
                .expect("entries")
                .iter()
                .rev()
                .cloned(),
        );
    }
    all
}

/// Provokes every kind of refusal, with and without a known caller. Returns the revoked key.
async fn provoke_refusals(app: &App, bob: &SessionUser<'_>) -> Value {
    bob.get(LOG).await.expect(403);
    let members = format!("/api/v1/wallets/orgs/{}/members", app.tenant.org);
    bob.get(&members).await.expect(403);
    app.get(LOG).await.expect(403);

    for email in ["bob@example.com", "stranger@example.com"] {
        login(app, email, "secret and wrong").await.expect(401);
    }

    let key = "peal_live_secretsecretsecret";
    let shown = app.anonymous(Method::GET, LOG).header("x-api-key", key);
    send_request(shown).await.expect(401);
    let shown = app
        .anonymous(Method::GET, LOG)
        .bearer_auth("ey.secret.token");
    send_request(shown.header("x-request-id", "r-17"))
        .await
        .expect(401);

    // A request without a credential is not recorded.
    send_request(app.anonymous(Method::GET, LOG))
        .await
        .expect(401);

    let keys = "/api/v1/api-keys";
    let made = bob.send(Method::POST, keys, json!({})).await.expect(200)["api_key"].clone();
    let path = format!("{keys}/{}", made["id"].as_str().expect("an id"));
    bob.delete(&path).await.expect(200);
    let key = made["api_key"].as_str().expect("a key");
    let revoked = app.anonymous(Method::GET, LOG).header("x-api-key", key);
    send_request(revoked).await.expect(401);

    let logout = "/api/v1/auth/logout";
    bob.send(Method::POST, logout, json!({})).await.expect(200);
    bob.get(LOG).await.expect(401);
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_recorded_without_the_credential() {
    let app = without_workers().await;
    let admin = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let bob = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;
    let eve = SessionUser::new(&app, "eve@example.com", "Other", AdminRole::OrgAdmin).await;
    let root = SessionUser::new(&app, "root@example.com", "Platform", AdminRole::SuperAdmin).await;

    let made = provoke_refusals(&app, &bob).await;
    let written = || async { refusals(&root, "").await.len() == 9 };
    eventually("the refusals are recorded", TEST_TIMEOUT, written).await;

    let ours: Vec<_> = refusals(&admin, "").await;
    let summary = |entry: &Value| {
        let words = ["action", "actor_kind", "subject_id"].map(|name| entry[name].clone());
        words.map(|word| word.as_str().expect("a text").to_owned())
    };

    let seen: Vec<_> = ours.iter().map(summary).collect();
    let expected = [
        ["auth.refused", "session", "GET /api/v1/audit-log"],
        [
            "auth.refused",
            "session",
            "GET /api/v1/wallets/orgs/{org_id}/members",
        ],
        ["auth.refused", "api_key", "GET /api/v1/audit-log"],
        ["login.failed", "unproven", "POST /api/v1/auth/login"],
        ["credential.refused", "unproven", "GET /api/v1/audit-log"],
        ["credential.refused", "unproven", "GET /api/v1/audit-log"],
    ];
    assert_eq!(seen, expected.map(|entry| entry.map(str::to_owned)));

    assert_eq!(ours[0]["actor_user_id"], bob.id);
    assert_eq!(
        (&ours[0]["ip"], &ours[0]["left_out"]),
        (&json!("127.0.0.1"), &json!(0))
    );
    assert!(ours[2]["api_key_id"].is_string());

    for unproven in &ours[3..] {
        assert_eq!(unproven["actor_user_id"], bob.id);
    }
    assert_eq!(ours[4]["api_key_id"], made["id"]);

    assert_eq!(refusals(&eve, "").await.len(), 0);
    let anonymous: Vec<_> = refusals(&root, "").await;
    let anonymous: Vec<_> = anonymous
        .iter()
        .filter(|entry| entry["organization_id"].is_null())
        .collect();
    assert_eq!(anonymous.len(), 3);
    assert!(anonymous.iter().any(|entry| entry["request_id"] == "r-17"));

    let whole = "select count(*) from refusals
                 where refusals::text like '%secret%' or refusals::text like '%stranger%'";
    assert_eq!(app.count(whole).await, 0);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refusals_does_not_fill_the_log() {
    let app = without_workers().await;
    for _ in 0..50 {
        app.get(LOG).await.expect(403);
    }

    // A refusal of another caller, queued after the flood.
    let bob = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;
    bob.get(LOG).await.expect(403);
    let rows = "select count(*) from refusals where actor_kind = 'session'";
    eventually("the refusal is recorded", TEST_TIMEOUT, || async {
        app.count(rows).await == 1
    })
    .await;

    let rows = "select count(*) from refusals where actor_kind = 'api_key'";
    // Ten rows a minute; a second minute adds ten and one row with the count of omitted ones.
    let written = app.count(rows).await;
    assert!((10..=21).contains(&written), "{written} rows");

    for change in ["update refusals set left_out = 1", "truncate refusals"] {
        let refused = sqlx::query(change).execute(&app.context.pool).await;
        assert!(refused.is_err(), "must be forbidden: {change}");
    }

    let mut tenant = app
        .context
        .pool
        .begin_with("begin; set local role peal_tenant")
        .await
        .expect("a transaction");
    let refused = sqlx::query("delete from refusals")
        .execute(&mut *tenant)
        .await;
    assert!(refused.is_err(), "a request must not delete refusals");
    drop(tenant);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_refusals_are_deleted_and_anonymous_ones_sooner() {
    let mut app = without_workers().await;
    let ages = "insert into refusals (id, org_id, actor_kind, action, target, created_at)
                select gen_random_uuid(), case when n % 2 = 0 then $1::uuid end, 'unproven',
                       'credential.refused', 'GET /' || age, now() - make_interval(days => age)
                from unnest(array[29, 31, 399, 401]) as age, generate_series(1, 2400) as n";
    sqlx::query(ages)
        .bind(app.tenant.org)
        .execute(&app.context.pool)
        .await
        .expect("old refusals");

    app.start_worker(&[Role::Misc]).await;
    let left = "select count(*) from refusals";
    eventually("old refusals are deleted", TEST_TIMEOUT, || async {
        app.count(left).await == 4 * 1200
    })
    .await;

    let known = "select count(*) from refusals where org_id is not null and target <> 'GET /401'";
    assert_eq!(app.count(known).await, 3 * 1200);
    let anonymous = "select count(*) from refusals where org_id is null and target = 'GET /29'";
    assert_eq!(app.count(anonymous).await, 1200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_found_by_route_and_not_among_changes() {
    let app = without_workers().await;
    let root = SessionUser::new(&app, "root@example.com", "Platform", AdminRole::SuperAdmin).await;
    app.get(LOG).await.expect(403);
    let route = format!("{LOG}?subject_id=GET%20/api/v1/audit-log");
    let found = || async {
        let page = root.get(&route).await.expect(200);
        page["entries"].as_array().map(Vec::len) == Some(1)
    };
    eventually("the refusal is found by its route", TEST_TIMEOUT, found).await;
    for none in ["batch.create", "auth.refused&subject_id=17"] {
        let page = root.get(&format!("{LOG}?action={none}")).await.expect(200);
        assert_eq!(page["entries"], json!([]), "{none}");
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_of_a_change_are_shown_and_an_invalid_limit_is_located() {
    let app = without_workers().await;
    let admin = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;

    let batch = app.create_batch(json!({})).await;
    let path = format!("/api/v1/batch-call/{batch}/variables");
    for names in [json!(["a"]), json!(["b"])] {
        let changed = app.request(Method::PATCH, &path);
        send_request(changed.json(&json!({"variable_names": names})))
            .await
            .expect(200);
    }

    let log = admin
        .get(&format!("{LOG}?subject_id={batch}"))
        .await
        .expect(200);

    let [second, first, made] = log["entries"].as_array().expect("entries").as_slice() else {
        panic!("three changes: {log}");
    };

    assert_eq!(made["before_digest"], Value::Null);
    assert_eq!(made["after_digest"], first["before_digest"]);
    assert_eq!(first["after_digest"], second["before_digest"]);
    assert_ne!(first["after_digest"], second["after_digest"]);
    let digest = second["after_digest"].as_str().expect("a digest");
    assert!(
        digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()),
        "{digest}"
    );

    for limit in ["0", "201"] {
        let refused = admin.get(&format!("{LOG}?limit={limit}")).await.expect(422);
        assert_eq!(refused["errors"][0]["loc"], json!(["query", "limit"]));
    }
    app.finish().await;
}
