//! MCP servers over HTTP: saved even when they do not answer, and requested through the outbound
//! client.

use std::sync::{Arc, Mutex};

use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post as routing_post};
use axum::{Json, Router};
use peal_local::ports;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::harness::app::{App, AppOptions, TEST_TIMEOUT, send_request};
use crate::harness::eventually;
use crate::harness::python::install_programs;

const SERVERS_PATH: &str = "/api/v1/tools-mcp-server-defs";
const MASKED_SECRET: &str = "********";

async fn without_workers() -> App {
    App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await
}

/// Response format of a test server.
#[derive(Clone, Copy)]
enum McpResponseFormat {
    Json,
    EventStream,
    Refusing,
}

/// Log of a server: the method and the headers of each message.
type McpMessageLog = Arc<Mutex<Vec<(String, HeaderMap)>>>;

/// A server of the protocol, written from its specification: two pages of tools, a session.
async fn mcp_server(manner: McpResponseFormat) -> (String, McpMessageLog) {
    let heard = McpMessageLog::default();
    let log = Arc::clone(&heard);
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("a free port");
    let url = format!("http://{}/mcp", listener.local_addr().expect("address"));
    let delete_log = Arc::clone(&heard);
    let on_message = async move |headers: HeaderMap, Json(message): Json<Value>| {
        let method = message["method"].as_str().unwrap_or_default().to_owned();
        log.lock().expect("log").push((method, headers));
        mcp_response(manner, &message)
    };
    let on_delete = async move |headers: HeaderMap| {
        delete_log
            .lock()
            .expect("log")
            .push(("DELETE".to_owned(), headers));
        StatusCode::OK
    };
    let app = Router::new().route("/mcp", routing_post(on_message).delete(on_delete));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, heard)
}

/// Answer to a message; `None` for notifications.
fn mcp_answer(message: &Value) -> Option<Value> {
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
        _ => return None,
    };
    Some(json!({"jsonrpc": "2.0", "id": message["id"], "result": result}))
}

fn mcp_response(manner: McpResponseFormat, message: &Value) -> Response {
    if matches!(manner, McpResponseFormat::Refusing) {
        return (StatusCode::UNAUTHORIZED, "who are you?").into_response();
    }
    let Some(answer) = mcp_answer(message) else {
        return StatusCode::ACCEPTED.into_response();
    };
    let session = ("mcp-session-id", "session-1");
    match manner {
        McpResponseFormat::EventStream => {
            let events = format!("event: message\ndata: {answer}\n\n");
            ([session, ("content-type", "text/event-stream")], events).into_response()
        }
        _ => ([session], Json(answer)).into_response(),
    }
}

