//! HTTP tools: stored, shown without their secrets, and called through the outbound client.

pub mod mcp;

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, Uri};
use peal_shared::access::Role;
use peal_shared::{api_keys, users};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::harness::actors::jwt_for_user;
use crate::harness::app::{App, AppOptions, Tenant, send_request};
use crate::harness::members::with_session;

const TOOLS_PATH: &str = "/api/v1/tool-endpoint-defs";
const MASKED_SECRET: &str = "********";

async fn without_workers() -> App {
    App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await
}

fn tool_body(name: &str, url: &str) -> Value {
    json!({
        "name": name, "description": "Finds an order", "url": url, "method": "GET",
        "headers": {"Accept": "application/json", "X-Shop-Key": "shop-key-1"},
        "auth": {"type": "bearer", "token": "bearer-token-1"},
        "tool_schema": {"type": "object", "properties": {"order_id": {"type": "string"}}},
        "required": ["order_id"],
    })
}

async fn create_tool(app: &App, body: Value) -> Value {
    app.post(TOOLS_PATH, body).await.expect(201)
}

fn tool_path(tool: &Value) -> String {
    format!("{TOOLS_PATH}/{}", tool["id"].as_str().expect("an id"))
}

/// Another user of the tenant's organisation, without any role.
async fn create_colleague(app: &App) -> Tenant {
    let mut db = app.context.pool.acquire().await.expect("connection");
    let org = app.tenant.org;
    let user = users::ensure_user_unscoped(&mut db, org, "colleague@example.com", Role::User)
        .await
        .expect("user");
    let api_key = api_keys::create_unscoped(&mut db, &app.context.config.keys, org, user, "theirs")
        .await
        .expect("key");
    Tenant {
        api_key,
        ..app.tenant.clone()
    }
}

/// A received request: path, headers and body.
type ToolRequest = (String, HeaderMap, String);

