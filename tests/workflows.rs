//! Workflows over HTTP.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::app::{App, AppOptions, send_request};

const WORKFLOWS: &str = "/api/v1/workflows";
const TOOLS: &str = "/api/v1/tool-endpoint-defs";

async fn quiet() -> App {
    App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await
}

async fn tool(app: &App) -> Value {
    let body = json!({"name": "find", "description": "finds it", "url": "https://shop.test"});
    app.post(TOOLS, body).await.expect(201)["id"].clone()
}

fn body(tool: &Value) -> Value {
    json!({
        "name": "Survey",
        "nodes": [
            {"id": "ask", "start": true, "type": "gather", "text": "Press one.", "input": "digits"},
            {"id": "look", "type": "tool", "tool_id": tool, "arguments": {"a": "{{name}}"}},
            {"id": "desk", "type": "transfer", "number": "+12125550100"},
            {"id": "bye", "type": "hangup", "text": "Good bye."},
        ],
        "transitions": [
            {"from": "ask", "to": "look", "when": "1"}, {"from": "ask", "to": "bye"},
            {"from": "look", "to": "desk"}, {"from": "look", "to": "bye", "when": "failed"},
        ],
    })
}

fn path(workflow: &Value) -> String {
    format!("{WORKFLOWS}/{}", workflow["id"].as_str().expect("an id"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_is_kept_changed_copied_and_deleted() {
    let app = quiet().await;
    let tool = tool(&app).await;
    let mut wanted = body(&tool);
    wanted["agent_id"] = json!(app.tenant.agent);
    let made = app.post(WORKFLOWS, wanted.clone()).await.expect(201);
    assert_eq!(made["transitions"], wanted["transitions"]);
    assert_eq!(made["nodes"][0]["timeout_seconds"], 5);
    assert_eq!(app.get(&path(&made)).await.expect(200), made);
    assert_eq!(
        app.get(WORKFLOWS).await.expect(200),
        json!({"workflows": [made]})
    );
    let change = |body: Value| send_request(app.request(Method::PATCH, &path(&made)).json(&body));
    let changed = change(json!({"name": "March", "agent_id": null}))
        .await
        .expect(200);
    assert_eq!(
        (&changed["name"], &changed["agent_id"]),
        (&json!("March"), &Value::Null)
    );
    assert_eq!(changed["nodes"], made["nodes"]);
    let copy = app
        .post(&format!("{}/clone", path(&made)), json!({}))
        .await
        .expect(201);
    assert_eq!(
        (&copy["name"], &copy["nodes"]),
        (&json!("March (copy)"), &made["nodes"])
    );
    let short = json!({
        "nodes": [{"id": "bye", "start": true, "type": "hangup"}], "transitions": [],
    });
    assert_eq!(change(short).await.expect(200)["transitions"], json!([]));
    // The graph is judged with what stays of it.
    let half = change(json!({"transitions": [{"from": "bye", "to": "gone"}]})).await;
    half.expect(422);
    send_request(app.request(Method::DELETE, &path(&made)))
        .await
        .expect(200);
    app.get(&path(&made)).await.expect(404);
    let actions: Vec<String> = sqlx::query_scalar(
        "select action from audit_log where action like 'workflow.%' order by id",
    )
    .fetch_all(&app.context.pool)
    .await
    .expect("log");
    assert_eq!(
        actions,
        [
            "workflow.create",
            "workflow.update",
            "workflow.clone",
            "workflow.update",
            "workflow.delete"
        ]
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_workflow_does_not_exist() {
    let app = quiet().await;
    let tool = tool(&app).await;
    let made = app.post(WORKFLOWS, body(&tool)).await.expect(201);
    let stranger = app.create_tenant("Other").await;
    for (method, path) in [
        (Method::GET, path(&made)),
        (Method::DELETE, path(&made)),
        (Method::POST, format!("{}/clone", path(&made))),
    ] {
        send_request(app.request_as(&stranger, method, &path))
            .await
            .expect(404);
    }
    let theirs = app.request_as(&stranger, Method::PATCH, &path(&made));
    send_request(theirs.json(&json!({"name": "mine"})))
        .await
        .expect(404);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_at_fault_is_named_and_nothing_is_kept() {
    let app = quiet().await;
    let tool = tool(&app).await;
    let stranger = app.create_tenant("Other").await;
    let refused = |change: fn(&mut Value)| {
        let mut odd = body(&tool);
        change(&mut odd);
        let app = &app;
        async move { app.post(WORKFLOWS, odd).await.expect(422) }
    };
    for (fault, loc) in [
        (
            refused(|odd| odd["nodes"][2]["number"] = json!("12")).await,
            json!(["body", "nodes", "2", "number"]),
        ),
        (
            refused(|odd| odd["transitions"][0]["to"] = json!("x")).await,
            json!(["body", "transitions", "0", "to"]),
        ),
        (
            refused(|odd| odd["nodes"][1]["tool_id"] = json!(uuid::Uuid::nil())).await,
            json!(["body", "nodes", "1", "tool_id"]),
        ),
    ] {
        assert_eq!(fault["errors"][0]["loc"], loc, "{fault}");
        assert_eq!(fault["errors"][0]["type"], "graph");
    }
    let named = refused(|odd| odd["nodes"][2]["number"] = json!("12")).await;
    assert!(
        named["detail"]
            .as_str()
            .expect("text")
            .contains("node \"desk\""),
        "{named}"
    );
    refused(|odd| odd["nodes"][2]["type"] = json!("teleport")).await;
    refused(|odd| odd["nodes"][2]["speed"] = json!(1)).await;
    refused(|odd| odd["nodes"] = json!([])).await;
    // Another tenant's tool and agent are as good as none.
    let theirs = app
        .request_as(&stranger, Method::POST, WORKFLOWS)
        .json(&body(&tool));
    assert_eq!(
        send_request(theirs).await.expect(422)["errors"][0]["loc"][3],
        "tool_id"
    );
    let mut foreign = body(&tool);
    foreign["agent_id"] = json!(stranger.agent);
    app.post(WORKFLOWS, foreign).await.expect(404);
    assert_eq!(
        app.get(WORKFLOWS).await.expect(200),
        json!({"workflows": []})
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_a_workflow_calls_goes_only_by_force() {
    let app = quiet().await;
    let tool = tool(&app).await;
    let made = app.post(WORKFLOWS, body(&tool)).await.expect(201);
    let definition = format!("{TOOLS}/{}", tool.as_str().expect("an id"));
    let refused = send_request(app.request(Method::DELETE, &definition))
        .await
        .expect(409);
    assert!(
        refused["detail"]
            .as_str()
            .expect("text")
            .contains("1 workflow(s)"),
        "{refused}"
    );
    let forced = format!("{definition}?force=true");
    send_request(app.request(Method::DELETE, &forced))
        .await
        .expect(200);
    let left = app.get(&path(&made)).await.expect(200);
    assert_eq!(left["is_active"], false);
    let again = app
        .request(Method::PATCH, &path(&made))
        .json(&json!({"is_active": true}));
    assert_eq!(
        send_request(again).await.expect(422)["errors"][0]["loc"][3],
        "tool_id"
    );
    app.finish().await;
}
