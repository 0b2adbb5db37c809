//! Outgoing webhooks of agents and their credentials; background noises.

use std::collections::BTreeMap;

use peal_shared::ids::{AgentId, OrgId};
use peal_shared::tools::{Auth, Credentials};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::app::{Answer, App};
use crate::harness::members::{ask, audited};
use crate::sign_in::quiet;

const BASE: &str = "/api/v1/agents";
const MASK: &str = "********";

fn body() -> Value {
    json!({
        "agent": {"name": "Reminder", "is_active": false},
        "agent_specific_config": {"webhooks": {"outgoing": {
            "enabled": true, "url": "https://crm.example.com/calls", "method": "POST", "retry_count": 3,
            "headers": {"X-Api-Key": "key-123456", "X-Source": "peal"},
            "auth": {"type": "bearer", "token": "token-123456"},
        }}},
    })
}

fn secrets() -> Credentials {
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Credentials {
        headers: BTreeMap::from([
            header("X-Api-Key", "key-123456"),
            header("X-Source", "peal"),
        ]),
        auth: Auth::Bearer {
            token: "token-123456".to_owned(),
        },
    }
}

/// Changes only the outgoing webhook.
async fn put(app: &App, id: &str, outgoing: Value) -> Answer {
    let part = json!({"agent_specific_config": {"webhooks": {"outgoing": outgoing}}});
    ask(app, &app.tenant, Method::PUT, &format!("{BASE}/{id}"), part).await
}

fn outgoing(agent: &Value) -> &Value {
    &agent["configurations"]["agent_specific_config"]["webhooks"]["outgoing"]
}

fn id(agent: &Value) -> &str {
    agent["agent"]["id"].as_str().expect("an id")
}

/// Unsealed webhook credentials of an agent.
async fn stored(app: &App, agent: &str) -> Option<Credentials> {
    let (org, id, sealed): (OrgId, AgentId, Option<Vec<u8>>) =
        sqlx::query_as("select org_id, id, webhook_credentials from agents where id::text = $1")
            .bind(agent)
            .fetch_one(&app.context.pool)
            .await
            .expect("an agent");
    let keys = &app.context.config.keys;
    sealed.map(|sealed| {
        Credentials::opened(keys, "agents", org, id.0, &sealed).expect("its own seal")
    })
}

