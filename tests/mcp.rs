//! MCP servers over HTTP: saved whether or not they answer, and asked through the gate.

use std::sync::{Arc, Mutex};

use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::harness::app::{App, Options, answer};

const SERVERS: &str = "/api/v1/tools-mcp-server-defs";
const MASK: &str = "********";

async fn quiet() -> App {
    App::with(Options {
        workers: 0,
        ..Options::default()
    })
    .await
}

/// How a server answers.
#[derive(Clone, Copy)]
enum Manner {
    Json,
    EventStream,
    Refusing,
}

/// What a server heard: the method of a message and the headers.
type Heard = Arc<Mutex<Vec<(String, HeaderMap)>>>;

/// A server of the protocol, written from its specification: two pages of tools, a session.
async fn server(manner: Manner) -> (String, Heard) {
    let heard = Heard::default();
    let log = Arc::clone(&heard);
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("a free port");
    let url = format!("http://{}/mcp", listener.local_addr().expect("address"));
    let ended = Arc::clone(&heard);
    let said = async move |headers: HeaderMap, Json(message): Json<Value>| {
        let method = message["method"].as_str().unwrap_or_default().to_owned();
        log.lock().expect("log").push((method, headers));
        reply(manner, &message)
    };
    let over = async move |headers: HeaderMap| {
        ended
            .lock()
            .expect("log")
            .push(("DELETE".to_owned(), headers));
        StatusCode::OK
    };
    let app = Router::new().route("/mcp", post(said).delete(over));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, heard)
}

fn reply(manner: Manner, message: &Value) -> Response {
    if matches!(manner, Manner::Refusing) {
        return (StatusCode::UNAUTHORIZED, "who are you?").into_response();
    }
    let tool = |name: &str| {
        json!({"name": name, "description": format!("does {name}"),
               "inputSchema": {"type": "object", "properties": {"id": {"type": "string"}}}})
    };
    let result = match message["method"].as_str() {
        Some("initialize") => json!({
            "protocolVersion": message["params"]["protocolVersion"], "capabilities": {"tools": {}},
            "serverInfo": {"name": "shop", "version": "1"}
        }),
        Some("tools/list") if message["params"]["cursor"].is_null() => {
            json!({"tools": [tool("find_order")], "nextCursor": "more"})
        }
        Some("tools/list") => json!({"tools": [tool("cancel_order")]}),
        _ => return StatusCode::ACCEPTED.into_response(),
    };
    let answer = json!({"jsonrpc": "2.0", "id": message["id"], "result": result});
    let session = ("mcp-session-id", "session-1");
    match manner {
        Manner::EventStream => {
            let events = format!("event: message\ndata: {answer}\n\n");
            ([session, ("content-type", "text/event-stream")], events).into_response()
        }
        _ => ([session], Json(answer)).into_response(),
    }
}

fn body(url: &str) -> Value {
    json!({
        "name": "Shop", "server_url": url, "headers": {"X-Tenant": "acme"},
        "auth": {"type": "bearer", "token": "bearer-token-1"}, "timeout_seconds": 5,
    })
}

fn path(server: &Value) -> String {
    format!("{SERVERS}/{}", server["id"].as_str().expect("an id"))
}

