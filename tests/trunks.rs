//! Trunks: management by administrators; secrets are never shown.

use peal_api::cli::admin::rotate_master_key;
use peal_shared::access::Role;
use peal_shared::platform::ids::OrgId;
use peal_shared::trunks;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::app::{
    AUTH_TOKEN, ApiResponse, App, AppOptions, TEST_TIMEOUT, Tenant, send_request,
};
use crate::harness::eventually;
use crate::harness::members::{audited_actions, create_member, send_as, with_key, with_session};

const TRUNKS_PATH: &str = "/api/v1/trunks";
const OTHER_TOKEN: &str = "ffeeddccbbaa99887766554433221100";

async fn without_workers() -> App {
    App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await
}

async fn update_trunk(app: &App, id: &str, body: Value) -> ApiResponse {
    let admin = with_session(app, &app.tenant).await;
    send_as(
        app,
        &admin,
        Method::PUT,
        &format!("{TRUNKS_PATH}/{id}"),
        body,
    )
    .await
}

async fn post_action(app: &App, id: &str, action: &str, body: Value) -> ApiResponse {
    let admin = with_session(app, &app.tenant).await;
    let path = format!("{TRUNKS_PATH}/{id}/{action}");
    send_as(app, &admin, Method::POST, &path, body).await
}