/// Locations of errors, relative to the outgoing webhook.
fn places(refused: &Value) -> Vec<String> {
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
async fn secrets_of_a_webhook_are_sealed_masked_and_stay_with_its_server() {
    let app = quiet().await;
    let made = app.post(BASE, body()).await;
    assert!(!made.text.contains("123456"), "{}", made.text);
    let made = made.expect(201);
    let shown = json!({"X-Api-Key": MASK, "X-Source": "peal"});
    assert_eq!(outgoing(&made)["headers"], shown);
    assert_eq!(
        outgoing(&made)["auth"],
        json!({"type": "bearer", "token": MASK})
    );

    let path = format!("{BASE}/{}", id(&made));
    assert_eq!(app.get(&path).await.expect(200), made);
    assert_eq!(stored(&app, id(&made)).await, Some(secrets()));
    let plain =
        "select count(*) from agents a where a::text like '%123456%' or a::text like '%X-Source%'";
    assert_eq!(app.count(plain).await, 0);

    // Secrets that are left out or sent back masked stay.
    for part in [
        json!({"retry_count": 5}),
        json!({"url": "https://crm.example.com/v2/calls"}),
        outgoing(&made).clone(),
    ] {
        put(&app, id(&made), part.clone()).await.expect(200);
        assert_eq!(stored(&app, id(&made)).await, Some(secrets()), "{part}");
    }
    // Masked secrets are not sent to another server.
    for url in [
        "https://evil.example.com/calls",
        "https://crm.example.com:8443/calls",
    ] {
        let refused = put(&app, id(&made), json!({ "url": url }))
            .await
            .expect(422);
        assert_eq!(places(&refused), ["headers.X-Api-Key", "auth.token"]);
        assert_eq!(refused["errors"][0]["type"], "masked");
    }
    assert_eq!(outgoing(&app.get(&path).await.expect(200)), outgoing(&made));

    let moved = json!({
        "url": "https://other.example.com", "headers": {"x-api-key": "key-2", "X-Source": null},
        "auth": {"type": "basic", "username": "peal", "password": "password-2"},
    });
    let moved = put(&app, id(&made), moved).await.expect(200);
    assert_eq!(outgoing(&moved)["headers"], json!({"x-api-key": MASK}));
    let wanted = Credentials {
        headers: BTreeMap::from([("x-api-key".to_owned(), "key-2".to_owned())]),
        auth: Auth::Basic {
            username: "peal".to_owned(),
            password: "password-2".to_owned(),
        },
    };
    assert_eq!(stored(&app, id(&made)).await, Some(wanted));

    let gone = put(&app, id(&made), Value::Null).await.expect(200);
    assert_eq!(*outgoing(&gone), Value::Null);
    assert_eq!(stored(&app, id(&made)).await, None);
    assert_eq!(audited(&app, id(&made)).await.len(), 6);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mask_finds_its_header_in_other_letters_and_nulls_remove_what_there_is() {
    let app = quiet().await;
    let made = app.post(BASE, body()).await.expect(201);

    for name in ["x-api-key", "X-Api-Key"] {
        let part = json!({"headers": {name: MASK}});
        let changed = put(&app, id(&made), part).await.expect(200);
        let shown = json!({name: MASK, "X-Source": "peal"});
        assert_eq!(outgoing(&changed)["headers"], shown);
    }
    assert_eq!(stored(&app, id(&made)).await, Some(secrets()));

    let open = put(&app, id(&made), json!({"auth": null}))
        .await
        .expect(200);
    assert_eq!(outgoing(&open)["auth"], json!({"type": "none"}));
    assert_eq!(outgoing(&open)["headers"], outgoing(&made)["headers"]);

    let bare = json!({"headers": null});
    let bare = put(&app, id(&made), bare).await.expect(200);
    assert_eq!(outgoing(&bare)["headers"], json!({}));
    assert_eq!(stored(&app, id(&made)).await, None);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_webhook_cannot_prove_itself_with_is_named() {
    let app = quiet().await;
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
        let mut wrong = body();
        wrong["agent_specific_config"]["webhooks"]["outgoing"][field] = value.clone();
        let refused = app.post(BASE, wrong).await.expect(422);
        assert_eq!(places(&refused), [place], "{value}");
    }
    assert_eq!(app.count("select count(*) from agents").await, 1);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_address_or_noise_is_good_no_more_changes_otherwise() {
    let app = quiet().await;
    let made = app.post(BASE, body()).await.expect(201);

    // 1. Store an address and a noise that are not valid.
    sqlx::query(
        r#"update agents
           set specific_config = jsonb_set(
               jsonb_set(specific_config, '{webhooks,outgoing,url}', '"https://127.0.0.1/"'),
               '{background_noise_id}', '"office.wav"')
           where id::text = $1"#,
    )
    .bind(id(&made))
    .execute(&app.context.pool)
    .await
    .expect("an old agent");

    // 2. Other changes still work.
    let path = format!("{BASE}/{}", id(&made));
    let rename = json!({"agent": {"name": "Other"}});
    let changed = ask(&app, &app.tenant, Method::PUT, &path, rename)
        .await
        .expect(200);
    assert_eq!(outgoing(&changed)["url"], "https://127.0.0.1/");
    put(&app, id(&made), json!({"retry_count": 1}))
        .await
        .expect(200);

    let refused = put(&app, id(&made), json!({"url": "https://127.0.0.1/other"})).await;
    assert_eq!(places(&refused.expect(422)), ["url"]);

    let copy = ask(
        &app,
        &app.tenant,
        Method::POST,
        &format!("{path}/clone"),
        Value::Null,
    )
    .await;
    let copy = copy.expect(201);
    assert_eq!(outgoing(&copy)["auth"]["token"], MASK);
    assert_eq!(stored(&app, id(&copy)).await, Some(secrets()));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_noise_is_one_of_those_that_are_listed() {
    let app = quiet().await;
    let listed = app.get("/api/v1/noise-assets").await.expect(200);
    let listed = listed.as_array().expect("a list");
    assert!(listed.len() > 2, "{listed:?}");
    for noise in listed {
        let fields: Vec<&String> = noise.as_object().expect("an object").keys().collect();
        assert_eq!(fields, ["id", "name"]);
        let body = json!({
            "agent": {"name": "A"}, "agent_specific_config": {"background_noise_id": noise["id"]},
        });
        app.post(BASE, body).await.expect(201);
    }
    let body = json!({
        "agent": {"name": "A"}, "agent_specific_config": {"background_noise_id": "office.wav"},
    });
    let refused = app.post(BASE, body).await.expect(422);
    let error = &refused["errors"][0];
    let loc = json!(["body", "agent_specific_config", "background_noise_id"]);
    assert_eq!(error["loc"], loc);
    let message = error["msg"].as_str().expect("a text");
    assert!(message.contains("GET /api/v1/noise-assets"), "{message}");
    app.finish().await;
}
