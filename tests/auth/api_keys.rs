//! API keys: created by sessions, shown once, revoked within a second.

use std::time::Instant;

use peal_api::cli::admin::{AdminRole, rotate_master_key};
use peal_shared::access::Principal;
use peal_shared::api_keys::credentials;
use peal_shared::{api_keys, users};
use reqwest::Method;
use serde_json::{Value, json};

use crate::auth::login::{SessionUser, open_session, send_with_token, without_workers};
use crate::harness::app::{ApiClient, ApiResponse, App, send_request};
use crate::harness::assert_denied_within_a_second;

const KEYS: &str = "/api/v1/api-keys";
const MY_BATCHES: &str = "/api/v1/batch-call/me";

async fn send_with_key(client: &ApiClient, key: &str, method: Method, path: &str) -> ApiResponse {
    send_request(client.anonymous(method, path).header("x-api-key", key)).await
}

/// Creates a key; returns the response and the key's text.
async fn create_key(person: &SessionUser<'_>, body: Value) -> (Value, String) {
    let made = person.send(Method::POST, KEYS, body).await.expect(200)["api_key"].clone();
    let text = made["api_key"].as_str().unwrap_or_default().to_owned();
    (made, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_shown_once_and_revoked_within_a_second_without_redis() {
    let mut app = without_workers().await;
    let (other, _) = app.start_api(|settings| settings.redis_url = None).await;
    let app = app;

    let bob = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;
    let (made, text) = create_key(&bob, json!({"name": "CRM"})).await;
    assert!(text.starts_with("peal_live_") && text.len() == 59, "{text}");
    assert_eq!(made["key_prefix"], text[..14]);
    assert_eq!(made["last4"], text[text.len() - 4..]);
    send_with_key(&other, &text, Method::GET, MY_BATCHES)
        .await
        .expect(200);

    let listed = bob.get(&format!("{KEYS}/fetch")).await.expect(200);
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
    assert!(!listed.to_string().contains(&text));
    assert!(listed[0]["last_used_at"].is_string());
    assert_eq!(
        bob.get(&format!("{KEYS}/fetch/{}", bob.id))
            .await
            .expect(200),
        listed
    );

    let exists = json!({"user_id": bob.id, "provider_name": "milli_chat_ai"});
    let exists = async || {
        bob.send(Method::POST, &format!("{KEYS}/exists"), exists.clone())
            .await
            .expect(200)
    };
    assert_eq!(exists().await, json!(true));

    let path = format!("{KEYS}/{}", made["id"].as_str().unwrap());
    let renamed = bob
        .send(Method::PATCH, &path, json!({"name": ""}))
        .await
        .expect(200);
    assert_eq!(renamed["api_key"]["name"], "");
    send_with_key(&app, &text, Method::DELETE, &path)
        .await
        .expect(403);
    let minted = app.anonymous(Method::POST, KEYS).header("x-api-key", &text);
    send_request(minted.json(&json!({"name": "child"})))
        .await
        .expect(403);

    bob.delete(&path).await.expect(200);
    let ask = || async {
        let response = send_with_key(&other, &text, Method::GET, MY_BATCHES).await;
        response.status.as_u16()
    };
    assert_denied_within_a_second(Instant::now(), ask).await;
    assert_eq!(exists().await, json!(false));
    bob.delete(&path).await.expect(404);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_weak_secret_and_a_taken_one_get_the_same_error() {
    let app = without_workers().await;
    let bob = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;
    let eve = SessionUser::new(&app, "eve@example.com", "Other", AdminRole::User).await;

    let brought = "Zk3vQ9xT1mB7rL5wY0cH8nJ2pD6sF4gA";
    let (made, text) = create_key(&bob, json!({"api_key": brought, "user_id": bob.id})).await;
    assert_eq!(
        (text.as_str(), &made["key_prefix"], &made["last4"]),
        ("", &json!(""), &json!("F4gA"))
    );
    send_with_key(&app, brought, Method::GET, MY_BATCHES)
        .await
        .expect(200);

    let taken = eve
        .send(Method::POST, KEYS, json!({"api_key": brought}))
        .await
        .expect(422);
    let weak = eve
        .send(Method::POST, KEYS, json!({"api_key": "password"}))
        .await
        .expect(422);
    assert_eq!(taken["errors"], weak["errors"]);
    assert_eq!(taken["detail"], weak["detail"]);

    // The limit refills one attempt every twelve seconds, so the next may still be allowed.
    let attempt = async || {
        eve.send(Method::POST, KEYS, json!({"api_key": "password"}))
            .await
    };
    let mut tried = attempt().await;
    for _ in 0..50 {
        if tried.status == 429 {
            break;
        }
        tried = attempt().await;
    }
    tried.expect(429);

    // No table stores the secret, and a replayed response does not show it.
    let request = || {
        let request = app.anonymous(Method::POST, KEYS).bearer_auth(&bob.token);
        request
            .header("Idempotency-Key", "k-1")
            .json(&json!({"name": "once"}))
    };

    let first = send_request(request()).await.expect(200);
    let again = send_request(request()).await.expect(200);
    assert_eq!(first["api_key"]["id"], again["api_key"]["id"]);
    let shown = first["api_key"]["api_key"].as_str().expect("a key");
    assert!(again["api_key"].get("api_key").is_none());

    for secret in [shown, brought] {
        let kept: bool = sqlx::query_scalar(
            "select exists (select from idempotency_keys where body::text like '%' || $1 || '%')
                 or exists (select from api_keys where api_keys::text like '%' || $1 || '%')
                 or exists (select from audit_log where audit_log::text like '%' || $1 || '%')",
        )
        .bind(secret)
        .fetch_one(&app.context.pool)
        .await
        .expect("a query");
        assert!(!kept);
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_limited_to_its_scopes_and_expiry() {
    let app = without_workers().await;
    let bob = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;

    let soon = app.context.clock.now() + chrono::TimeDelta::hours(1);
    let body = json!({"expires_at": soon, "scopes": [
        {"allowed_path_prefix": "/api/v1/batch-call", "allowed_method": "GET"},
    ]});
    let (made, text) = create_key(&bob, body).await;
    assert_eq!(made["scopes"][0]["allowed_method"], "GET");
    send_with_key(&app, &text, Method::GET, MY_BATCHES)
        .await
        .expect(200);

    for (method, path) in [
        (Method::POST, "/api/v1/batch-call/create"),
        (Method::GET, "/api/v1/me"),
    ] {
        let refused = app
            .anonymous(method, path)
            .header("x-api-key", &text)
            .json(&json!({}));
        let refused = send_request(refused).await.expect(403);
        assert_eq!(
            refused["detail"],
            "Forbidden: API Key does not have required scopes"
        );
    }

    sqlx::query("update api_keys set expires_at = now() where expires_at is not null")
        .execute(&app.context.pool)
        .await
        .expect("an update");
    let ask = || async {
        let response = send_with_key(&app, &text, Method::GET, MY_BATCHES).await;
        response.status.as_u16()
    };
    assert_denied_within_a_second(Instant::now(), ask).await;

    for wrong in [
        json!({"expires_at": "2020-01-01T00:00:00Z"}),
        json!({"scopes": [{"allowed_path_prefix": "api", "allowed_method": "GET"}]}),
        json!({"scopes": [{"allowed_path_prefix": "/api", "allowed_method": "TRACE"}]}),
        json!({"org_id": app.tenant.org}),
    ] {
        bob.send(Method::POST, KEYS, wrong).await.expect(422);
    }

    // A mistyped key is rejected by its checksum.
    let mut typo = text.clone();
    typo.replace_range(20..21, if &text[20..21] == "A" { "B" } else { "A" });
    send_with_key(&app, &typo, Method::GET, MY_BATCHES)
        .await
        .expect(401);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_administrators_manage_keys_of_members() {
    let app = without_workers().await;
    let admin = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let bob = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;
    let eve = SessionUser::new(&app, "eve@example.com", "Other", AdminRole::OrgAdmin).await;

    let (made, text) = create_key(&admin, json!({"user_id": bob.id, "name": "for Bob"})).await;
    let me = send_with_key(&app, &text, Method::GET, "/api/v1/me")
        .await
        .expect(200);
    assert_eq!(me["user_id"], bob.id);

    let fetch = format!("{KEYS}/fetch?user_id={}", bob.id);
    assert_eq!(admin.get(&fetch).await.expect(200)[0]["name"], "for Bob");
    eve.get(&fetch).await.expect(404);
    eve.send(Method::POST, KEYS, json!({"user_id": bob.id}))
        .await
        .expect(404);
    bob.send(Method::POST, KEYS, json!({"user_id": admin.id}))
        .await
        .expect(403);
    bob.get(&format!("{KEYS}/fetch/{}", admin.id))
        .await
        .expect(403);

    let path = format!("{KEYS}/{}", made["id"].as_str().unwrap());
    eve.delete(&path).await.expect(404);
    eve.send(Method::PATCH, &path, json!({"name": "mine"}))
        .await
        .expect(404);
    admin
        .delete(&format!("{path}?user_id={}", admin.id))
        .await
        .expect(404);
    admin
        .delete(&format!("{path}?user_id={}", bob.id))
        .await
        .expect(200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_user_with_a_higher_role_cannot_be_managed() {
    let app = without_workers().await;
    let admin = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let root = SessionUser::new(&app, "root@example.com", "Acme", AdminRole::SuperAdmin).await;

    let (own, text) = create_key(&root, json!({"name": "own"})).await;
    for body in [
        json!({"user_id": root.id}),
        json!({"user_id": root.id, "provider_name": "openai", "api_key": "sk-1"}),
    ] {
        let refused = admin.send(Method::POST, KEYS, body).await.expect(403);
        assert_eq!(
            refused["detail"],
            "Forbidden: this user's role is above yours"
        );
    }

    let path = format!("{KEYS}/{}", own["id"].as_str().unwrap());
    for path in [path.clone(), format!("{path}?user_id={}", root.id)] {
        admin
            .send(Method::PATCH, &path, json!({"name": "mine"}))
            .await
            .expect(403);
        admin.delete(&path).await.expect(403);
    }

    send_with_key(&app, &text, Method::GET, MY_BATCHES)
        .await
        .expect(200);
    assert_eq!(app.count("select count(*) from api_keys").await, 2);
    let made = "select count(*) from provider_credentials";
    assert_eq!(app.count(made).await, 0);

    // An administrator may revoke the keys of an equal, but not of a higher role.
    let peer = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::OrgAdmin).await;
    let (theirs, _) = create_key(&admin, json!({"user_id": peer.id})).await;
    let path = format!("{KEYS}/{}", theirs["id"].as_str().unwrap());
    root.delete(&path).await.expect(200);
    root.delete(&format!("{KEYS}/{}", own["id"].as_str().unwrap()))
        .await
        .expect(200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_gives_keys_no_more_rights() {
    let app = without_workers().await;
    let bob = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;

    let batch = app.create_batch(json!({})).await;
    let batch = format!("/api/v1/batch-call/{batch}");
    let owner = app.get("/api/v1/me").await.expect(200)["user_id"].clone();
    let others = format!("/api/v1/batch-call/user/{}", owner.as_str().expect("an id"));
    let (_, before) = create_key(&bob, json!({})).await;

    for role in ["org_admin", "super_admin"] {
        sqlx::query("update users set role = $1 where email = 'bob@example.com'")
            .bind(role)
            .execute(&app.context.pool)
            .await
            .expect("a promotion");
        bob.get(&batch).await.expect(200);

        // A key created after the promotion has no more rights either.
        let keys = &app.context.config.keys;
        let mut db = app.context.pool.acquire().await.expect("a connection");
        let user = bob.id.parse().expect("an id");
        let after = api_keys::create_unscoped(&mut db, keys, app.tenant.org, user, role)
            .await
            .expect("a key");
        drop(db);

        for key in [&before, &after] {
            let ask = async |method: Method, path: &str| {
                let request = app.anonymous(method, path).header("x-api-key", key);
                send_request(request.json(&json!({}))).await.status.as_u16()
            };
            assert_eq!(ask(Method::GET, &batch).await, 404);
            assert_eq!(ask(Method::DELETE, &batch).await, 404);
            assert_eq!(ask(Method::GET, &others).await, 403);
            let org = format!("/api/v1/organizations/{}", app.tenant.org);
            for path in ["/users", "/invites"] {
                assert_eq!(ask(Method::GET, &format!("{org}{path}")).await, 403);
            }
            assert_eq!(ask(Method::GET, "/api/v1/audit-log").await, 403);
            assert_eq!(ask(Method::GET, "/api/v1/wallets/users").await, 403);
            assert_eq!(ask(Method::GET, "/api/v1/batch-call/me").await, 200);
        }
    }
    app.finish().await;
}

/// Creates a tool, an MCP server and a webhook, each with a secret.
async fn add_tools(app: &App) {
    let auth = json!({"type": "bearer", "token": "a token of a tool"});
    let tool = json!({"name": "find", "description": "Finds", "url": "https://shop.invalid", "auth": auth});
    app.post("/api/v1/tool-endpoint-defs", tool)
        .await
        .expect(201);
    let server = json!({"name": "Shop", "server_url": "http://127.0.0.2:1/mcp", "auth": auth});
    app.post("/api/v1/tools-mcp-server-defs", server)
        .await
        .expect(201);
    let webhooks = json!({"outgoing": {"url": "https://shop.invalid", "auth": auth}});
    let agent = json!({"agent": {"name": "Eve"}, "agent_specific_config": {"webhooks": webhooks}});
    app.post("/api/v1/agents", agent).await.expect(201);
}

async fn principal(app: &App, user: &str) -> Principal {
    let mut db = app.context.pool.acquire().await.expect("connection");
    let user = user.parse().expect("an id");
    let known = users::principal_unscoped(&mut db, user).await;
    known.expect("a query").expect("a principal")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_providers_secret_does_not_authenticate_and_survives_a_master_key_rotation() {
    let mut app = without_workers().await;
    let secret = "sk-Zk3vQ9xT1mB7rL5wY0cH8nJ2pD6sF4gA";
    let user = {
        let bob = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;
        let body = json!({"provider_name": "openai", "api_key": secret, "name": "models"});
        let (made, text) = create_key(&bob, body).await;
        assert_eq!(
            (text.as_str(), &made["provider_name"]),
            ("", &json!("openai"))
        );
        send_with_key(&app, secret, Method::GET, MY_BATCHES)
            .await
            .expect(401);
        let exists = json!({"user_id": bob.id, "provider_name": "openai"});
        let exists = bob
            .send(Method::POST, &format!("{KEYS}/exists"), exists)
            .await;
        assert_eq!(exists.expect(200), json!(true));
        bob.send(Method::POST, KEYS, json!({"provider_name": "openai"}))
            .await
            .expect(422);
        bob.id
    };

    let plain =
        "select count(*) from provider_credentials where position('Zk3v'::bytea in secret) > 0";
    assert_eq!(app.count(plain).await, 0);
    let token = open_session(&app, "bob@example.com").await;
    add_tools(&app).await;

    let (client, rotated) = app
        .start_api(|settings| {
            settings.master_key_previous = settings.master_key.take();
            settings.master_key = Some("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=".to_owned());
        })
        .await;
    let app = app;

    let done = rotate_master_key(&rotated).await.expect("a rotation");
    assert_eq!(
        (done.trunks, done.provider_credentials, done.api_keys_left),
        (1, 1, 1)
    );
    assert_eq!((done.tools, done.mcp_servers, done.webhooks), (1, 1, 1));

    // Old keys and sessions still work, and a key is rehashed under the new master key when used.
    client.get(MY_BATCHES).await.expect(200);
    send_with_token(&client, &token, Method::GET, MY_BATCHES, None)
        .await
        .expect(200);

    let again = rotate_master_key(&rotated).await.expect("a rotation");
    let resealed = again.trunks + again.provider_credentials + again.tools + again.mcp_servers;
    assert_eq!((resealed, again.webhooks, again.api_keys_left), (0, 0, 0));

    let bob = principal(&app, &user).await;
    let mut db = app.context.pool.acquire().await.expect("connection");
    let keys = &rotated.config.keys;
    let read = credentials::read(&mut db, keys, &bob.scope(), bob.user, "openai").await;
    let read = read.expect("a query").expect("a secret");
    assert_eq!(secrecy::ExposeSecret::expose_secret(&read), secret);
    let old = &app.context.config.keys;
    assert!(
        credentials::read(&mut db, old, &bob.scope(), bob.user, "openai")
            .await
            .is_err()
    );
    drop(db);
    app.finish().await;
}