/// An endpoint that answers every request with `text` and records it.
async fn recording_endpoint(text: &'static str) -> (String, Arc<Mutex<Vec<ToolRequest>>>) {
    let heard: Arc<Mutex<Vec<ToolRequest>>> = Arc::default();
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let log = Arc::clone(&heard);
    let app = Router::new().fallback(async move |uri: Uri, headers: HeaderMap, body: Bytes| {
        let body = String::from_utf8_lossy(&body).into_owned();
        log.lock()
            .expect("log")
            .push((uri.to_string(), headers, body));
        text
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_is_created_changed_and_deleted_without_showing_its_secrets() {
    let app = without_workers().await;
    let tool = create_tool(
        &app,
        tool_body("find_order", "https://shop.test/{{order_id}}"),
    )
    .await;
    assert_eq!(
        tool["auth"],
        json!({"type": "bearer", "token": MASKED_SECRET})
    );
    assert_eq!(
        tool["headers"],
        json!({"Accept": "application/json", "X-Shop-Key": MASKED_SECRET})
    );
    assert_eq!(tool["tool_schema"]["required"], json!(["order_id"]));
    assert_eq!(
        (&tool["timeout_seconds"], &tool["is_active"]),
        (&json!(10), &json!(true))
    );
    assert_eq!(app.get(&tool_path(&tool)).await.expect(200), tool);
    assert_eq!(
        app.get(TOOLS_PATH).await.expect(200),
        json!({"tools": [tool]})
    );

    let mut change = tool_body("find_order", "https://shop.test/v2/{{order_id}}");
    change["auth"]["token"] = json!(MASKED_SECRET);
    change["headers"]["X-Shop-Key"] = json!(MASKED_SECRET);
    change["is_active"] = json!(false);
    let changed = send_request(app.request(Method::PUT, &tool_path(&tool)).json(&change)).await;
    assert_eq!(
        changed.expect(200)["url"],
        "https://shop.test/v2/{{order_id}}"
    );
    let active = app.get(&format!("{TOOLS_PATH}/active/endpoints")).await;
    assert_eq!(active.expect(200), json!({"tools": []}));

    let plain: Vec<u8> = sqlx::query_scalar("select credentials from tools")
        .fetch_one(&app.context.pool)
        .await
        .expect("sealed");
    assert!(!String::from_utf8_lossy(&plain).contains("bearer-token-1"));

    send_request(app.request(Method::DELETE, &tool_path(&tool)))
        .await
        .expect(200);
    app.get(&tool_path(&tool)).await.expect(404);
    let actions: Vec<String> = sqlx::query_scalar("select action from audit_log order by id")
        .fetch_all(&app.context.pool)
        .await
        .expect("log");
    assert_eq!(actions, ["tool.create", "tool.update", "tool.delete"]);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_masked_secret_is_not_sent_to_another_server() {
    let app = without_workers().await;
    let (url, heard) = recording_endpoint("{}").await;
    let tool = create_tool(
        &app,
        tool_body("find_order", "https://shop.test/{{order_id}}"),
    )
    .await;

    let mut change = tool_body("find_order", &url);
    change["auth"]["token"] = json!(MASKED_SECRET);
    change["headers"]["X-Shop-Key"] = json!(MASKED_SECRET);
    let update =
        |body: &Value| send_request(app.request(Method::PUT, &tool_path(&tool)).json(body));
    for elsewhere in [
        &*url,
        "https://other.test/",
        "https://shop.test.other.test/",
    ] {
        change["url"] = json!(elsewhere);
        let refused = update(&change).await.expect(422);
        let errors = refused["errors"].as_array().expect("errors");
        let error_types: Vec<_> = errors.iter().map(|e| (&e["loc"], &e["type"])).collect();
        let (key, token) = (
            json!(["body", "headers", "X-Shop-Key"]),
            json!(["body", "auth", "token"]),
        );
        let masked = json!("masked");
        assert_eq!(
            error_types,
            [(&key, &masked), (&token, &masked)],
            "{elsewhere}"
        );
    }
    assert_eq!(app.get(&tool_path(&tool)).await.expect(200), tool);

    // Sending one secret does not unmask the other.
    change["url"] = json!(url);
    change["auth"]["token"] = json!("bearer-token-2");
    update(&change).await.expect(422);
    change["headers"]["X-Shop-Key"] = json!("shop-key-2");
    update(&change).await.expect(200);

    let sample = json!({"arguments": {"order_id": "1"}});
    let used = app
        .post(&format!("{}/test", tool_path(&tool)), sample)
        .await;
    used.expect(200);
    let heard = heard.lock().expect("log").clone();
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].1["authorization"], "Bearer bearer-token-2");
    assert_eq!(heard[0].1["x-shop-key"], "shop-key-2");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_in_a_session_sees_the_secrets() {
    let app = without_workers().await;
    let tool = create_tool(&app, tool_body("find_order", "https://shop.test")).await;
    let reveal = format!("{}?reveal_secret=true", tool_path(&tool));
    app.get(&reveal).await.expect(403);
    let owner = tool["user_id"].as_str().expect("an id");
    let token = jwt_for_user(owner.parse().expect("an id"));
    let shown = send_request(app.anonymous(Method::GET, &reveal).bearer_auth(token)).await;
    let shown = shown.expect(200);
    assert_eq!(shown["auth"]["token"], "bearer-token-1");
    assert_eq!(shown["headers"]["X-Shop-Key"], "shop-key-1");
    assert_eq!(
        app.count("select count(*) from audit_log where action = 'tool.reveal'")
            .await,
        1
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_of_other_users_return_404() {
    let app = without_workers().await;
    let mine = create_tool(&app, tool_body("find_order", "https://shop.test")).await;

    let other_tenant = app.create_tenant("Other").await;
    let colleague = create_colleague(&app).await;
    for other in [&other_tenant, &colleague] {
        for (method, path) in [
            (Method::GET, tool_path(&mine)),
            (Method::PUT, tool_path(&mine)),
            (Method::DELETE, tool_path(&mine)),
            (Method::POST, format!("{}/test", tool_path(&mine))),
        ] {
            let request = app.request_as(other, method, &path);
            let request = request.json(&tool_body("find_order", "https://shop.test"));
            let problem = match path.ends_with("test") {
                true => send_request(app.request_as(other, Method::POST, &path)).await,
                false => send_request(request).await,
            };
            assert_eq!(problem.expect(404)["detail"], "Tool not found");
        }
        let theirs = send_request(app.request_as(other, Method::GET, TOOLS_PATH)).await;
        assert_eq!(theirs.expect(200), json!({"tools": []}));
    }

    let mut for_owner = tool_body("find_order", "https://shop.test");
    for_owner["user_id"] = mine["user_id"].clone();
    let request = app.request_as(&colleague, Method::POST, TOOLS_PATH);
    send_request(request.json(&for_owner)).await.expect(403);

    // Another user may use the same name, and an administrator sees both tools.
    for_owner["user_id"] = Value::Null;
    let request = app.request_as(&colleague, Method::POST, TOOLS_PATH);
    let theirs = send_request(request.json(&for_owner)).await.expect(201);
    let admin = with_session(&app, &app.tenant).await;
    let seen = async |path: &str| {
        send_request(app.request_as(&admin, Method::GET, path))
            .await
            .expect(200)
    };
    let all = seen(TOOLS_PATH).await;
    assert_eq!(all["tools"].as_array().map(Vec::len), Some(2));

    let by_key = app.get(TOOLS_PATH).await.expect(200);
    assert_eq!(by_key["tools"].as_array().map(Vec::len), Some(1));

    let by_user = format!(
        "{TOOLS_PATH}?user_id={}",
        theirs["user_id"].as_str().expect("id")
    );
    assert_eq!(seen(&by_user).await, json!({"tools": [theirs]}));

    app.get(&by_user).await.expect(403);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_errors_of_a_tool_are_reported_together() {
    let app = without_workers().await;
    let problem = app
        .post(
            TOOLS_PATH,
            json!({
                "name": "find order", "description": " ", "url": "http://127.0.0.1/", "timeout_seconds": 16,
                "headers": {"Host": "metadata"}, "auth": {"type": "api_key", "header": "X-Key", "value": ""},
                "parameters": {"type": "object", "properties": {"a": {}}}, "required": ["b"], "output_schema": [],
            }),
        )
        .await
        .expect(422);

    let mut wrong: Vec<String> = problem["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .map(|error| {
            error["loc"].as_array().expect("loc")[1]
                .as_str()
                .expect("name")
                .to_owned()
        })
        .collect();
    wrong.sort();
    assert_eq!(
        wrong,
        [
            "auth",
            "description",
            "headers",
            "name",
            "output_schema",
            "required",
            "timeout_seconds",
            "url"
        ]
    );

    for (url, schema) in [
        ("ftp://shop.test", json!({"type": "object"})),
        ("https://user@shop.test", json!({"type": "object"})),
        ("https://2130706433/", json!({"type": "object"})),
        ("https://shop.test/{{missing}}", json!({"type": "object"})),
        ("https://shop.test", json!({"type": "string"})),
        (
            "https://shop.test",
            json!({"type": "object", "properties": {"a": {"$ref": "#"}}}),
        ),
    ] {
        let body = json!({"name": "a", "description": "b", "url": url, "tool_schema": schema});
        app.post(TOOLS_PATH, body).await.expect(422);
    }

    let mut masked = tool_body("find_order", "https://shop.test");
    masked["auth"]["token"] = json!(MASKED_SECRET);
    let refused = app.post(TOOLS_PATH, masked).await.expect(422);
    assert_eq!(refused["errors"][0]["type"], "masked");

    create_tool(&app, tool_body("find_order", "https://shop.test")).await;
    let taken = app
        .post(TOOLS_PATH, tool_body("find_order", "https://shop.test"))
        .await;
    assert_eq!(taken.expect(409)["code"], "tool_name_taken");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_call_shows_the_response_as_a_model_sees_it() {
    let app = without_workers().await;
    let (url, heard) =
        recording_endpoint(r#"{"status": "sent", "echo": "bearer-token-1", "more": {"a": 1}}"#)
            .await;
    let mut wanted = tool_body("find_order", &format!("{url}/orders/{{{{order_id}}}}"));
    wanted["output_schema"] = json!(["status", "echo"]);

    let tool = create_tool(&app, wanted).await;
    let test = format!("{}/test", tool_path(&tool));
    let used = app
        .post(
            &test,
            json!({"arguments": {"order_id": "A 1/2", "page": 2}}),
        )
        .await
        .expect(200);

    assert_eq!(used["success"], true, "{used}");
    assert_eq!(
        used["response"],
        json!({"status": 200, "body": {"status": "sent", "echo": MASKED_SECRET}, "truncated": false})
    );
    assert_eq!(
        used["request"]["url"],
        format!("{url}/orders/A%201%2F2?page=2")
    );
    assert_eq!(used["request"]["headers"]["authorization"], MASKED_SECRET);
    assert_eq!(used["request"]["headers"]["accept"], "application/json");

    let (uri, headers, _) = heard.lock().expect("log")[0].clone();
    assert_eq!(uri, "/orders/A%201%2F2?page=2");
    assert_eq!(headers["authorization"], "Bearer bearer-token-1");
    assert_eq!(headers["x-shop-key"], "shop-key-1");

    let wrong = app.post(&test, json!({"arguments": {"order_id": 7}})).await;
    assert_eq!(
        wrong.expect(422)["errors"][0]["loc"],
        json!(["body", "arguments", "order_id"])
    );
    app.post(&test, json!({})).await.expect(422);
    assert_eq!(heard.lock().expect("log").len(), 1);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_of_a_post_are_its_body_and_a_repeated_test_is_sent_once() {
    let app = without_workers().await;
    let (url, heard) = recording_endpoint("not json").await;
    let mut wanted = tool_body("place_order", &url);
    wanted["method"] = json!("POST");
    let tool = create_tool(&app, wanted).await;
    let test = format!("{}/test", tool_path(&tool));
    for _ in 0..2 {
        let request = app
            .request(Method::POST, &test)
            .header("Idempotency-Key", "k-1");
        let request = request.json(&json!({"arguments": {"order_id": "7"}}));
        let used = send_request(request).await.expect(200);
        assert_eq!(used["response"]["body"], "not json");
        assert_eq!(used["request"]["body"], json!({"order_id": "7"}));
    }
    let heard = heard.lock().expect("log").clone();
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].1["content-type"], "application/json");
    assert_eq!(heard[0].2, r#"{"order_id":"7"}"#);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_endpoint_is_reported_without_details() {
    let app = without_workers().await;
    for host in ["nowhere.invalid", "127.0.0.2:1"] {
        let name = format!("tool_{}", host.len());
        let tool = create_tool(&app, tool_body(&name, &format!("http://{host}/"))).await;
        let used = app
            .post(
                &format!("{}/test", tool_path(&tool)),
                json!({"arguments": {"order_id": "1"}}),
            )
            .await
            .expect(200);
        assert_eq!(used["success"], false);
        assert_eq!(used["error"], "the address cannot be reached");
        assert_eq!(used["response"], Value::Null);
    }
    app.finish().await;
}
