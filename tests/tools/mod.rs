//! HTTP tools over HTTP: kept, shown without their secrets, and used through the gate.

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

const TOOLS: &str = "/api/v1/tool-endpoint-defs";
const MASK: &str = "********";

async fn quiet() -> App {
    App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await
}

fn body(name: &str, url: &str) -> Value {
    json!({
        "name": name, "description": "Finds an order", "url": url, "method": "GET",
        "headers": {"Accept": "application/json", "X-Shop-Key": "shop-key-1"},
        "auth": {"type": "bearer", "token": "bearer-token-1"},
        "tool_schema": {"type": "object", "properties": {"order_id": {"type": "string"}}},
        "required": ["order_id"],
    })
}

async fn create(app: &App, body: Value) -> Value {
    app.post(TOOLS, body).await.expect(201)
}

fn path(tool: &Value) -> String {
    format!("{TOOLS}/{}", tool["id"].as_str().expect("an id"))
}

/// Another user of the tenant's organisation, without any role.
async fn colleague(app: &App) -> Tenant {
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

/// A request as the endpoint heard it.
type Heard = (String, HeaderMap, String);

/// An endpoint that answers everybody with `text` and remembers what it heard.
async fn endpoint(text: &'static str) -> (String, Arc<Mutex<Vec<Heard>>>) {
    let heard: Arc<Mutex<Vec<Heard>>> = Arc::default();
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
async fn a_tool_is_kept_changed_and_deleted_without_showing_its_secrets() {
    let app = quiet().await;
    let tool = create(&app, body("find_order", "https://shop.test/{{order_id}}")).await;
    assert_eq!(tool["auth"], json!({"type": "bearer", "token": MASK}));
    assert_eq!(
        tool["headers"],
        json!({"Accept": "application/json", "X-Shop-Key": MASK})
    );
    assert_eq!(tool["tool_schema"]["required"], json!(["order_id"]));
    assert_eq!(
        (&tool["timeout_seconds"], &tool["is_active"]),
        (&json!(10), &json!(true))
    );
    assert_eq!(app.get(&path(&tool)).await.expect(200), tool);
    assert_eq!(app.get(TOOLS).await.expect(200), json!({"tools": [tool]}));

    let mut change = body("find_order", "https://shop.test/v2/{{order_id}}");
    change["auth"]["token"] = json!(MASK);
    change["headers"]["X-Shop-Key"] = json!(MASK);
    change["is_active"] = json!(false);
    let changed = send_request(app.request(Method::PUT, &path(&tool)).json(&change)).await;
    assert_eq!(
        changed.expect(200)["url"],
        "https://shop.test/v2/{{order_id}}"
    );
    let active = app.get(&format!("{TOOLS}/active/endpoints")).await;
    assert_eq!(active.expect(200), json!({"tools": []}));

    let plain: Vec<u8> = sqlx::query_scalar("select credentials from tools")
        .fetch_one(&app.context.pool)
        .await
        .expect("sealed");
    assert!(!String::from_utf8_lossy(&plain).contains("bearer-token-1"));

    send_request(app.request(Method::DELETE, &path(&tool)))
        .await
        .expect(200);
    app.get(&path(&tool)).await.expect(404);
    let actions: Vec<String> = sqlx::query_scalar("select action from audit_log order by id")
        .fetch_all(&app.context.pool)
        .await
        .expect("log");
    assert_eq!(actions, ["tool.create", "tool.update", "tool.delete"]);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_moves_to_another_server_takes_no_masked_secret_along() {
    let app = quiet().await;
    let (url, heard) = endpoint("{}").await;
    let tool = create(&app, body("find_order", "https://shop.test/{{order_id}}")).await;
    let mut change = body("find_order", &url);
    change["auth"]["token"] = json!(MASK);
    change["headers"]["X-Shop-Key"] = json!(MASK);
    let put = |body: &Value| send_request(app.request(Method::PUT, &path(&tool)).json(body));
    for elsewhere in [
        &*url,
        "https://other.test/",
        "https://shop.test.other.test/",
    ] {
        change["url"] = json!(elsewhere);
        let refused = put(&change).await.expect(422);
        let errors = refused["errors"].as_array().expect("errors");
        let told: Vec<_> = errors.iter().map(|e| (&e["loc"], &e["type"])).collect();
        let (key, token) = (
            json!(["body", "headers", "X-Shop-Key"]),
            json!(["body", "auth", "token"]),
        );
        let masked = json!("masked");
        assert_eq!(told, [(&key, &masked), (&token, &masked)], "{elsewhere}");
    }
    assert_eq!(app.get(&path(&tool)).await.expect(200), tool);

    // One secret that is sent does not let the other go along.
    change["url"] = json!(url);
    change["auth"]["token"] = json!("bearer-token-2");
    put(&change).await.expect(422);
    change["headers"]["X-Shop-Key"] = json!("shop-key-2");
    put(&change).await.expect(200);
    let sample = json!({"arguments": {"order_id": "1"}});
    let used = app.post(&format!("{}/test", path(&tool)), sample).await;
    used.expect(200);
    let heard = heard.lock().expect("log").clone();
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].1["authorization"], "Bearer bearer-token-2");
    assert_eq!(heard[0].1["x-shop-key"], "shop-key-2");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_in_a_session_sees_the_secrets() {
    let app = quiet().await;
    let tool = create(&app, body("find_order", "https://shop.test")).await;
    let reveal = format!("{}?reveal_secret=true", path(&tool));
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
async fn tools_of_others_do_not_exist() {
    let app = quiet().await;
    let mine = create(&app, body("find_order", "https://shop.test")).await;
    let stranger = app.create_tenant("Other").await;
    let colleague = colleague(&app).await;
    for other in [&stranger, &colleague] {
        for (method, path) in [
            (Method::GET, path(&mine)),
            (Method::PUT, path(&mine)),
            (Method::DELETE, path(&mine)),
            (Method::POST, format!("{}/test", path(&mine))),
        ] {
            let request = app.request_as(other, method, &path);
            let request = request.json(&body("find_order", "https://shop.test"));
            let problem = match path.ends_with("test") {
                true => send_request(app.request_as(other, Method::POST, &path)).await,
                false => send_request(request).await,
            };
            assert_eq!(problem.expect(404)["detail"], "Tool not found");
        }
        let theirs = send_request(app.request_as(other, Method::GET, TOOLS)).await;
        assert_eq!(theirs.expect(200), json!({"tools": []}));
    }
    let mut given = body("find_order", "https://shop.test");
    given["user_id"] = mine["user_id"].clone();
    let request = app.request_as(&colleague, Method::POST, TOOLS);
    send_request(request.json(&given)).await.expect(403);
    // The same name is free for somebody else, and an administrator sees both.
    given["user_id"] = Value::Null;
    let request = app.request_as(&colleague, Method::POST, TOOLS);
    let theirs = send_request(request.json(&given)).await.expect(201);
    let admin = with_session(&app, &app.tenant).await;
    let seen = async |path: &str| {
        send_request(app.request_as(&admin, Method::GET, path))
            .await
            .expect(200)
    };
    let all = seen(TOOLS).await;
    assert_eq!(all["tools"].as_array().map(Vec::len), Some(2));
    let by_key = app.get(TOOLS).await.expect(200);
    assert_eq!(by_key["tools"].as_array().map(Vec::len), Some(1));
    let one = format!(
        "{TOOLS}?user_id={}",
        theirs["user_id"].as_str().expect("id")
    );
    assert_eq!(seen(&one).await, json!({"tools": [theirs]}));
    app.get(&one).await.expect(403);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_wrong_with_a_tool_is_told_at_once() {
    let app = quiet().await;
    let problem = app
        .post(
            TOOLS,
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
        app.post(TOOLS, body).await.expect(422);
    }
    let mut masked = body("find_order", "https://shop.test");
    masked["auth"]["token"] = json!(MASK);
    let refused = app.post(TOOLS, masked).await.expect(422);
    assert_eq!(refused["errors"][0]["type"], "masked");
    create(&app, body("find_order", "https://shop.test")).await;
    let taken = app
        .post(TOOLS, body("find_order", "https://shop.test"))
        .await;
    assert_eq!(taken.expect(409)["code"], "tool_name_taken");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_is_tried_out_and_shows_what_a_model_would_see() {
    let app = quiet().await;
    let (url, heard) =
        endpoint(r#"{"status": "sent", "echo": "bearer-token-1", "more": {"a": 1}}"#).await;
    let mut wanted = body("find_order", &format!("{url}/orders/{{{{order_id}}}}"));
    wanted["output_schema"] = json!(["status", "echo"]);
    let tool = create(&app, wanted).await;
    let test = format!("{}/test", path(&tool));
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
        json!({"status": 200, "body": {"status": "sent", "echo": MASK}, "truncated": false})
    );
    assert_eq!(
        used["request"]["url"],
        format!("{url}/orders/A%201%2F2?page=2")
    );
    assert_eq!(used["request"]["headers"]["authorization"], MASK);
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
    let app = quiet().await;
    let (url, heard) = endpoint("not json").await;
    let mut wanted = body("place_order", &url);
    wanted["method"] = json!("POST");
    let tool = create(&app, wanted).await;
    let test = format!("{}/test", path(&tool));
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
async fn an_endpoint_that_cannot_be_reached_is_told_without_a_reason() {
    let app = quiet().await;
    for host in ["nowhere.invalid", "127.0.0.2:1"] {
        let name = format!("tool_{}", host.len());
        let tool = create(&app, body(&name, &format!("http://{host}/"))).await;
        let used = app
            .post(
                &format!("{}/test", path(&tool)),
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
