//! Resources in use: what a running batch or a call needs is changed or deleted only with force.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::app::{
    App, AppOptions, TEST_TIMEOUT, carrier_where_all_answer, end_call_at_carrier, send_request,
};
use crate::harness::eventually;

const TOOLS_PATH: &str = "/api/v1/tool-endpoint-defs";
const SERVERS_PATH: &str = "/api/v1/tools-mcp-server-defs";
const RULES_PATH: &str = "/api/v1/post-analysis/rules";

/// A changing request: method, path and body.
type ChangeRequest = (Method, String, Value);

/// Resources of the tenant's agent.
struct AgentResources {
    agent: String,
    /// Attached to the agent. `called` is used only by a rule of the agent, `spare` is unused.
    tool: Value,
    called: Value,
    spare: Value,
    server: Value,
    rule: Value,
    spare_rule: Value,
}

fn tool_body(name: &str) -> Value {
    json!({"name": name, "description": "does it", "url": "https://shop.test"})
}

fn server_body() -> Value {
    // No server listens there, so the request fails at once.
    json!({"name": "Shop", "server_url": "http://127.0.0.2:1/mcp"})
}

fn summary_rule_body(name: &str) -> Value {
    json!({"name": name, "analysis_type": "summary", "prompt": "Sum up"})
}

fn resource_path(path: &str, id: &Value) -> String {
    format!("{path}/{}", id.as_str().expect("an id"))
}

impl AgentResources {
    async fn create(app: &App) -> Self {
        let post = async |path: &str, body: Value| {
            let made = app.post(path, body).await;
            assert!(made.status.is_success(), "{path}: {}", made.text);
            made.json()
        };
        let agent = format!("/api/v1/agents/{}", app.tenant.agent);
        let (used, called, spare) = (
            post(TOOLS_PATH, tool_body("used")).await,
            post(TOOLS_PATH, tool_body("called")).await,
            post(TOOLS_PATH, tool_body("spare")).await,
        );
        let server = post(SERVERS_PATH, server_body()).await;
        let rule_body =
            json!({"name": "Tell", "analysis_type": "integration", "tool_id": called["id"]});
        let (rule, spare_rule) = (
            post(RULES_PATH, rule_body).await,
            post(RULES_PATH, summary_rule_body("Spare")).await,
        );
        let kit = Self {
            agent,
            tool: used["id"].clone(),
            called: called["id"].clone(),
            spare: spare["id"].clone(),
            server: server["id"].clone(),
            rule: rule["id"].clone(),
            spare_rule: spare_rule["id"].clone(),
        };

        for (method, path, body) in kit.changes().into_iter().take(2) {
            let response = send_request(app.request(method, &path).json(&body)).await;
            response.expect(200);
        }

        kit
    }

    /// Repeatable changes of the agent's resources. The first two attach the tools and the rule.
    fn changes(&self) -> Vec<ChangeRequest> {
        let tools = json!([
            {"tool_id": self.tool, "tool_type": "endpoint"},
            {"tool_id": self.server, "tool_type": "mcp_server"},
        ]);
        let more = json!([{"tool_id": self.spare, "tool_type": "endpoint", "enabled": false}]);
        let analysis = format!("{}/post-analysis", self.agent);
        let agent = self.agent.rsplit('/').next().expect("an id");
        let attach = json!({"agent_id": agent, "rule_id": self.rule, "sort_order": 0});
        let rule = json!({"name": "Tell", "analysis_type": "integration", "tool_id": self.called});

        vec![
            (Method::PATCH, format!("{}/tools", self.agent), tools),
            (
                Method::PUT,
                format!("{analysis}/attached-rules"),
                json!({"rule_ids": [self.rule]}),
            ),
            (Method::POST, format!("{}/tools", self.agent), more),
            (Method::POST, analysis, attach),
            (
                Method::PUT,
                resource_path(TOOLS_PATH, &self.tool),
                tool_body("used"),
            ),
            (
                Method::PUT,
                resource_path(TOOLS_PATH, &self.called),
                tool_body("called"),
            ),
            (
                Method::PUT,
                resource_path(SERVERS_PATH, &self.server),
                server_body(),
            ),
            (
                Method::PUT,
                format!("{}/filter-tools", resource_path(SERVERS_PATH, &self.server)),
                json!({"allowed_tools": null}),
            ),
            (
                Method::POST,
                format!("{SERVERS_PATH}/fetch_mcp_tools"),
                json!({"tool_id": self.server}),
            ),
            (Method::PUT, resource_path(RULES_PATH, &self.rule), rule),
        ]
    }