fn names(server: &Value, list: &str) -> Vec<String> {
    let tools = server[list].as_array().expect("a list");
    tools
        .iter()
        .map(|tool| tool["name"].as_str().expect("a name").to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn saving_a_server_asks_it_what_it_offers() {
    let app = quiet().await;
    for manner in [Manner::Json, Manner::EventStream] {
        let (url, heard) = server(manner).await;
        let made = app.post(SERVERS, body(&url)).await.expect(201);
        assert_eq!(made["sync_error"], Value::Null, "{made}");
        assert_eq!(
            names(&made, "discovered_tools"),
            ["find_order", "cancel_order"]
        );
        assert_eq!(
            made["discovered_tools"][0]["input_schema"]["type"],
            "object"
        );
        assert_eq!(made["auth"], json!({"type": "bearer", "token": MASK}));
        assert!(made["last_synced_at"].is_string());
        let heard = heard.lock().expect("log").clone();
        let methods: Vec<&str> = heard.iter().map(|(method, _)| method.as_str()).collect();
        assert_eq!(
            methods,
            [
                "initialize",
                "notifications/initialized",
                "tools/list",
                "tools/list",
                "DELETE"
            ]
        );
        for (method, headers) in &heard {
            assert_eq!(
                headers["authorization"], "Bearer bearer-token-1",
                "{method}"
            );
            assert_eq!(headers["x-tenant"], "acme", "{method}");
        }
        assert_eq!(heard[2].1["mcp-session-id"], "session-1");
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_is_saved_with_the_reason() {
    let app = quiet().await;
    let (refusing, _) = server(Manner::Refusing).await;
    let elsewhere = refusing.replace("/mcp", "/elsewhere");
    for (url, error) in [
        (
            "http://nowhere.invalid/mcp",
            "the address cannot be reached",
        ),
        ("http://127.0.0.2:1/mcp", "the address cannot be reached"),
        (&refusing, "the server refuses these credentials (401)"),
        (
            &elsewhere,
            "the server does not speak MCP over streamable HTTP",
        ),
    ] {
        let made = app.post(SERVERS, body(url)).await.expect(201);
        assert_eq!(made["sync_error"], error, "{url}");
        assert_eq!(made["discovered_tools"], json!([]));
        assert_eq!(made["last_synced_at"], Value::Null);
    }
    for url in [
        "http://127.0.0.1/mcp",
        "ftp://x.test",
        "http://169.254.169.254/",
    ] {
        let refused = app.post(SERVERS, body(url)).await.expect(422);
        assert_eq!(refused["errors"][0]["loc"], json!(["body", "server_url"]));
    }
    let mut old = body("https://shop.test");
    old["transport"] = json!("sse");
    let refused = app.post(SERVERS, old).await.expect(422);
    assert_eq!(refused["errors"][0]["loc"], json!(["body", "transport"]));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_changed_asked_again_copied_narrowed_and_deleted() {
    let app = quiet().await;
    let made = app
        .post(SERVERS, body("http://nowhere.invalid"))
        .await
        .expect(201);
    let (url, heard) = server(Manner::Json).await;
    let mut change = body(&url);
    change["auth"]["token"] = json!(MASK);
    change["is_active"] = json!(false);
    let changed = answer(app.request(Method::PUT, &path(&made)).json(&change)).await;
    let changed = changed.expect(200);
    assert_eq!(names(&changed, "discovered_tools").len(), 2);
    assert_eq!(changed["sync_error"], Value::Null);
    let first = heard.lock().expect("log")[0].1.clone();
    assert_eq!(first["authorization"], "Bearer bearer-token-1");
    assert_eq!(app.get(&path(&made)).await.expect(200), changed);
    let active = app.get(&format!("{SERVERS}/active/servers")).await;
    assert_eq!(active.expect(200), json!({"tools": []}));

    let fetch = format!("{SERVERS}/fetch_mcp_tools");
    let fetched = app
        .post(&fetch, json!({"tool_id": made["id"]}))
        .await
        .expect(200);
    assert_eq!(
        (&fetched["success"], names(&fetched, "tools").len()),
        (&json!(true), 2)
    );
    let seen = app
        .post(&fetch, json!({"server_url": url}))
        .await
        .expect(200);
    assert_eq!(names(&seen, "tools").len(), 2);
    app.post(&fetch, json!({})).await.expect(400);
    app.post(&fetch, json!({"server_url": url, "tool_id": made["id"]}))
        .await
        .expect(400);

    let filter = format!("{}/filter-tools", path(&made));
    let put = |body: Value| answer(app.request(Method::PUT, &filter).json(&body));
    let narrowed = put(json!({"allowed_tools": ["find_order"]}))
        .await
        .expect(200);
    assert_eq!(narrowed["allowed_tools"], json!(["find_order"]));
    let unknown = put(json!({"allowed_tools": ["drop_database"]}))
        .await
        .expect(422);
    assert_eq!(unknown["errors"][0]["type"], "unknown_tool");
    let copy = app
        .post(&format!("{}/clone", path(&made)), json!({}))
        .await
        .expect(201);
    assert_eq!(
        (&copy["name"], &copy["allowed_tools"]),
        (&json!("Shop (copy)"), &json!(["find_order"]))
    );
    let asked = app
        .post(&fetch, json!({"tool_id": copy["id"]}))
        .await
        .expect(200);
    assert_eq!(asked["success"], true);
    let last = heard.lock().expect("log").last().expect("heard").1.clone();
    assert_eq!(last["authorization"], "Bearer bearer-token-1");
    let wide = put(json!({"allowed_tools": null})).await.expect(200);
    assert_eq!(wide["allowed_tools"], Value::Null);

    answer(app.request(Method::DELETE, &path(&made)))
        .await
        .expect(200);
    app.get(&path(&made)).await.expect(404);
    let left = app.get(SERVERS).await.expect(200);
    assert_eq!(left["tools"].as_array().map(Vec::len), Some(1));
    let stranger = app.another_tenant("Other").await;
    for (method, path) in [
        (Method::GET, path(&copy)),
        (Method::DELETE, path(&copy)),
        (Method::POST, format!("{}/clone", path(&copy))),
    ] {
        answer(app.request_as(&stranger, method, &path))
            .await
            .expect(404);
    }
    let asked = app.request_as(&stranger, Method::POST, &fetch);
    answer(asked.json(&json!({"tool_id": copy["id"]})))
        .await
        .expect(404);
    app.finish().await;
}
