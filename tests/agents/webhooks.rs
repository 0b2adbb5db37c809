//! Outgoing webhooks of agents and their credentials; background noises.

use std::collections::BTreeMap;

use peal_shared::platform::ids::{AgentId, OrgId};
use peal_shared::tools::{EndpointAuth, EndpointCredentials};
use reqwest::Method;
use serde_json::{Value, json};

use crate::auth::login::without_workers;
use crate::harness::app::{ApiResponse, App};
use crate::harness::members::{audited_actions, send_as};

const AGENTS: &str = "/api/v1/agents";
const MASK: &str = "********";

fn agent_body() -> Value {
    json!({
        "agent": {"name": "Reminder", "is_active": false},
        "agent_specific_config": {"webhooks": {"outgoing": {
            "enabled": true, "url": "https://crm.example.com/calls", "method": "POST", "retry_count": 3,
            "headers": {"X-Api-Key": "key-123456", "X-Source": "peal"},
            "auth": {"type": "bearer", "token": "token-123456"},
        }}},
    })
}

fn expected_credentials() -> EndpointCredentials {
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    EndpointCredentials {
        headers: BTreeMap::from([
            header("X-Api-Key", "key-123456"),
            header("X-Source", "peal"),
        ]),
        auth: EndpointAuth::Bearer {
            token: "token-123456".to_owned(),
        },
    }
}

/// Changes only the outgoing webhook.
async fn put_webhook(app: &App, id: &str, outgoing: Value) -> ApiResponse {
    let part = json!({"agent_specific_config": {"webhooks": {"outgoing": outgoing}}});
    send_as(
        app,
        &app.tenant,
        Method::PUT,
        &format!("{AGENTS}/{id}"),
        part,
    )
    .await
}

fn outgoing_webhook(agent: &Value) -> &Value {
    &agent["configurations"]["agent_specific_config"]["webhooks"]["outgoing"]
}

fn agent_id(agent: &Value) -> &str {
    agent["agent"]["id"].as_str().expect("an id")
}

/// Unsealed webhook credentials of an agent.
async fn stored_credentials(app: &App, agent: &str) -> Option<EndpointCredentials> {
    let (org, id, sealed): (OrgId, AgentId, Option<Vec<u8>>) =
        sqlx::query_as("select org_id, id, webhook_credentials from agents where id::text = $1")
            .bind(agent)
            .fetch_one(&app.context.pool)
            .await
            .expect("an agent");
    let keys = &app.context.config.keys;
    sealed.map(|sealed| {
        EndpointCredentials::opened(keys, "agents", org, id.0, &sealed).expect("its own seal")
    })
}