    /// Removals of resources from the agent; each works once.
    fn removals(&self) -> Vec<ChangeRequest> {
        vec![
            (
                Method::DELETE,
                resource_path(&format!("{}/tools", self.agent), &self.tool),
                Value::Null,
            ),
            (
                Method::DELETE,
                resource_path(RULES_PATH, &self.rule),
                Value::Null,
            ),
        ]
    }

    /// Deletions of resources that must be detached from the agent first.
    fn deletions(&self) -> Vec<ChangeRequest> {
        vec![
            (
                Method::DELETE,
                resource_path(TOOLS_PATH, &self.tool),
                Value::Null,
            ),
            (
                Method::DELETE,
                resource_path(TOOLS_PATH, &self.called),
                Value::Null,
            ),
            (
                Method::DELETE,
                resource_path(SERVERS_PATH, &self.server),
                Value::Null,
            ),
        ]
    }

    /// Changes of unused resources.
    fn unrelated_changes(&self) -> Vec<ChangeRequest> {
        vec![
            (
                Method::PUT,
                resource_path(TOOLS_PATH, &self.spare),
                tool_body("spare"),
            ),
            (
                Method::PUT,
                resource_path(RULES_PATH, &self.spare_rule),
                summary_rule_body("Spare"),
            ),
        ]
    }
}

/// Sends requests that must all have this status, and returns their bodies.
async fn send_all(app: &App, requests: Vec<ChangeRequest>, query: &str, status: u16) -> Vec<Value> {
    let mut bodies = Vec::new();
    for (method, path, body) in requests {
        let mut request = app.request(method.clone(), &format!("{path}{query}"));
        if !body.is_null() {
            request = request.json(&body);
        }
        let response = send_request(request).await;
        assert_eq!(
            response.status.as_u16(),
            status,
            "{method} {path}{query}: {}",
            response.text
        );
        bodies.push(response.json());
    }
    bodies
}

/// Fails unless every refusal names the user of the resource and the way to force the change.
fn assert_in_use(refusals: Vec<Value>, by: &str) {
    for refusal in refusals {
        assert_eq!(refusal["code"], "agent_in_use", "{refusal}");
        let detail = refusal["detail"].as_str().expect("a text");
        assert!(detail.contains(by), "{detail}");
        assert!(detail.contains("force_update=true"), "{detail}");
    }
}