/// Adds a trunk at the simulator as a super admin.
async fn add_trunk(app: &App, root: &Tenant, more: Value) -> ApiResponse {
    let mut body = json!({
        "name": "Second", "account_id": "ACbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", "password": AUTH_TOKEN,
        "cps": 2.5, "max_concurrent": 10, "api_base_url": app.carrier.url(),
    });
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    send_as(app, root, Method::POST, TRUNKS_PATH, body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_trunk_is_checked_at_its_carrier_first() {
    let app = without_workers().await;
    let root = create_member(&app, "root@example.com", Role::SuperAdmin).await;
    let wrong = add_trunk(&app, &root, json!({"password": "wrong"}))
        .await
        .expect(400);
    assert_eq!(wrong["code"], "carrier_refused");
    let unreachable = add_trunk(&app, &root, json!({"api_base_url": "http://127.0.0.1:9"})).await;
    assert_eq!(unreachable.expect(503)["code"], "outside_unavailable");
    assert_eq!(app.count("select count(*) from trunks").await, 1);

    let made = add_trunk(&app, &root, json!({"signing_secret": OTHER_TOKEN})).await;
    let trunk = made.expect(201);
    assert_eq!(
        (
            &trunk["cps"],
            &trunk["max_concurrent"],
            &trunk["ring_timeout_secs"],
            &trunk["status"]
        ),
        (&json!(2.5), &json!(10), &json!(30), &json!("active"))
    );
    assert_eq!(trunk["organization_id"], json!(app.tenant.org));
    let id = trunk["id"].as_str().expect("an id");
    assert_eq!(app.count("select count(*) from pacers").await, 2);

    let shown = app.get(&format!("{TRUNKS_PATH}/{id}")).await;
    let listed = app.get(TRUNKS_PATH).await;
    assert_eq!(shown.expect(200), trunk);
    assert_eq!(listed.expect(200).as_array().expect("a list").len(), 2);
    for text in [&made.text, &shown.text, &listed.text] {
        assert!(
            !text.contains(AUTH_TOKEN) && !text.contains(OTHER_TOKEN),
            "{text}"
        );
    }
    assert_eq!(audited_actions(&app, id).await, ["trunk.create"]);

    for (more, field) in [
        (json!({"name": " "}), "name"),
        (json!({"cps": 0}), "cps"),
        (json!({"max_concurrent": 0}), "max_concurrent"),
        (json!({"ring_timeout_secs": 5}), "ring_timeout_secs"),
        (json!({"account_id": "AC/../x"}), "account_id"),
        (json!({"password": ""}), "password"),
        (json!({"api_base_url": "file:///etc"}), "api_base_url"),
        (json!({"kind": "pigeon"}), "kind"),
    ] {
        let problem = add_trunk(&app, &root, more).await;
        let problem = problem.expect(422);
        assert_eq!(problem["errors"][0]["loc"], json!(["body", field]));
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_rotated_only_when_the_carrier_accepts_it() {
    let mut app = without_workers().await;
    let id = app.tenant.trunk.to_string();
    let checked = post_action(&app, &id, "check", Value::Null)
        .await
        .expect(200);
    assert_eq!(checked, json!({"accepted": true, "reason": null}));

    let refused = post_action(&app, &id, "rotate", json!({"password": "wrong"}))
        .await
        .expect(400);
    assert_eq!(refused["code"], "carrier_refused");

    let rotated = post_action(
        &app,
        &id,
        "rotate",
        json!({"password": AUTH_TOKEN, "signing_secret": OTHER_TOKEN}),
    )
    .await;
    assert!(!rotated.text.contains(OTHER_TOKEN));

    rotated.expect(200);
    post_action(&app, &id, "rotate", json!({}))
        .await
        .expect(422);

    // Signatures of the old secret stay valid; the simulator still uses it.
    app.start_worker(&peal_worker::Role::ALL).await;
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 2).await;
    app.start_batch(&batch).await;
    let counts = app.wait_for_status(&batch, "completed").await;
    assert_eq!(counts["completed"], 2);

    let sealed: Vec<u8> = sqlx::query_scalar("select credentials from trunks where id = $1")
        .bind(app.tenant.trunk)
        .fetch_one(&app.context.pool)
        .await
        .expect("credentials");
    assert!(!String::from_utf8_lossy(&sealed).contains(AUTH_TOKEN));
    assert_eq!(
        audited_actions(&app, &id).await,
        ["trunk.check", "trunk.rotate"]
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_trunk_dials_nothing_until_it_is_resumed() {
    let app = App::start().await;
    let id = app.tenant.trunk.to_string();
    post_action(&app, &id, "pause", json!({"reason": " "}))
        .await
        .expect(422);
    let paused = post_action(&app, &id, "pause", json!({"reason": "Carrier maintenance"}))
        .await
        .expect(200);
    assert_eq!(
        (&paused["status"], &paused["status_reason"]),
        (&json!("paused"), &json!("Carrier maintenance"))
    );

    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 1).await;
    let path = format!("/api/v1/batch-call/start/{batch}");
    let refused = app.post(&path, json!({})).await.expect(400);
    assert!(
        refused["detail"]
            .as_str()
            .expect("text")
            .contains("Carrier maintenance"),
        "{refused}"
    );

    let resumed = post_action(&app, &id, "resume", Value::Null)
        .await
        .expect(200);
    assert_eq!(
        (&resumed["status"], &resumed["status_reason"]),
        (&json!("active"), &Value::Null)
    );

    app.start_batch(&batch).await;
    app.wait_for_status(&batch, "completed").await;
    let again = post_action(&app, &id, "pause", Value::Null)
        .await
        .expect(200);
    assert_eq!(again["status_reason"], "paused by its owner");
    assert_eq!(
        audited_actions(&app, &id).await,
        ["trunk.pause", "trunk.resume", "trunk.pause"]
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_changed_and_a_used_trunk_is_not_deleted() {
    let mut app = without_workers().await;
    let id = app.tenant.trunk.to_string();
    let changed = update_trunk(&app, &id, json!({"cps": 0.5, "max_concurrent": 7}))
        .await
        .expect(200);
    assert_eq!(
        (
            &changed["name"],
            &changed["cps"],
            &changed["max_concurrent"]
        ),
        (&json!("Main"), &json!(0.5), &json!(7))
    );
    update_trunk(&app, &id, json!({"cps": 10_001}))
        .await
        .expect(422);
    update_trunk(&app, &id, json!({"password": "x"}))
        .await
        .expect(422);
    update_trunk(&app, &id, json!({"cps": 200}))
        .await
        .expect(200);

    let path = format!("{TRUNKS_PATH}/{id}");
    let call = format!(
        "/api/call/create_call?phoneNumber=%2B12125550142&agent_id={}",
        app.tenant.agent
    );
    app.post(&call, json!({})).await.expect(202);
    let admin = with_session(&app, &app.tenant).await;
    let delete = async || send_as(&app, &admin, Method::DELETE, &path, Value::Null).await;
    assert_eq!(delete().await.expect(409)["code"], "trunk_in_use");

    app.start_worker(&peal_worker::Role::ALL).await;
    let is_over = async || {
        app.count("select count(*) from calls where status <> 'final'")
            .await
            == 0
    };
    eventually("the call is over", TEST_TIMEOUT, is_over).await;
    let delete = async || send_as(&app, &admin, Method::DELETE, &path, Value::Null).await;
    assert_eq!(delete().await.expect(409)["code"], "trunk_has_numbers");

    let number = format!("/api/v1/phone/{}", app.tenant.phone);
    send_as(&app, &app.tenant, Method::DELETE, &number, Value::Null)
        .await
        .expect(200);
    delete().await.expect(200);
    app.get(&path).await.expect(404);
    delete().await.expect(404);

    let on_deleted = json!({"phone_number": "+12125550100", "trunk_id": id});
    app.post("/api/v1/phone", on_deleted).await.expect(404);
    assert_eq!(
        audited_actions(&app, &id).await,
        ["trunk.update", "trunk.update", "trunk.delete"]
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_platform_sets_the_owner_and_url_of_a_trunk() {
    let app = without_workers().await;
    let root = create_member(&app, "root@example.com", Role::SuperAdmin).await;
    let other_tenant = app.create_tenant("Other").await;
    let platform = add_trunk(&app, &root, json!({"platform": true}))
        .await
        .expect(201);
    assert_eq!(platform["organization_id"], Value::Null);

    let conflicting = json!({"platform": true, "organization_id": app.tenant.org});
    assert_eq!(
        add_trunk(&app, &root, conflicting).await.expect(400)["code"],
        "platform_or_organization"
    );

    let unknown_org = json!({"organization_id": uuid::Uuid::nil()});
    add_trunk(&app, &root, unknown_org).await.expect(404);
    let for_other = json!({"organization_id": other_tenant.org});
    let added = add_trunk(&app, &root, for_other.clone()).await.expect(201);
    assert_eq!(added["organization_id"], json!(other_tenant.org));

    let admin = with_session(&app, &app.tenant).await;
    for more in [
        for_other,
        json!({"platform": true, "api_base_url": null}),
        json!({}),
    ] {
        add_trunk(&app, &admin, more.clone()).await.expect(403);
        // An API key cannot add trunks, regardless of its user.
        add_trunk(&app, &with_key(&root), more).await.expect(403);
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_trunk_returns_404() {
    let app = without_workers().await;
    let root = create_member(&app, "root@example.com", Role::SuperAdmin).await;
    let user = create_member(&app, "user@example.com", Role::User).await;
    let other_tenant = app.create_tenant("Other").await;
    let platform = add_trunk(&app, &root, json!({"platform": true}))
        .await
        .expect(201);
    let theirs = add_trunk(&app, &root, json!({"organization_id": other_tenant.org}))
        .await
        .expect(201);
    let admin = with_session(&app, &app.tenant).await;
    let mine = app.tenant.trunk.to_string();
    let theirs = theirs["id"].as_str().expect("an id").to_owned();

    let platform = platform["id"].as_str().expect("an id").to_owned();
    let secret = json!({"password": AUTH_TOKEN});
    for (method, suffix, body) in [
        (Method::PUT, "", json!({"name": "X"})),
        (Method::POST, "/check", Value::Null),
        (Method::POST, "/rotate", secret),
        (Method::POST, "/pause", Value::Null),
        (Method::POST, "/resume", Value::Null),
        (Method::DELETE, "", Value::Null),
    ] {
        let path = |id: &str| format!("{TRUNKS_PATH}/{id}{suffix}");
        send_as(&app, &user, method.clone(), &path(&mine), body.clone())
            .await
            .expect(403);
        for id in [&theirs, &platform] {
            send_as(&app, &admin, method.clone(), &path(id), body.clone())
                .await
                .expect(404);
        }
        send_request(app.anonymous(method, &path(&mine)).json(&body))
            .await
            .expect(401);
    }

    send_as(&app, &user, Method::POST, TRUNKS_PATH, json!({}))
        .await
        .expect(422);

    for (caller, trunks) in [(&user, 1), (&other_tenant, 2), (&root, 4)] {
        let list = send_as(&app, caller, Method::GET, TRUNKS_PATH, Value::Null).await;
        assert_eq!(
            list.expect(200).as_array().map(Vec::len),
            Some(trunks),
            "{}",
            list.text
        );
    }

    app.get(&format!("{TRUNKS_PATH}/{platform}"))
        .await
        .expect(404);
    let path = format!("{TRUNKS_PATH}/{platform}/pause");
    send_as(&app, &root, Method::POST, &path, Value::Null)
        .await
        .expect(200);
    assert_eq!(
        audited_actions(&app, &platform).await,
        ["trunk.create", "trunk.pause"]
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_open_only_for_their_organisation() {
    let app = without_workers().await;
    let (keys, pool) = (&app.context.config.keys, &app.context.pool);
    let (other_tenant, trunk) = (app.create_tenant("Other").await, app.tenant.trunk);
    let owned_by = async |org: OrgId| {
        sqlx::query("update trunks set org_id = $1 where id = $2")
            .bind(org)
            .bind(trunk)
            .execute(pool)
            .await
            .expect("an update");
        trunks::account_unscoped(pool, keys, trunk).await
    };
    assert!(owned_by(other_tenant.org).await.is_err());
    assert!(owned_by(app.tenant.org).await.is_ok());

    // Credentials sealed without the organisation open until they are sealed again.
    let without_org = keys.seal(
        &format!("trunks/{trunk}/credentials"),
        json!({"password": AUTH_TOKEN}).to_string().as_bytes(),
    );
    sqlx::query("update trunks set credentials = $1 where id = $2")
        .bind(without_org.expect("sealed"))
        .bind(trunk)
        .execute(pool)
        .await
        .expect("an update");
    assert!(owned_by(other_tenant.org).await.is_ok());
    assert!(owned_by(app.tenant.org).await.is_ok());

    let rotated = rotate_master_key(&app.context).await.expect("a rotation");
    assert_eq!(rotated.trunks, 1);
    assert!(owned_by(app.tenant.org).await.is_ok());
    assert!(owned_by(other_tenant.org).await.is_err());
    assert!(owned_by(app.tenant.org).await.is_ok());
    let again = rotate_master_key(&app.context).await.expect("a rotation");
    assert_eq!(again.trunks, 0);
    app.finish().await;
}
