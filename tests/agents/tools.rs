//! Tools and post-call analysis rules of agents.

use peal_shared::access::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::app::{App, AppOptions, send_request};
use crate::harness::members::{create_member, send_as};

const TOOLS: &str = "/api/v1/tool-endpoint-defs";
const RULES: &str = "/api/v1/post-analysis/rules";

async fn without_workers() -> App {
    App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await
}

async fn create_tool(app: &App, name: &str) -> Value {
    let body = json!({"name": name, "description": "does it", "url": "https://shop.test"});
    app.post(TOOLS, body).await.expect(201)["id"].clone()
}

async fn create_mcp_server(app: &App) -> Value {
    let body = json!({"name": "Shop", "server_url": "http://nowhere.invalid"});
    let made = app.post("/api/v1/tools-mcp-server-defs", body).await;
    made.expect(201)["id"].clone()
}

fn agent_path(app: &App, rest: &str) -> String {
    format!("/api/v1/agents/{}/{rest}", app.tenant.agent)
}

fn field_values(list: &Value, field: &str) -> Vec<Value> {
    let items = list.as_array().expect("a list");
    items.iter().map(|item| item[field].clone()).collect()
}

async fn execute(app: &App, sql: &'static str) {
    sqlx::query(sql)
        .execute(&app.context.pool)
        .await
        .expect(sql);
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_are_added_to_an_agent_replaced_and_removed() {
    let app = without_workers().await;
    let (find, cancel, shop) = (
        create_tool(&app, "find").await,
        create_tool(&app, "cancel").await,
        create_mcp_server(&app).await,
    );

    let path = agent_path(&app, "tools");
    assert_eq!(app.get(&path).await.expect(200), json!([]));

    let given = app
        .post(
            &path,
            json!([
                {"tool_id": find, "tool_type": "endpoint", "param_defaults": {"shop": "north"}},
                {"tool_id": shop, "tool_type": "mcp_server", "when": "post_call", "allowed_tools": ["a"]},
            ]),
        )
        .await
        .expect(200);
    assert_eq!(
        field_values(&given, "tool_id"),
        [find.clone(), shop.clone()]
    );
    assert_eq!(
        field_values(&given, "tool_type"),
        ["endpoint", "mcp_server"]
    );
    assert_eq!(field_values(&given, "name"), ["find", "Shop"]);
    assert_eq!(field_values(&given, "when"), ["during_call", "post_call"]);
    assert_eq!(given[0]["param_defaults"], json!({"shop": "north"}));

    // Posting the same tool again changes its mapping and adds none.
    let again = json!([{"tool_id": find, "tool_type": "endpoint", "enabled": false}]);
    let again = app.post(&path, again).await.expect(200);
    assert_eq!(again.as_array().map(Vec::len), Some(2));
    assert_eq!(
        (&again[0]["enabled"], &again[0]["id"]),
        (&json!(false), &given[0]["id"])
    );

    let set = json!([
        {"tool_id": cancel, "tool_type": "endpoint"},
        {"tool_id": find, "tool_type": "endpoint"},
    ]);
    let set = send_request(app.request(Method::PATCH, &path).json(&set))
        .await
        .expect(200);
    assert_eq!(
        field_values(&set, "tool_id"),
        [cancel.clone(), find.clone()]
    );
    assert_eq!(
        set[1]["id"], given[0]["id"],
        "a mapping that stays keeps its id"
    );

    let one = format!("{path}/{}", find.as_str().expect("an id"));
    send_request(app.request(Method::DELETE, &one))
        .await
        .expect(200);
    send_request(app.request(Method::DELETE, &one))
        .await
        .expect(404);
    let none = send_request(app.request(Method::PATCH, &path).json(&json!([]))).await;
    assert_eq!(none.expect(200), json!([]));

    let log = "select count(*) from audit_log where action like 'agent.%'";
    assert_eq!(app.count(log).await, 5);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_list_of_tools_changes_nothing() {
    let app = without_workers().await;
    let path = agent_path(&app, "tools");
    let find = create_tool(&app, "find").await;
    app.post(&path, json!([{"tool_id": find, "tool_type": "endpoint"}]))
        .await
        .expect(200);

    let stranger = app.create_tenant("Other").await;
    let theirs = app.request_as(&stranger, Method::POST, TOOLS);
    let body = json!({"name": "theirs", "description": "b", "url": "https://shop.test"});
    let theirs = send_request(theirs.json(&body)).await.expect(201)["id"].clone();

    for (body, status) in [
        (
            json!([{"tool_id": find, "tool_type": "endpoint"}, {"tool_id": theirs, "tool_type": "endpoint"}]),
            404,
        ),
        (json!([{"tool_id": find, "tool_type": "mcp_server"}]), 404),
        (
            json!([{"tool_id": find, "tool_type": "endpoint"}, {"tool_id": find, "tool_type": "endpoint"}]),
            422,
        ),
        (
            json!([{"tool_id": find, "tool_type": "endpoint", "allowed_tools": ["a"]}]),
            422,
        ),
        (json!([{"tool_id": find, "tool_type": "function"}]), 422),
        (json!({"tool_id": find}), 422),
    ] {
        for method in [Method::POST, Method::PATCH] {
            send_request(app.request(method, &path).json(&body))
                .await
                .expect(status);
        }
    }

    assert_eq!(
        field_values(&app.get(&path).await.expect(200), "tool_id"),
        [find]
    );

    for method in [Method::GET, Method::PATCH, Method::POST] {
        let request = app.request_as(&stranger, method, &path).json(&json!([]));
        send_request(request).await.expect(404);
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_and_rules_of_a_deleted_agent_can_be_deleted() {
    let app = without_workers().await;
    let find = create_tool(&app, "find").await;
    let given = json!([{"tool_id": find, "tool_type": "endpoint"}]);
    app.post(&agent_path(&app, "tools"), given)
        .await
        .expect(200);

    let rule = app.post(RULES, intent_rule()).await.expect(200);
    let attached = send_request(
        app.request(
            Method::PUT,
            &agent_path(&app, "post-analysis/attached-rules"),
        )
        .json(&json!({"rule_ids": [rule["id"]]})),
    )
    .await;
    attached.expect(200);

    let agent = format!("/api/v1/agents/{}?force_delete=true", app.tenant.agent);
    send_request(app.request(Method::DELETE, &agent))
        .await
        .expect(200);

    for path in [
        format!("{TOOLS}/{}", find.as_str().expect("an id")),
        format!("{RULES}/{}", rule["id"].as_str().expect("an id")),
    ] {
        send_request(app.request(Method::DELETE, &path))
            .await
            .expect(200);
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_in_use_are_removed_only_with_force() {
    let app = without_workers().await;
    let (find, shop) = (
        create_tool(&app, "find").await,
        create_mcp_server(&app).await,
    );
    let path = agent_path(&app, "tools");
    let both = json!([
        {"tool_id": find, "tool_type": "endpoint"}, {"tool_id": shop, "tool_type": "mcp_server"},
    ]);
    app.post(&path, both).await.expect(200);
    let rule = json!({"name": "Tell", "analysis_type": "integration", "tool_id": find});
    let rule = app.post(RULES, rule).await.expect(200);

    let definition = format!("{TOOLS}/{}", find.as_str().expect("an id"));
    let refused = send_request(app.request(Method::DELETE, &definition))
        .await
        .expect(409);
    assert_eq!(refused["code"], "tool_in_use");
    assert!(
        refused["detail"]
            .as_str()
            .expect("text")
            .starts_with("1 agent(s), 1 analysis rule(s) and 0 workflow(s)")
    );

    app.create_batch(json!({})).await;
    execute(&app, "update call_batches set status = 'in_progress'").await;
    let none = json!([]);
    let busy = send_request(app.request(Method::PATCH, &path).json(&none))
        .await
        .expect(409);
    assert_eq!(busy["code"], "agent_in_use");
    let one = format!("{path}/{}", shop.as_str().expect("an id"));
    send_request(app.request(Method::DELETE, &one))
        .await
        .expect(409);
    assert_eq!(
        app.get(&path).await.expect(200).as_array().map(Vec::len),
        Some(2)
    );
    let forced = format!("{one}?force_update=true");
    send_request(app.request(Method::DELETE, &forced))
        .await
        .expect(200);
    execute(&app, "update call_batches set status = 'not_started'").await;

    let forced = format!("{definition}?force=true");
    send_request(app.request(Method::DELETE, &forced))
        .await
        .expect(200);
    assert_eq!(app.get(&path).await.expect(200), json!([]));
    let left = app
        .get(&format!("{RULES}/{}", rule["id"].as_str().expect("an id")))
        .await;
    let left = left.expect(200);
    assert_eq!(
        (&left["tool_id"], &left["is_active"]),
        (&Value::Null, &json!(false))
    );
    app.finish().await;
}

/// A rule that extracts the intent of the person called.
fn intent_rule() -> Value {
    json!({
        "name": "Intent", "analysis_type": "structured_output", "prompt": "What do they want?",
        "fields": [{"name": "intent", "type": "enum", "description": "", "enum_values": ["buy", "complain"]}],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_is_created_changed_copied_and_deleted() {
    let app = without_workers().await;
    let body = intent_rule();
    let rule = app.post(RULES, body.clone()).await.expect(200);
    let path = format!("{RULES}/{}", rule["id"].as_str().expect("an id"));
    assert_eq!(app.get(&path).await.expect(200), rule);
    assert_eq!(app.get(RULES).await.expect(200), json!([rule]));

    let mut change = body.clone();
    change["name"] = json!("Wish");
    change["is_active"] = json!(false);
    let changed = send_request(app.request(Method::PUT, &path).json(&change))
        .await
        .expect(200);
    assert_eq!(
        (&changed["name"], &changed["is_active"]),
        (&json!("Wish"), &json!(false))
    );

    let copy = app
        .post(&format!("{path}/duplicate"), json!({}))
        .await
        .expect(200);
    assert_eq!(
        (&copy["name"], &copy["fields"]),
        (&json!("Wish (copy)"), &rule["fields"])
    );
    assert_ne!(copy["id"], rule["id"]);

    let stranger = app.create_tenant("Other").await;
    for (method, path) in [
        (Method::GET, path.clone()),
        (Method::DELETE, path.clone()),
        (Method::POST, format!("{path}/duplicate")),
    ] {
        send_request(app.request_as(&stranger, method, &path))
            .await
            .expect(404);
    }
    let theirs = app.request_as(&stranger, Method::PUT, &path).json(&body);
    send_request(theirs).await.expect(404);
    send_request(app.request(Method::DELETE, &path))
        .await
        .expect(200);
    app.get(&path).await.expect(404);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_field_of_a_rule_is_named() {
    let app = without_workers().await;
    let body = intent_rule();

    for (change, at) in [
        (json!({"name": " "}), "name"),
        (json!({"prompt": null}), "prompt"),
        (json!({"fields": []}), "fields"),
        (json!({"analysis_type": "summary"}), "fields"),
        (json!({"tool_id": uuid::Uuid::nil()}), "tool_id"),
        (json!({"fields": [{"name": "a", "type": "enum"}]}), "fields"),
        (
            json!({"fields": [{"name": "a b", "type": "string"}]}),
            "fields",
        ),
        (
            json!({"fields": [{"name": "a", "type": "string", "enum_values": ["x"]}]}),
            "fields",
        ),
        (
            json!({"webhook_url": "https://169.254.169.254/"}),
            "webhook_url",
        ),
        (json!({"user_id": "me"}), "user_id"),
    ] {
        let mut odd = body.clone();
        for (key, value) in change.as_object().expect("an object") {
            odd[key] = value.clone();
        }
        let refused = app.post(RULES, odd).await.expect(422);
        assert_eq!(refused["errors"][0]["loc"][1], at, "{refused}");
    }

    let foreign =
        json!({"name": "a", "analysis_type": "integration", "tool_id": uuid::Uuid::nil()});
    app.post(RULES, foreign).await.expect(404);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_attached_to_an_agent_keep_their_order() {
    let app = without_workers().await;
    let mut rules = Vec::new();
    for name in ["a", "b", "c"] {
        let body = json!({"name": name, "analysis_type": "summary", "prompt": "Sum up"});
        rules.push(app.post(RULES, body).await.expect(200)["id"].clone());
    }

    let (attach, attached) = (
        agent_path(&app, "post-analysis"),
        agent_path(&app, "post-analysis/attached-rules"),
    );
    let id_list = agent_path(&app, "post-analysis/attached-rule-ids");
    let put = |ids: Value| {
        send_request(
            app.request(Method::PUT, &attached)
                .json(&json!({"rule_ids": ids})),
        )
    };
    let count = async || {
        app.get(&attached)
            .await
            .expect(200)
            .as_array()
            .map(Vec::len)
    };

    let set = put(json!([rules[2], rules[0]])).await.expect(200);
    assert_eq!(field_values(&set, "name"), ["c", "a"]);

    let row = json!({"agent_id": app.tenant.agent, "rule_id": rules[1]});
    let row = app.post(&attach, row).await.expect(200);
    assert_eq!(row["sort_order"], 2);
    assert_eq!(
        app.get(&id_list).await.expect(200),
        json!([rules[2], rules[0], rules[1]])
    );

    let first = json!({"agent_id": app.tenant.agent, "rule_id": rules[1], "sort_order": 0});
    assert_eq!(app.post(&attach, first).await.expect(200)["id"], row["id"]);
    assert_eq!(
        app.get(&attach).await.expect(200).as_array().map(Vec::len),
        Some(3)
    );

    let other = json!({"agent_id": uuid::Uuid::nil(), "rule_id": rules[1]});
    assert_eq!(
        app.post(&attach, other).await.expect(400)["code"],
        "agents_differ"
    );
    put(json!([rules[0], uuid::Uuid::nil()])).await.expect(404);
    put(json!([rules[0], rules[0]])).await.expect(422);

    let stranger = app.create_tenant("Other").await;
    let theirs = app.request_as(&stranger, Method::PUT, &attached);
    send_request(theirs.json(&json!({"rule_ids": []})))
        .await
        .expect(404);
    for path in [&attach, &attached, &id_list] {
        send_request(app.request_as(&stranger, Method::GET, path))
            .await
            .expect(404);
    }

    assert_eq!(count().await, Some(3));
    let gone = format!("{RULES}/{}", rules[2].as_str().expect("an id"));
    send_request(app.request(Method::DELETE, &gone))
        .await
        .expect(200);
    assert_eq!(count().await, Some(2));
    assert_eq!(put(json!([])).await.expect(200), json!([]));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_agent_has_the_tools_and_rules_that_its_owner_may_see() {
    let app = without_workers().await;
    let (find, cancel, shop) = (
        create_tool(&app, "find").await,
        create_tool(&app, "cancel").await,
        create_mcp_server(&app).await,
    );

    let colleague = create_member(&app, "colleague@example.com", Role::User).await;
    let body = json!({"name": "theirs", "description": "does it", "url": "https://shop.test"});
    let theirs = send_as(&app, &colleague, Method::POST, TOOLS, body).await;
    let theirs = theirs.expect(201)["id"].clone();

    let given = json!([
        {"tool_id": find, "tool_type": "endpoint", "order": 2, "param_defaults": {"shop": "north"}},
        {"tool_id": theirs, "tool_type": "endpoint", "order": 1},
        {"tool_id": shop, "tool_type": "mcp_server", "order": 1, "allowed_tools": ["a"], "when": "post_call"},
        {"tool_id": cancel, "tool_type": "endpoint", "order": 0, "enabled": false},
    ]);
    let given = app
        .post(&agent_path(&app, "tools"), given)
        .await
        .expect(200);

    let mut rules = Vec::new();
    for name in ["a", "b"] {
        let body = json!({"name": name, "analysis_type": "summary", "prompt": "Sum up"});
        rules.push(app.post(RULES, body).await.expect(200)["id"].clone());
    }
    let body = json!({"name": "c", "analysis_type": "summary", "prompt": "Sum up"});
    let rule = send_as(&app, &colleague, Method::POST, RULES, body).await;
    rules.push(rule.expect(200)["id"].clone());
    rules.reverse();

    let attached = app.request(
        Method::PUT,
        &agent_path(&app, "post-analysis/attached-rules"),
    );
    let attached = send_request(attached.json(&json!({ "rule_ids": rules }))).await;
    attached.expect(200);

    let copied = async || {
        let copy = agent_path(&app, "clone");
        let copy = send_as(&app, &app.tenant, Method::POST, &copy, Value::Null).await;
        let copy = copy.expect(201)["agent"]["id"].clone();
        let base = format!("/api/v1/agents/{}", copy.as_str().expect("an id"));
        let tools = app.get(&format!("{base}/tools")).await.expect(200);
        let rules = format!("{base}/post-analysis/attached-rule-ids");
        (tools, app.get(&rules).await.expect(200))
    };

    let (tools, copied_rules) = copied().await;
    assert_eq!(copied_rules, json!(rules));

    let without_ids = |list: &Value| {
        let mut list = list.as_array().expect("a list").clone();
        for tool in &mut list {
            let fields = tool.as_object_mut().expect("an object");
            fields.retain(|name, _| name != "id" && name != "agent_id");
        }
        list
    };
    assert_eq!(without_ids(&tools), without_ids(&given));
    assert_ne!(field_values(&tools, "id"), field_values(&given, "id"));

    // After the demotion the owner sees only their own tools and rules.
    execute(
        &app,
        "update users set role = 'user' where email = 'acme@example.com'",
    )
    .await;
    let (tools, copied_rules) = copied().await;
    assert_eq!(field_values(&tools, "tool_id"), [cancel, shop, find]);
    assert_eq!(copied_rules, json!(rules[1..]));
    app.finish().await;
}
