//! Organisations, their members and invitations, over HTTP.

pub mod feature_flags;
pub mod member_removal;

use std::time::Instant;

use peal_api::cli::admin::AdminRole;
use peal_shared::platform::ids::InviteId;
use peal_worker::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::auth::login::{
    PASSWORD, SessionUser, create_user_with_password, login, send_with_token, without_workers,
};
use crate::harness::app::{ApiResponse, App, TEST_TIMEOUT, send_request};
use crate::harness::{assert_denied_within_a_second, eventually};

const ORGS_PATH: &str = "/api/v1/organizations";

#[tokio::test(flavor = "multi_thread")]
async fn users_see_their_profile_and_only_admins_see_members() {
    let app = without_workers().await;
    let acme = app.tenant.org;
    let admin = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let user = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;
    let root = SessionUser::new(&app, "root@example.com", "Platform", AdminRole::SuperAdmin).await;

    let me = user.get("/api/v1/me").await.expect(200);
    assert_eq!(
        me,
        json!({"user_id": user.id, "auth": "bearer", "email": "bob@example.com", "phone": null,
               "profile_image_url": null, "full_name": null, "user_metadata": {}, "organization_id": acme,
               "role": "user"})
    );
    assert_eq!(app.get("/api/v1/me").await.expect(200)["auth"], "api_key");

    let total = |answer: ApiResponse| answer.expect(200)["total"].as_i64();
    assert_eq!(total(user.get("/api/v1/me/users").await), Some(0));
    assert_eq!(total(admin.get("/api/v1/me/users").await), Some(3));
    assert_eq!(total(root.get("/api/v1/me/users").await), Some(4));
    let narrowed = format!("/api/v1/me/users?organization_ids={acme}&platform_roles=user");
    let found = root.get(&narrowed).await.expect(200);
    assert_eq!(found["users"][0]["email"], "bob@example.com");

    let elsewhere = format!("/api/v1/me/users?owner_user_ids={}", root.id);
    assert_eq!(total(admin.get(&elsewhere).await), Some(0));
    assert_eq!(
        total(root.get("/api/v1/me/users?scope=mine").await),
        Some(1)
    );
    root.get("/api/v1/me/users?platform_roles=king")
        .await
        .expect(422);

    let members = format!("{ORGS_PATH}/{acme}/users");
    assert_eq!(total(admin.get(&members).await), Some(3));
    user.get(&members).await.expect(403);
    let outsider = SessionUser::new(&app, "eve@example.com", "Other", AdminRole::OrgAdmin).await;
    outsider.get(&members).await.expect(404);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_platform_creates_organizations() {
    let app = without_workers().await;
    let admin = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let root = SessionUser::new(&app, "root@example.com", "Platform", AdminRole::SuperAdmin).await;
    let acme = app.tenant.org;
    let body = json!({"name": " Branch ", "parent_organization_id": acme, "timezone": "Asia/Kolkata",
                      "default_country": "in", "hipaa_compliance": true});
    admin
        .send(Method::POST, ORGS_PATH, body.clone())
        .await
        .expect(403);

    let branch = root.send(Method::POST, ORGS_PATH, body).await.expect(201);
    assert_eq!(branch["name"], "Branch");
    assert_eq!(branch["default_country"], "IN");
    assert_eq!(branch["hipaa_compliance"], true);
    let branch = branch["id"].as_str().unwrap().to_owned();
    let nested = json!({"name": "Twig", "parent_organization_id": branch});
    let refused = root.send(Method::POST, ORGS_PATH, nested).await.expect(400);
    assert_eq!(refused["code"], "parent_has_parent");
    for wrong in [
        json!({"name": ""}),
        json!({"name": "x", "timezone": "Mars/Olympus"}),
        json!({"name": "x", "default_country": "XX"}),
        json!({"name": "x", "wallet": 1}),
    ] {
        root.send(Method::POST, ORGS_PATH, wrong).await.expect(422);
    }

    // The reseller may read its customer, but not change it.
    let listed = admin.get(ORGS_PATH).await.expect(200);
    assert_eq!(listed["total"], 2);
    let detail = admin
        .get(&format!("{ORGS_PATH}/{branch}/detail"))
        .await
        .expect(200);
    assert_eq!(detail["name"], "Branch");
    assert!(detail.get("members").is_none());
    let path = format!("{ORGS_PATH}/{branch}");
    admin
        .send(Method::PATCH, &path, json!({"name": "Mine"}))
        .await
        .expect(404);
    for people in ["users", "invites"] {
        admin.get(&format!("{path}/{people}")).await.expect(404);
        root.get(&format!("{path}/{people}")).await.expect(200);
    }

    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_admins_change_the_settings_of_an_organization() {
    let app = without_workers().await;
    let admin = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let root = SessionUser::new(&app, "root@example.com", "Platform", AdminRole::SuperAdmin).await;
    let own = format!("{ORGS_PATH}/{}", app.tenant.org);
    let changed = json!({"timezone": "Europe/Berlin", "default_country": "DE"});
    let updated = admin.send(Method::PATCH, &own, changed).await.expect(200);
    assert_eq!(updated["timezone"], "Europe/Berlin");
    assert_eq!(updated["name"], "Acme");

    let cleared = admin
        .send(Method::PATCH, &own, json!({"default_country": null}))
        .await;
    let cleared = cleared.expect(200);
    assert_eq!(
        (&cleared["default_country"], &cleared["timezone"]),
        (&Value::Null, &json!("Europe/Berlin"))
    );

    let limit = json!({"max_concurrent_calls": 5});
    admin
        .send(Method::PATCH, &own, limit.clone())
        .await
        .expect(403);
    root.send(Method::PATCH, &own, limit).await.expect(200);
    let user = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;
    user.send(Method::PATCH, &own, json!({"name": "Bob's"}))
        .await
        .expect(403);
    let seen = user.get(&format!("{own}/detail")).await.expect(200);
    assert_eq!(seen["members"], 3);

    send_request(app.request(Method::PATCH, &own).json(&json!({"name": "x"})))
        .await
        .expect(403);
    let log = "select count(*) from audit_log where action like 'organization.%'";
    assert_eq!(app.count(log).await, 3);
    app.finish().await;
}

/// Token of an invitation, as sent by mail.
fn invite_token(app: &App, invite: &Value) -> String {
    let id: InviteId = invite["id"].as_str().unwrap().parse().unwrap();
    app.context.config.keys.invite_token(id)
}

async fn accept_invite(app: &App, token: &str, password: &str) -> ApiResponse {
    let body = json!({"token": token, "password": password, "full_name": "Bob"});
    let path = format!("{ORGS_PATH}/invites/accept");
    send_request(app.anonymous(Method::POST, &path).json(&body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_arrives_by_mail_and_is_accepted_once() {
    let mut app = without_workers().await;
    app.start_worker(&[Role::Misc]).await;
    let admin = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let invites = format!("{ORGS_PATH}/{}/invites", app.tenant.org);
    let body = json!({"email": "Bob@example.com", "role": "org_admin"});
    let first = admin
        .send(Method::POST, &invites, body.clone())
        .await
        .expect(201);
    let second = admin.send(Method::POST, &invites, body).await.expect(201);
    assert!(second.get("token").is_none());
    let listed = admin.get(&invites).await.expect(200);
    assert_eq!(
        listed["invites"].as_array().map(Vec::len),
        Some(1),
        "{listed}"
    );

    let sent = || async {
        app.count("select count(*) from emails where sent_at is not null")
            .await
            == 2
    };
    eventually("both mails are sent", TEST_TIMEOUT, sent).await;
    let (replaced, valid) = (invite_token(&app, &first), invite_token(&app, &second));

    // The tokens are in the mails, and nowhere else.
    let mails = std::fs::read_dir(app.directory().join("mail")).unwrap();
    let mails: String = mails
        .map(|mail| std::fs::read_to_string(mail.unwrap().path()).unwrap())
        .collect();
    let mails = mails.replace("=\r\n", "");
    assert!(
        mails.contains(&replaced) && mails.contains(&valid),
        "{mails}"
    );
    assert_eq!(
        app.count("select count(*) from emails where body <> ''")
            .await,
        0
    );

    accept_invite(&app, &replaced, PASSWORD).await.expect(410);
    accept_invite(&app, "bm9ib2R5", PASSWORD).await.expect(404);
    accept_invite(&app, &valid, "short").await.expect(422);
    let made = accept_invite(&app, &valid, PASSWORD).await.expect(201);
    assert_eq!(made["role"], "org_admin");
    accept_invite(&app, &valid, PASSWORD).await.expect(410);
    let opened = login(&app, "bob@example.com", PASSWORD).await.expect(200);
    assert_eq!(opened["user"]["id"], made["user_id"]);

    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_invitations_are_refused_without_revealing_other_organizations() {
    let mut app = without_workers().await;
    app.start_worker(&[Role::Misc]).await;

    let admin = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let invites = format!("{ORGS_PATH}/{}/invites", app.tenant.org);
    for (wrong, status) in [
        (json!({"email": "ADA@example.com"}), 409),
        (json!({"email": "nobody"}), 422),
        (
            json!({"email": "carol@example.com", "role": "super_admin"}),
            422,
        ),
    ] {
        admin
            .send(Method::POST, &invites, wrong)
            .await
            .expect(status);
    }

    // A member of another organisation can be invited; only the invited user sees the conflict.
    create_user_with_password(&app, "dan@example.com", "Other", AdminRole::User).await;
    let dan = json!({"email": "dan@example.com"});
    let invite = admin.send(Method::POST, &invites, dan).await.expect(201);
    let refused = accept_invite(&app, &invite_token(&app, &invite), PASSWORD)
        .await
        .expect(409);
    assert_eq!(refused["code"], "email_in_use");

    let path = format!("{invites}/{}", invite["id"].as_str().unwrap());
    admin.delete(&path).await.expect(200);
    admin.delete(&path).await.expect(404);
    let outsider = SessionUser::new(&app, "eve@example.com", "Third", AdminRole::OrgAdmin).await;
    outsider.get(&invites).await.expect(404);
    app.post(&invites, json!({"email": "x@example.com"}))
        .await
        .expect(403);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_role_applies_at_once_on_every_replica() {
    let mut app = without_workers().await;
    let (other, _) = app.start_api(|_| {}).await;
    let app = app;
    let admin = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let bob = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;
    let members = format!("{ORGS_PATH}/{}/users", app.tenant.org);
    let role = |id: &str| format!("{members}/{id}/org-role");
    let set = async |by: &SessionUser<'_>, id: &str, to: &str| {
        by.send(Method::PATCH, &role(id), json!({"role": to})).await
    };
    let members_status = async || {
        let listed = send_with_token(&other, &bob.token, Method::GET, &members, None).await;
        listed.status.as_u16()
    };
    assert_eq!(members_status().await, 403);

    set(&bob, &bob.id, "org_admin").await.expect(403);
    let promoted = set(&admin, &bob.id, "org_admin").await.expect(200);
    assert_eq!(promoted["role"], "org_admin");
    assert_eq!(members_status().await, 200);

    set(&admin, &bob.id, "super_admin").await.expect(403);
    set(&admin, &admin.id, "user").await.expect(403);
    set(&admin, &bob.id, "king").await.expect(422);
    set(&admin, &bob.id, "user").await.expect(200);
    assert_eq!(members_status().await, 403);

    // Demotes the harness's own admin, so that `admin` is the last one.
    let acme: String =
        sqlx::query_scalar("select id::text from users where email = 'acme@example.com'")
            .fetch_one(&app.context.pool)
            .await
            .expect("a user");
    set(&admin, &acme, "user").await.expect(200);
    let root = SessionUser::new(&app, "root@example.com", "Platform", AdminRole::SuperAdmin).await;
    let refused = set(&root, &admin.id, "user").await.expect(409);
    assert_eq!(refused["code"], "last_admin");

    set(&admin, &root.id, "user").await.expect(404);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_loses_access_within_a_second_and_may_return() {
    let mut app = without_workers().await;
    let (other, _) = app.start_api(|settings| settings.redis_url = None).await;
    app.start_worker(&[Role::Misc]).await;
    let app = app;
    let admin = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let acme: String =
        sqlx::query_scalar("select id::text from users where email = 'acme@example.com'")
            .fetch_one(&app.context.pool)
            .await
            .expect("a user");
    let member = format!("{ORGS_PATH}/{}/users/{acme}", app.tenant.org);

    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 1).await;
    app.start_batch(&batch).await;
    let refused = admin.delete(&member).await.expect(409);
    assert_eq!(refused["code"], "member_has_running_batches");
    app.post(&format!("/api/v1/batch-call/stop/{batch}"), json!({}))
        .await
        .expect(200);

    other.get("/api/v1/me").await.expect(200);
    admin.delete(&member).await.expect(200);
    let ask = || async { other.get("/api/v1/me").await.status.as_u16() };
    assert_denied_within_a_second(Instant::now(), ask).await;
    admin.delete(&member).await.expect(404);
    let own = format!("{ORGS_PATH}/{}/users/{}", app.tenant.org, admin.id);
    admin.delete(&own).await.expect(403);

    // Resources of the removed user stay visible to other members.
    admin
        .get(&format!("/api/v1/batch-call/{batch}"))
        .await
        .expect(200);
    create_user_with_password(&app, "acme@example.com", "Elsewhere", AdminRole::User).await;
    login(&app, "acme@example.com", PASSWORD).await.expect(200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_can_be_created_for_a_removed_member() {
    let app = without_workers().await;
    let admin = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let bob = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;
    let server = "http://127.0.0.2:1/mcp";
    let resources = [
        ("agents", json!({"agent": {"name": "Ada"}})),
        ("phone", json!({"phone_number": "+12125550177"})),
        (
            "tool-endpoint-defs",
            json!({"name": "find", "description": "Finds", "url": "https://shop.invalid"}),
        ),
        (
            "tools-mcp-server-defs",
            json!({"name": "Shop", "server_url": server}),
        ),
        (
            "workflows",
            json!({"name": "Bye", "nodes": [{"id": "bye", "start": true, "type": "hangup", "text": "Bye."}]}),
        ),
        (
            "batch-call/create",
            json!({"batch_name": "A", "agent_id": app.tenant.agent, "caller_phone_id": app.tenant.phone}),
        ),
        ("api-keys", json!({"name": "CRM"})),
    ];

    let make = async |path: &str, body: &Value| {
        let mut body = body.clone();
        body["user_id"] = json!(bob.id);
        let path = format!("/api/v1/{path}");
        admin.send(Method::POST, &path, body).await
    };
    for (path, body) in &resources {
        let made = make(path, body).await;
        assert!(made.status.is_success(), "{path}: {}", made.text);
    }

    let member = format!("{ORGS_PATH}/{}/users/{}", app.tenant.org, bob.id);
    admin.delete(&member).await.expect(200);
    for (path, body) in &resources {
        let refused = make(path, body).await;
        assert_eq!(refused.status.as_u16(), 404, "{path}: {}", refused.text);
        assert_eq!(refused.json()["detail"], "User not found", "{path}");
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_queued_calls_or_running_batches_cannot_be_removed() {
    let app = without_workers().await;
    let admin = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let acme: String =
        sqlx::query_scalar("select id::text from users where email = 'acme@example.com'")
            .fetch_one(&app.context.pool)
            .await
            .expect("a user");
    let member = format!("{ORGS_PATH}/{}/users/{acme}", app.tenant.org);
    let call = format!(
        "/api/call/create_call?phoneNumber=%2B12125550123&agent_id={}",
        app.tenant.agent
    );
    app.post(&call, json!({})).await.expect(202);
    let refused = admin.delete(&member).await.expect(409);
    assert_eq!(refused["code"], "member_has_queued_calls");
    app.drop_calls().await;

    let batch = app.create_batch(json!({"auto_resume": true})).await;
    sqlx::query(
        "update call_batches
         set status = 'paused', starved_since = now(), starved_reason = 'insufficient_credits',
             starved_until = now()",
    )
    .execute(&app.context.pool)
    .await
    .expect("a batch without money");
    let refused = admin.delete(&member).await.expect(409);
    assert_eq!(refused["code"], "member_has_running_batches");

    // A batch paused by its owner does not resume by itself.
    app.post(&format!("/api/v1/batch-call/pause/{batch}"), json!({}))
        .await
        .expect(200);
    admin.delete(&member).await.expect(200);
    app.finish().await;
}