/// A server of the protocol's earlier transport, written from its specification: it sends the
/// `post` address, and answers with events.
async fn sse_server(post: &'static str) -> (String, McpMessageLog) {
    let heard = McpMessageLog::default();
    let log = Arc::clone(&heard);
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<Event>();
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    sender
        .send(Event::default().event("endpoint").data(post))
        .expect("an open channel");
    let on_connect = async move || {
        let receiver = receiver.lock().expect("events").take();
        let receiver = receiver.expect("one conversation");
        let events = futures::stream::unfold(receiver, async |mut receiver| {
            let event = receiver.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(event), receiver))
        });
        Sse::new(events)
    };

    let on_message = async move |headers: HeaderMap, Json(message): Json<Value>| {
        let method = message["method"].as_str().unwrap_or_default().to_owned();
        log.lock().expect("log").push((method, headers));
        if let Some(answer) = mcp_answer(&message) {
            sender
                .send(Event::default().event("message").data(answer.to_string()))
                .expect("an open channel");
        }
        StatusCode::ACCEPTED
    };

    let routes = Router::new()
        .route("/sse", get(on_connect))
        .route("/messages", routing_post(on_message));
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("a free port");
    let url = format!("http://{}/sse", listener.local_addr().expect("address"));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (url, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_the_earlier_transport_is_supported() {
    let app = without_workers().await;
    let (url, heard) = sse_server("/messages?session=1").await;
    let mut wanted = server_body(&url);
    wanted["transport"] = json!("sse");
    let made = app.post(SERVERS_PATH, wanted).await.expect(201);
    assert_eq!(made["sync_error"], Value::Null, "{made}");
    assert_eq!(made["transport"], "sse");
    assert_eq!(
        tool_names(&made, "discovered_tools"),
        ["find_order", "cancel_order"]
    );

    let heard = heard.lock().expect("log").clone();
    assert_eq!(heard.len(), 4, "{heard:?}");

    for (method, headers) in &heard {
        let token = &headers["authorization"];
        assert_eq!(token, "Bearer bearer-token-1", "{method}");
    }

    // A server that names a post address on another host gets no message and no credentials.
    let (url, heard) = sse_server("http://127.0.0.1:9/messages").await;
    let fetch = format!("{SERVERS_PATH}/fetch_mcp_tools");
    let wanted = json!({"server_url": url, "transport": "sse"});
    let fetched = app.post(&fetch, wanted).await.expect(200);
    assert_eq!(
        fetched["sync_error"],
        "the server does not speak MCP over SSE"
    );
    assert!(heard.lock().expect("log").is_empty());

    // A server of the new transport does not support the earlier one.
    let (url, _) = mcp_server(McpResponseFormat::Json).await;
    let wanted = json!({"server_url": url, "transport": "sse"});
    let fetched = app.post(&fetch, wanted).await.expect(200);
    assert_eq!(fetched["success"], false);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_made_with_the_protocols_own_kit_are_understood() {
    let Some(programs) = install_programs("mcp_kit").await else {
        return;
    };

    let app = without_workers().await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/mcp_kit/server.py");
    for (transport, transport_arg, path) in [
        ("streamable_http", "streamable-http", "mcp"),
        ("sse", "sse", "sse"),
    ] {
        let port = ports::ReservedPort::on_host([127, 0, 0, 2].into()).expect("a free port");
        let address = port.address();
        let _serving = Command::new(programs.join("python"))
            .args([script, transport_arg, &address.port().to_string()])
            .kill_on_drop(true)
            .spawn()
            .expect("a server");
        let listens = || async { TcpStream::connect(address).await.is_ok() };
        eventually("the kit's server listens", TEST_TIMEOUT, listens).await;

        let mut wanted = server_body(&format!("http://{address}/{path}"));
        wanted["transport"] = json!(transport);
        let made = app.post(SERVERS_PATH, wanted).await.expect(201);
        assert_eq!(made["sync_error"], Value::Null, "{made}");
        let tool = &made["discovered_tools"][0];
        assert_eq!(
            (&tool["name"], &tool["description"]),
            (&json!("lend_book"), &json!("Lends a book")),
            "{transport}"
        );
        assert_eq!(tool["input_schema"]["properties"]["isbn"]["type"], "string");
    }
    app.finish().await;
}

fn server_body(url: &str) -> Value {
    json!({
        "name": "Shop", "server_url": url, "headers": {"X-Tenant": "acme"},
        "auth": {"type": "bearer", "token": "bearer-token-1"}, "timeout_seconds": 5,
    })
}

fn server_path(server: &Value) -> String {
    format!("{SERVERS_PATH}/{}", server["id"].as_str().expect("an id"))
}

fn tool_names(server: &Value, list: &str) -> Vec<String> {
    let tools = server[list].as_array().expect("a list");
    tools
        .iter()
        .map(|tool| tool["name"].as_str().expect("a name").to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn saving_a_server_discovers_its_tools() {
    let app = without_workers().await;
    for manner in [McpResponseFormat::Json, McpResponseFormat::EventStream] {
        let (url, heard) = mcp_server(manner).await;
        let made = app.post(SERVERS_PATH, server_body(&url)).await.expect(201);
        assert_eq!(made["sync_error"], Value::Null, "{made}");
        assert_eq!(
            tool_names(&made, "discovered_tools"),
            ["find_order", "cancel_order"]
        );
        assert_eq!(
            made["discovered_tools"][0]["input_schema"]["type"],
            "object"
        );
        assert_eq!(
            made["auth"],
            json!({"type": "bearer", "token": MASKED_SECRET})
        );
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
    let app = without_workers().await;
    let (refusing, _) = mcp_server(McpResponseFormat::Refusing).await;

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
        let made = app.post(SERVERS_PATH, server_body(url)).await.expect(201);
        assert_eq!(made["sync_error"], error, "{url}");
        assert_eq!(made["discovered_tools"], json!([]));
        assert_eq!(made["last_synced_at"], Value::Null);
    }

    for url in [
        "http://127.0.0.1/mcp",
        "ftp://x.test",
        "http://169.254.169.254/",
    ] {
        let refused = app.post(SERVERS_PATH, server_body(url)).await.expect(422);
        assert_eq!(refused["errors"][0]["loc"], json!(["body", "server_url"]));
    }

    let mut unknown = server_body("https://shop.test");
    unknown["transport"] = json!("stdio");
    let refused = app.post(SERVERS_PATH, unknown).await.expect(422);
    assert_eq!(refused["errors"][0]["loc"], json!(["body", "transport"]));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_changed_refreshed_and_deleted() {
    let app = without_workers().await;
    let made = app
        .post(SERVERS_PATH, server_body("http://nowhere.invalid"))
        .await
        .expect(201);
    let (url, heard) = mcp_server(McpResponseFormat::Json).await;
    let mut change = server_body(&url);
    change["auth"]["token"] = json!(MASKED_SECRET);
    change["is_active"] = json!(false);
    let put = |body: &Value| send_request(app.request(Method::PUT, &server_path(&made)).json(body));
    let refused = put(&change).await.expect(422);
    let wrong = &refused["errors"][0];
    assert_eq!(wrong["loc"], json!(["body", "auth", "token"]));
    assert_eq!(wrong["type"], "masked");
    assert!(heard.lock().expect("log").is_empty(), "a secret was sent");

    change["auth"]["token"] = json!("bearer-token-2");
    put(&change).await.expect(200);
    change["auth"]["token"] = json!(MASKED_SECRET);
    let changed = put(&change).await.expect(200);
    assert_eq!(tool_names(&changed, "discovered_tools").len(), 2);
    assert_eq!(changed["sync_error"], Value::Null);
    let last = heard.lock().expect("log").last().expect("heard").1.clone();
    assert_eq!(last["authorization"], "Bearer bearer-token-2");
    assert_eq!(app.get(&server_path(&made)).await.expect(200), changed);
    let active = app.get(&format!("{SERVERS_PATH}/active/servers")).await;
    assert_eq!(active.expect(200), json!({"tools": []}));

    let fetch = format!("{SERVERS_PATH}/fetch_mcp_tools");
    let fetched = app
        .post(&fetch, json!({"tool_id": made["id"]}))
        .await
        .expect(200);
    assert_eq!(
        (&fetched["success"], tool_names(&fetched, "tools").len()),
        (&json!(true), 2)
    );

    let seen = app
        .post(&fetch, json!({"server_url": url}))
        .await
        .expect(200);
    assert_eq!(tool_names(&seen, "tools").len(), 2);
    app.post(&fetch, json!({})).await.expect(400);
    app.post(&fetch, json!({"server_url": url, "tool_id": made["id"]}))
        .await
        .expect(400);

    send_request(app.request(Method::DELETE, &server_path(&made)))
        .await
        .expect(200);
    app.get(&server_path(&made)).await.expect(404);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_are_filtered_servers_copied_and_other_tenants_get_404() {
    let app = without_workers().await;
    let fetch = format!("{SERVERS_PATH}/fetch_mcp_tools");
    let (url, heard) = mcp_server(McpResponseFormat::Json).await;
    let made = app.post(SERVERS_PATH, server_body(&url)).await.expect(201);
    let filter = format!("{}/filter-tools", server_path(&made));
    let put = |body: Value| send_request(app.request(Method::PUT, &filter).json(&body));
    let narrowed = put(json!({"allowed_tools": ["find_order"]}))
        .await
        .expect(200);
    assert_eq!(narrowed["allowed_tools"], json!(["find_order"]));
    let unknown = put(json!({"allowed_tools": ["drop_database"]}))
        .await
        .expect(422);
    assert_eq!(unknown["errors"][0]["type"], "unknown_tool");

    let copy = app
        .post(&format!("{}/clone", server_path(&made)), json!({}))
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

    send_request(app.request(Method::DELETE, &server_path(&made)))
        .await
        .expect(200);
    let left = app.get(SERVERS_PATH).await.expect(200);
    assert_eq!(left["tools"].as_array().map(Vec::len), Some(1));

    let other_tenant = app.create_tenant("Other").await;
    for (method, path) in [
        (Method::GET, server_path(&copy)),
        (Method::DELETE, server_path(&copy)),
        (Method::POST, format!("{}/clone", server_path(&copy))),
    ] {
        send_request(app.request_as(&other_tenant, method, &path))
            .await
            .expect(404);
    }
    let asked = app.request_as(&other_tenant, Method::POST, &fetch);
    send_request(asked.json(&json!({"tool_id": copy["id"]})))
        .await
        .expect(404);
    let all = format!("{SERVERS_PATH}/user/all");
    let theirs = send_request(app.request_as(&other_tenant, Method::DELETE, &all)).await;
    assert_eq!(theirs.expect(200)["message"], "0 MCP servers deleted");

    app.post(SERVERS_PATH, server_body(&url)).await.expect(201);
    let agent = format!("/api/v1/agents/{}/tools", app.tenant.agent);
    let mapped = json!([{"tool_id": copy["id"], "tool_type": "mcp_server"}]);
    app.post(&agent, mapped).await.expect(200);
    let refused = send_request(app.request(Method::DELETE, &all))
        .await
        .expect(409);
    assert_eq!(refused["code"], "tool_in_use");
    let left = app.get(SERVERS_PATH).await.expect(200);
    assert_eq!(left["tools"].as_array().map(Vec::len), Some(2));
    let forced = format!("{all}?force=true");
    let gone = send_request(app.request(Method::DELETE, &forced)).await;
    assert_eq!(gone.expect(200)["message"], "2 MCP servers deleted");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_a_running_batch_is_refreshed_only_by_force() {
    let app = without_workers().await;
    let fetch = format!("{SERVERS_PATH}/fetch_mcp_tools");
    let (url, heard) = mcp_server(McpResponseFormat::Json).await;
    let made = app.post(SERVERS_PATH, server_body(&url)).await.expect(201);
    let mapped = json!([{"tool_id": made["id"], "tool_type": "mcp_server"}]);
    let tools = format!("/api/v1/agents/{}/tools", app.tenant.agent);
    app.post(&tools, mapped).await.expect(200);
    app.create_batch(json!({})).await;
    let set = async |status: &str| {
        sqlx::query("update call_batches set status = $1")
            .bind(status)
            .execute(&app.context.pool)
            .await
            .expect("a batch");
    };
    let asked = || {
        let heard = heard.lock().expect("log");
        let begun = heard.iter().filter(|(method, _)| method == "initialize");
        begun.count()
    };

    set("in_progress").await;
    let saved = json!({"tool_id": made["id"]});
    let refused = app.post(&fetch, saved.clone()).await.expect(409);
    assert_eq!(refused["code"], "agent_in_use");

    let put = |query: &str| {
        let path = format!("{}{query}", server_path(&made));
        send_request(app.request(Method::PUT, &path).json(&server_body(&url)))
    };
    assert_eq!(put("").await.expect(409)["code"], "agent_in_use");
    assert_eq!(asked(), 1, "only on creation");

    // A server that is not saved is not in use.
    let unsaved = json!({"server_url": url});
    app.post(&fetch, unsaved).await.expect(200);
    let forced = format!("{fetch}?force_update=true");
    app.post(&forced, saved).await.expect(200);
    put("?force_update=true").await.expect(200);
    assert_eq!(asked(), 4);

    set("stopped").await;
    app.finish().await;
}