/// Locations of errors, relative to the outgoing webhook.
fn error_locations(refused: &Value) -> Vec<String> {
    let errors = refused["errors"].as_array().expect("errors").iter();
    let places = errors.map(|error| {
        let loc = error["loc"].as_array().expect("a path").iter();
        let path: Vec<&str> = loc.filter_map(Value::as_str).collect();
        let path = path.join(".");
        let below = path.strip_prefix("body.agent_specific_config.webhooks.outgoing.");
        below.unwrap_or(&path).to_owned()
    });
    places.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_secrets_are_sealed_and_masked() {
    let app = without_workers().await;
    let made = app.post(AGENTS, agent_body()).await;
    assert!(!made.text.contains("123456"), "{}", made.text);
    let made = made.expect(201);
    let shown = json!({"X-Api-Key": MASK, "X-Source": "peal"});
    assert_eq!(outgoing_webhook(&made)["headers"], shown);
    assert_eq!(
        outgoing_webhook(&made)["auth"],
        json!({"type": "bearer", "token": MASK})
    );

    let path = format!("{AGENTS}/{}", agent_id(&made));
    assert_eq!(app.get(&path).await.expect(200), made);
    assert_eq!(
        stored_credentials(&app, agent_id(&made)).await,
        Some(expected_credentials())
    );
    let plain =
        "select count(*) from agents a where a::text like '%123456%' or a::text like '%X-Source%'";
    assert_eq!(app.count(plain).await, 0);

    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_secrets_are_not_kept_for_another_server() {
    let app = without_workers().await;
    let made = app.post(AGENTS, agent_body()).await.expect(201);
    let path = format!("{AGENTS}/{}", agent_id(&made));

    // Secrets that are left out or sent back masked stay.
    for part in [
        json!({"retry_count": 5}),
        json!({"url": "https://crm.example.com/v2/calls"}),
        outgoing_webhook(&made).clone(),
    ] {
        put_webhook(&app, agent_id(&made), part.clone())
            .await
            .expect(200);
        assert_eq!(
            stored_credentials(&app, agent_id(&made)).await,
            Some(expected_credentials()),
            "{part}"
        );
    }
    // Masked secrets are not sent to another server.
    for url in [
        "https://evil.example.com/calls",
        "https://crm.example.com:8443/calls",
    ] {
        let refused = put_webhook(&app, agent_id(&made), json!({ "url": url }))
            .await
            .expect(422);
        assert_eq!(
            error_locations(&refused),
            ["headers.X-Api-Key", "auth.token"]
        );
        assert_eq!(refused["errors"][0]["type"], "masked");
    }
    assert_eq!(
        outgoing_webhook(&app.get(&path).await.expect(200)),
        outgoing_webhook(&made)
    );

    let moved = json!({
        "url": "https://other.example.com", "headers": {"x-api-key": "key-2", "X-Source": null},
        "auth": {"type": "basic", "username": "peal", "password": "password-2"},
    });
    let moved = put_webhook(&app, agent_id(&made), moved).await.expect(200);
    assert_eq!(
        outgoing_webhook(&moved)["headers"],
        json!({"x-api-key": MASK})
    );
    let wanted = EndpointCredentials {
        headers: BTreeMap::from([("x-api-key".to_owned(), "key-2".to_owned())]),
        auth: EndpointAuth::Basic {
            username: "peal".to_owned(),
            password: "password-2".to_owned(),
        },
    };
    assert_eq!(
        stored_credentials(&app, agent_id(&made)).await,
        Some(wanted)
    );

    let gone = put_webhook(&app, agent_id(&made), Value::Null)
        .await
        .expect(200);
    assert_eq!(*outgoing_webhook(&gone), Value::Null);
    assert_eq!(stored_credentials(&app, agent_id(&made)).await, None);
    assert_eq!(audited_actions(&app, agent_id(&made)).await.len(), 6);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn masked_headers_match_in_any_case_and_nulls_remove_secrets() {
    let app = without_workers().await;
    let made = app.post(AGENTS, agent_body()).await.expect(201);

    for name in ["x-api-key", "X-Api-Key"] {
        let part = json!({"headers": {name: MASK}});
        let changed = put_webhook(&app, agent_id(&made), part).await.expect(200);
        let shown = json!({name: MASK, "X-Source": "peal"});
        assert_eq!(outgoing_webhook(&changed)["headers"], shown);
    }
    assert_eq!(
        stored_credentials(&app, agent_id(&made)).await,
        Some(expected_credentials())
    );

    let open = put_webhook(&app, agent_id(&made), json!({"auth": null}))
        .await
        .expect(200);
    assert_eq!(outgoing_webhook(&open)["auth"], json!({"type": "none"}));
    assert_eq!(
        outgoing_webhook(&open)["headers"],
        outgoing_webhook(&made)["headers"]
    );

    let bare = json!({"headers": null});
    let bare = put_webhook(&app, agent_id(&made), bare).await.expect(200);
    assert_eq!(outgoing_webhook(&bare)["headers"], json!({}));
    assert_eq!(stored_credentials(&app, agent_id(&made)).await, None);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_webhook_credentials_are_named() {
    let app = without_workers().await;
    for (field, value, place) in [
        ("headers", json!({"Host": "x"}), "headers.Host"),
        ("headers", json!({"X-A": "a\nb"}), "headers.X-A"),
        ("headers", json!({"Authorization": "twice"}), "headers"),
        ("headers", json!({"X-Api-Key": MASK}), "headers.X-Api-Key"),
        ("auth", json!({"type": "bearer", "token": ""}), "auth"),
        (
            "auth",
            json!({"type": "bearer", "token": MASK}),
            "auth.token",
        ),
        (
            "auth",
            json!({"type": "basic", "username": "a:b", "password": "c"}),
            "auth.username",
        ),
    ] {
        let mut wrong = agent_body();
        wrong["agent_specific_config"]["webhooks"]["outgoing"][field] = value.clone();
        let refused = app.post(AGENTS, wrong).await.expect(422);
        assert_eq!(error_locations(&refused), [place], "{value}");
    }
    assert_eq!(app.count("select count(*) from agents").await, 1);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_an_outdated_webhook_url_or_noise_can_still_be_changed() {
    let app = without_workers().await;
    let made = app.post(AGENTS, agent_body()).await.expect(201);

    // 1. Store an address and a noise that are not valid.
    sqlx::query(
        r#"update agents
           set specific_config = jsonb_set(
               jsonb_set(specific_config, '{webhooks,outgoing,url}', '"https://127.0.0.1/"'),
               '{background_noise_id}', '"office.wav"')
           where id::text = $1"#,
    )
    .bind(agent_id(&made))
    .execute(&app.context.pool)
    .await
    .expect("an old agent");

    // 2. Other changes still work.
    let path = format!("{AGENTS}/{}", agent_id(&made));
    let rename = json!({"agent": {"name": "Other"}});
    let changed = send_as(&app, &app.tenant, Method::PUT, &path, rename)
        .await
        .expect(200);
    assert_eq!(outgoing_webhook(&changed)["url"], "https://127.0.0.1/");
    put_webhook(&app, agent_id(&made), json!({"retry_count": 1}))
        .await
        .expect(200);

    let refused = put_webhook(
        &app,
        agent_id(&made),
        json!({"url": "https://127.0.0.1/other"}),
    )
    .await;
    assert_eq!(error_locations(&refused.expect(422)), ["url"]);

    let copy = send_as(
        &app,
        &app.tenant,
        Method::POST,
        &format!("{path}/clone"),
        Value::Null,
    )
    .await;
    let copy = copy.expect(201);
    assert_eq!(outgoing_webhook(&copy)["auth"]["token"], MASK);
    assert_eq!(
        stored_credentials(&app, agent_id(&copy)).await,
        Some(expected_credentials())
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_noise_must_be_a_listed_one() {
    let app = without_workers().await;
    let listed = app.get("/api/v1/noise-assets").await.expect(200);
    let listed = listed.as_array().expect("a list");
    assert!(listed.len() > 2, "{listed:?}");
    for noise in listed {
        let fields: Vec<&String> = noise.as_object().expect("an object").keys().collect();
        assert_eq!(fields, ["id", "name"]);
        let body = json!({
            "agent": {"name": "A"}, "agent_specific_config": {"background_noise_id": noise["id"]},
        });
        app.post(AGENTS, body).await.expect(201);
    }
    let body = json!({
        "agent": {"name": "A"}, "agent_specific_config": {"background_noise_id": "office.wav"},
    });
    let refused = app.post(AGENTS, body).await.expect(422);
    let error = &refused["errors"][0];
    let loc = json!(["body", "agent_specific_config", "background_noise_id"]);
    assert_eq!(error["loc"], loc);
    let message = error["msg"].as_str().expect("a text");
    assert!(message.contains("GET /api/v1/noise-assets"), "{message}");
    app.finish().await;
}