async fn set_batch_status(app: &App, status: &str) {
    sqlx::query("update call_batches set status = $1")
        .bind(status)
        .execute(&app.context.pool)
        .await
        .expect(status);
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_of_a_running_batch_change_only_by_force() {
    let app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;
    let kit = AgentResources::create(&app).await;
    app.create_batch(json!({"batch_name": "March reminders"}))
        .await;
    send_all(&app, kit.changes(), "", 200).await;

    set_batch_status(&app, "in_progress").await;
    let audited = "select count(*) from audit_log";
    let before = app.count(audited).await;
    let refused = send_all(&app, kit.changes(), "", 409).await;
    assert_in_use(
        refused,
        "the running batch \"March reminders\" uses this: pause or stop it first",
    );
    let refused = send_all(&app, kit.removals(), "", 409).await;
    assert_in_use(refused, "\"March reminders\"");
    for refusal in send_all(&app, kit.deletions(), "", 409).await {
        assert_eq!(refusal["code"], "tool_in_use", "{refusal}");
        let detail = refusal["detail"].as_str().expect("a text");
        let by = "; the running batch \"March reminders\" uses this: remove it from them";
        assert!(detail.contains(by), "{detail}");
        let force = "send force=true, which removes it from these agents";
        assert!(detail.contains(force), "{detail}");
    }
    send_all(&app, kit.changes(), "?force_update=false", 409).await;
    assert_eq!(
        app.count(audited).await,
        before,
        "a refused change was audited"
    );
    send_all(&app, kit.unrelated_changes(), "", 200).await;
    send_all(&app, kit.changes(), "?force_update=true", 200).await;

    app.create_batch(json!({"batch_name": "April reminders"}))
        .await;
    set_batch_status(&app, "in_progress").await;
    let refused = send_all(&app, kit.changes(), "", 409).await;
    assert_in_use(
        refused,
        "the running batches \"March reminders\", \"April reminders\" use this",
    );

    // A paused batch does not block changes.
    set_batch_status(&app, "paused").await;
    send_all(&app, kit.changes(), "", 200).await;
    for refusal in send_all(&app, kit.deletions(), "", 409).await {
        let detail = refusal["detail"].as_str().expect("a text");
        assert!(!detail.contains("running"), "{detail}");
    }

    set_batch_status(&app, "stopped").await;
    send_all(&app, kit.changes(), "", 200).await;
    send_all(&app, kit.removals(), "", 200).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_of_a_live_call_cannot_be_changed_until_it_ends() {
    let mut carrier = carrier_where_all_answer();
    // The call lasts until it is ended explicitly.
    carrier.speed = 0.001;
    let mut app = App::start_with(AppOptions {
        workers: 0,
        carrier,
        ..AppOptions::default()
    })
    .await;
    let kit = AgentResources::create(&app).await;
    let call = format!(
        "/api/call/create_call?phoneNumber=%2B12125550123&agent_id={}",
        app.tenant.agent
    );
    app.post(&call, json!({})).await.expect(202);
    // A queued call counts as in use.
    let refused = send_all(&app, kit.changes(), "", 409).await;
    assert_in_use(refused, "calls under way use this: let them end first");

    app.start_worker(&peal_worker::Role::ALL).await;
    let is_live = || async { app.count("select count(*) from calls where live").await == 1 };
    eventually("the call is live", TEST_TIMEOUT, is_live).await;
    let refused = send_all(&app, kit.changes(), "", 409).await;
    assert_in_use(refused, "calls under way use this: let them end first");
    let refused = send_all(&app, kit.removals(), "", 409).await;
    assert_in_use(refused, "calls under way use this");
    send_all(&app, kit.unrelated_changes(), "", 200).await;

    let at_carrier = || async { !app.carrier.creates().is_empty() };
    eventually("it is at the carrier", TEST_TIMEOUT, at_carrier).await;
    let sid = app.carrier.creates()[0].sid.clone().expect("a call");
    end_call_at_carrier(&app, &sid).await;
    app.drain().await;
    send_all(&app, kit.changes(), "", 200).await;
    send_all(&app, kit.removals(), "", 200).await;
    app.finish().await;
}

/// Creates 99 copies of the agent's tool.
async fn make_tools(app: &App) -> Vec<String> {
    sqlx::query(
        "insert into tools (id, org_id, user_id, name, description, url, method, credentials, timeout_seconds,
                            tool_schema, is_active)
         select gen_random_uuid(), org_id, user_id, 'tool_' || n, description, url, method, credentials,
                timeout_seconds, tool_schema, true
         from tools, generate_series(1, 99) n
         where name = 'used'",
    )
    .execute(&app.context.pool)
    .await
    .expect("tools");
    sqlx::query_scalar("select id::text from tools where name like 'tool\\_%' order by name")
        .fetch_all(&app.context.pool)
        .await
        .expect("ids")
}

/// Creates numbered rules and attaches them to the agent, regardless of its limit.
async fn attach_rules(app: &App, from: i32, to: i32) {
    sqlx::query(
        "with made as (
             insert into analysis_rules (id, org_id, user_id, name, analysis_type, prompt, fields, is_active)
             select gen_random_uuid(), org_id, user_id, 'Rule ' || n, analysis_type, prompt, fields, true
             from analysis_rules, generate_series($2::int, $3::int) n
             where name = 'Spare'
             returning id, org_id
         )
         insert into agent_analysis_rules (id, org_id, agent_id, rule_id, sort_order)
         select gen_random_uuid(), org_id, $1, id, 1
         from made",
    )
    .bind(app.tenant.agent)
    .bind(from)
    .bind(to)
    .execute(&app.context.pool)
    .await
    .expect("rules");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_has_a_limited_number_of_tools_and_rules() {
    let app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;
    let kit = AgentResources::create(&app).await;
    let ids = make_tools(&app).await;
    let path = format!("{}/tools", kit.agent);
    let given = |ids: &[String]| {
        let tools = ids.iter();
        let tools: Vec<Value> = tools
            .map(|id| json!({"tool_id": id, "tool_type": "endpoint"}))
            .collect();
        Value::Array(tools)
    };

    let fits = app.post(&path, given(&ids[..98])).await.expect(200);
    assert_eq!(fits.as_array().map(Vec::len), Some(100));
    let refused = app.post(&path, given(&ids[98..])).await.expect(409);
    assert_eq!(refused["code"], "too_many_tools");
    let kept = app.get(&path).await.expect(200);
    assert_eq!(kept.as_array().map(Vec::len), Some(100));

    attach_rules(&app, 1, 49).await;
    let attach = json!({"agent_id": app.tenant.agent, "rule_id": kit.spare_rule});
    let path = format!("{}/post-analysis", kit.agent);
    let refused = app.post(&path, attach).await.expect(409);
    assert_eq!(refused["code"], "too_many_rules");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_attachments_keep_the_limit_and_excess_ones_can_be_changed() {
    let app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;
    let kit = AgentResources::create(&app).await;
    attach_rules(&app, 1, 48).await;
    let other = app
        .post(RULES_PATH, summary_rule_body("Other"))
        .await
        .json()["id"]
        .clone();
    let path = format!("{}/post-analysis", kit.agent);
    let attach = async |rule: &Value| {
        let body = json!({"agent_id": app.tenant.agent, "rule_id": rule, "sort_order": 7});
        app.post(&path, body).await
    };

    let (one, two) = tokio::join!(attach(&kit.spare_rule), attach(&other));
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409], "{} {}", one.text, two.text);

    attach_rules(&app, 49, 50).await;
    let attached = "select count(*) from agent_analysis_rules";
    assert_eq!(app.count(attached).await, 52);
    let moved = attach(&kit.rule).await.expect(200);
    assert_eq!(moved["sort_order"], 7);

    let left_out = match one.status.as_u16() {
        409 => &kit.spare_rule,
        _ => &other,
    };
    assert_eq!(attach(left_out).await.expect(409)["code"], "too_many_rules");

    make_tools(&app).await;
    sqlx::query(
        "insert into agent_tools (id, org_id, agent_id, tool_id, enabled, used, param_defaults, position)
         select gen_random_uuid(), org_id, $1, id, true, 'during_call', '{}', 1
         from tools
         where name like 'tool\\_%'",
    )
    .bind(app.tenant.agent)
    .execute(&app.context.pool)
    .await
    .expect("mapped");

    let path = format!("{}/tools", kit.agent);
    let tool = |id: &Value| json!([{"tool_id": id, "tool_type": "endpoint", "enabled": false}]);
    let changed = app.post(&path, tool(&kit.tool)).await.expect(200);
    assert_eq!(changed.as_array().map(Vec::len), Some(101));
    let refused = app.post(&path, tool(&kit.spare)).await.expect(409);
    assert_eq!(refused["code"], "too_many_tools");
    app.finish().await;
}
