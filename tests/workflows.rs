//! Workflows over HTTP: life cycle, validation of the graph, and use of tools.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::app::{App, AppOptions, send_request};

const WORKFLOWS_PATH: &str = "/api/v1/workflows";
const TOOLS_PATH: &str = "/api/v1/tool-endpoint-defs";

async fn without_workers() -> App {
    App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await
}

async fn create_tool(app: &App) -> Value {
    let body = json!({"name": "find", "description": "finds it", "url": "https://shop.test"});
    app.post(TOOLS_PATH, body).await.expect(201)["id"].clone()
}

fn workflow_body(tool: &Value) -> Value {
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

fn workflow_path(workflow: &Value) -> String {
    format!(
        "{WORKFLOWS_PATH}/{}",
        workflow["id"].as_str().expect("an id")
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_is_created_changed_copied_and_deleted() {
    let app = without_workers().await;
    let tool = create_tool(&app).await;
    let mut request = workflow_body(&tool);
    request["agent_id"] = json!(app.tenant.agent);
    let made = app.post(WORKFLOWS_PATH, request.clone()).await.expect(201);
    assert_eq!(made["transitions"], request["transitions"]);
    assert_eq!(made["nodes"][0]["timeout_seconds"], 5);
    assert_eq!(app.get(&workflow_path(&made)).await.expect(200), made);
    assert_eq!(
        app.get(WORKFLOWS_PATH).await.expect(200),
        json!({"workflows": [made]})
    );

    let change = |body: Value| {
        send_request(
            app.request(Method::PATCH, &workflow_path(&made))
                .json(&body),
        )
    };
    let changed = change(json!({"name": "March", "agent_id": null}))
        .await
        .expect(200);
    assert_eq!(
        (&changed["name"], &changed["agent_id"]),
        (&json!("March"), &Value::Null)
    );
    assert_eq!(changed["nodes"], made["nodes"]);

    let copy = app
        .post(&format!("{}/clone", workflow_path(&made)), json!({}))
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

    // A partial change is validated against the whole graph.
    let partial = change(json!({"transitions": [{"from": "bye", "to": "gone"}]})).await;
    partial.expect(422);

    send_request(app.request(Method::DELETE, &workflow_path(&made)))
        .await
        .expect(200);
    app.get(&workflow_path(&made)).await.expect(404);

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
async fn another_tenants_workflow_returns_404() {
    let app = without_workers().await;
    let tool = create_tool(&app).await;
    let made = app
        .post(WORKFLOWS_PATH, workflow_body(&tool))
        .await
        .expect(201);
    let other_tenant = app.create_tenant("Other").await;
    for (method, path) in [
        (Method::GET, workflow_path(&made)),
        (Method::DELETE, workflow_path(&made)),
        (Method::POST, format!("{}/clone", workflow_path(&made))),
    ] {
        send_request(app.request_as(&other_tenant, method, &path))
            .await
            .expect(404);
    }
    let theirs = app.request_as(&other_tenant, Method::PATCH, &workflow_path(&made));
    send_request(theirs.json(&json!({"name": "mine"})))
        .await
        .expect(404);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_node_is_named_and_nothing_is_stored() {
    let app = without_workers().await;
    let tool = create_tool(&app).await;
    let other_tenant = app.create_tenant("Other").await;
    let refused = |change: fn(&mut Value)| {
        let mut workflow = workflow_body(&tool);
        change(&mut workflow);
        let app = &app;
        async move { app.post(WORKFLOWS_PATH, workflow).await.expect(422) }
    };

    for (problem, loc) in [
        (
            refused(|workflow| workflow["nodes"][2]["number"] = json!("12")).await,
            json!(["body", "nodes", "2", "number"]),
        ),
        (
            refused(|workflow| workflow["transitions"][0]["to"] = json!("x")).await,
            json!(["body", "transitions", "0", "to"]),
        ),
        (
            refused(|workflow| workflow["nodes"][1]["tool_id"] = json!(uuid::Uuid::nil())).await,
            json!(["body", "nodes", "1", "tool_id"]),
        ),
    ] {
        assert_eq!(problem["errors"][0]["loc"], loc, "{problem}");
        assert_eq!(problem["errors"][0]["type"], "graph");
    }

    let named = refused(|workflow| workflow["nodes"][2]["number"] = json!("12")).await;
    assert!(
        named["detail"]
            .as_str()
            .expect("text")
            .contains("node \"desk\""),
        "{named}"
    );

    refused(|workflow| workflow["nodes"][2]["type"] = json!("teleport")).await;
    refused(|workflow| workflow["nodes"][2]["speed"] = json!(1)).await;
    refused(|workflow| workflow["nodes"] = json!([])).await;

    // Another tenant's tool and agent are not found.
    let theirs = app
        .request_as(&other_tenant, Method::POST, WORKFLOWS_PATH)
        .json(&workflow_body(&tool));
    assert_eq!(
        send_request(theirs).await.expect(422)["errors"][0]["loc"][3],
        "tool_id"
    );

    let mut foreign = workflow_body(&tool);
    foreign["agent_id"] = json!(other_tenant.agent);
    app.post(WORKFLOWS_PATH, foreign).await.expect(404);
    assert_eq!(
        app.get(WORKFLOWS_PATH).await.expect(200),
        json!({"workflows": []})
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_of_a_workflow_is_deleted_only_by_force() {
    let app = without_workers().await;
    let tool = create_tool(&app).await;
    let made = app
        .post(WORKFLOWS_PATH, workflow_body(&tool))
        .await
        .expect(201);
    let definition = format!("{TOOLS_PATH}/{}", tool.as_str().expect("an id"));
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
    let left = app.get(&workflow_path(&made)).await.expect(200);
    assert_eq!(left["is_active"], false);

    let again = app
        .request(Method::PATCH, &workflow_path(&made))
        .json(&json!({"is_active": true}));
    assert_eq!(
        send_request(again).await.expect(422)["errors"][0]["loc"][3],
        "tool_id"
    );
    app.finish().await;
}
