//! Nothing that a running batch or a call works with changes under it unless somebody insists.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::app::{
    App, AppOptions, TEST_TIMEOUT, carrier_where_all_answer, end_call_at_carrier, send_request,
};
use crate::harness::eventually;

const TOOLS: &str = "/api/v1/tool-endpoint-defs";
const SERVERS: &str = "/api/v1/tools-mcp-server-defs";
const RULES: &str = "/api/v1/post-analysis/rules";

/// A request that changes something.
type Ask = (Method, String, Value);

/// What the tenant's agent works with.
struct Kit {
    agent: String,
    /// The agent has it; `called` is called by a rule of the agent alone, `spare` by nobody.
    tool: Value,
    called: Value,
    spare: Value,
    server: Value,
    rule: Value,
    spare_rule: Value,
}

fn tool(name: &str) -> Value {
    json!({"name": name, "description": "does it", "url": "https://shop.test"})
}

fn server() -> Value {
    // Nobody listens there, so it is not waited for.
    json!({"name": "Shop", "server_url": "http://127.0.0.2:1/mcp"})
}

fn summary(name: &str) -> Value {
    json!({"name": name, "analysis_type": "summary", "prompt": "Sum up"})
}

fn at(path: &str, id: &Value) -> String {
    format!("{path}/{}", id.as_str().expect("an id"))
}

impl Kit {
    async fn of(app: &App) -> Self {
        let post = async |path: &str, body: Value| {
            let made = app.post(path, body).await;
            assert!(made.status.is_success(), "{path}: {}", made.text);
            made.json()
        };
        let agent = format!("/api/v1/agents/{}", app.tenant.agent);
        let (used, called, spare) = (
            post(TOOLS, tool("used")).await,
            post(TOOLS, tool("called")).await,
            post(TOOLS, tool("spare")).await,
        );
        let server = post(SERVERS, server()).await;
        let tell = json!({"name": "Tell", "analysis_type": "integration", "tool_id": called["id"]});
        let (rule, spare_rule) = (post(RULES, tell).await, post(RULES, summary("Spare")).await);
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
            let given = send_request(app.request(method, &path).json(&body)).await;
            given.expect(200);
        }
        kit
    }

    /// Every change of what the agent works with, each of which can be made again. The first two
    /// give the agent its tools and its rule.
    fn changes(&self) -> Vec<Ask> {
        let tools = json!([
            {"tool_id": self.tool, "tool_type": "endpoint"},
            {"tool_id": self.server, "tool_type": "mcp_server"},
        ]);
        let more = json!([{"tool_id": self.spare, "tool_type": "endpoint", "enabled": false}]);
        let analysis = format!("{}/post-analysis", self.agent);
        let agent = self.agent.rsplit('/').next().expect("an id");
        let attach = json!({"agent_id": agent, "rule_id": self.rule, "sort_order": 0});
        let tell = json!({"name": "Tell", "analysis_type": "integration", "tool_id": self.called});
        vec![
            (Method::PATCH, format!("{}/tools", self.agent), tools),
            (
                Method::PUT,
                format!("{analysis}/attached-rules"),
                json!({"rule_ids": [self.rule]}),
            ),
            (Method::POST, format!("{}/tools", self.agent), more),
            (Method::POST, analysis, attach),
            (Method::PUT, at(TOOLS, &self.tool), tool("used")),
            (Method::PUT, at(TOOLS, &self.called), tool("called")),
            (Method::PUT, at(SERVERS, &self.server), server()),
            (
                Method::PUT,
                format!("{}/filter-tools", at(SERVERS, &self.server)),
                json!({"allowed_tools": null}),
            ),
            (
                Method::POST,
                format!("{SERVERS}/fetch_mcp_tools"),
                json!({"tool_id": self.server}),
            ),
            (Method::PUT, at(RULES, &self.rule), tell),
        ]
    }

    /// What takes something away, each once.
    fn losses(&self) -> Vec<Ask> {
        vec![
            (
                Method::DELETE,
                at(&format!("{}/tools", self.agent), &self.tool),
                Value::Null,
            ),
            (Method::DELETE, at(RULES, &self.rule), Value::Null),
        ]
    }

    /// Deletions of what the agent has, which it must let go of first.
    fn deletions(&self) -> Vec<Ask> {
        vec![
            (Method::DELETE, at(TOOLS, &self.tool), Value::Null),
            (Method::DELETE, at(TOOLS, &self.called), Value::Null),
            (Method::DELETE, at(SERVERS, &self.server), Value::Null),
        ]
    }

    /// Changes of what the agent does not work with.
    fn elsewhere(&self) -> Vec<Ask> {
        vec![
            (Method::PUT, at(TOOLS, &self.spare), tool("spare")),
            (Method::PUT, at(RULES, &self.spare_rule), summary("Spare")),
        ]
    }
}

/// Makes requests, all of which are answered so.
async fn all(app: &App, asks: Vec<Ask>, query: &str, status: u16) -> Vec<Value> {
    let mut told = Vec::new();
    for (method, path, body) in asks {
        let mut request = app.request(method.clone(), &format!("{path}{query}"));
        if !body.is_null() {
            request = request.json(&body);
        }
        let answered = send_request(request).await;
        assert_eq!(
            answered.status.as_u16(),
            status,
            "{method} {path}{query}: {}",
            answered.text
        );
        told.push(answered.json());
    }
    told
}

/// Fails unless every refusal says what is used, by whom, and what to do.
fn say(refusals: Vec<Value>, by: &str) {
    for refusal in refusals {
        assert_eq!(refusal["code"], "agent_in_use", "{refusal}");
        let detail = refusal["detail"].as_str().expect("a text");
        assert!(detail.contains(by), "{detail}");
        assert!(detail.contains("force_update=true"), "{detail}");
    }
}

async fn set(app: &App, status: &str) {
    sqlx::query("update call_batches set status = $1")
        .bind(status)
        .execute(&app.context.pool)
        .await
        .expect(status);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_changes_under_a_running_batch_unless_somebody_insists() {
    let app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;
    let kit = Kit::of(&app).await;
    app.create_batch(json!({"batch_name": "March reminders"}))
        .await;
    all(&app, kit.changes(), "", 200).await;

    set(&app, "in_progress").await;
    let audited = "select count(*) from audit_log";
    let before = app.count(audited).await;
    let refused = all(&app, kit.changes(), "", 409).await;
    say(
        refused,
        "the running batch \"March reminders\" uses this: pause or stop it first",
    );
    let refused = all(&app, kit.losses(), "", 409).await;
    say(refused, "\"March reminders\"");
    for refusal in all(&app, kit.deletions(), "", 409).await {
        assert_eq!(refusal["code"], "tool_in_use", "{refusal}");
        let detail = refusal["detail"].as_str().expect("a text");
        let by = "; the running batch \"March reminders\" uses this: remove it from them";
        assert!(detail.contains(by), "{detail}");
        let force = "send force=true, which removes it from these agents";
        assert!(detail.contains(force), "{detail}");
    }
    all(&app, kit.changes(), "?force_update=false", 409).await;
    assert_eq!(app.count(audited).await, before, "nothing has happened");
    all(&app, kit.elsewhere(), "", 200).await;
    all(&app, kit.changes(), "?force_update=true", 200).await;

    app.create_batch(json!({"batch_name": "April reminders"}))
        .await;
    set(&app, "in_progress").await;
    let refused = all(&app, kit.changes(), "", 409).await;
    say(
        refused,
        "the running batches \"March reminders\", \"April reminders\" use this",
    );

    // What is paused goes on with what it finds.
    set(&app, "paused").await;
    all(&app, kit.changes(), "", 200).await;
    for refusal in all(&app, kit.deletions(), "", 409).await {
        let detail = refusal["detail"].as_str().expect("a text");
        assert!(!detail.contains("running"), "{detail}");
    }
    set(&app, "stopped").await;
    all(&app, kit.changes(), "", 200).await;
    all(&app, kit.losses(), "", 200).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_changes_under_a_call_and_everything_when_it_is_over() {
    let mut carrier = carrier_where_all_answer();
    // It goes on until it is told to end.
    carrier.speed = 0.001;
    let mut app = App::start_with(AppOptions {
        workers: 0,
        carrier,
        ..AppOptions::default()
    })
    .await;
    let kit = Kit::of(&app).await;
    let call = format!(
        "/api/call/create_call?phoneNumber=%2B12125550123&agent_id={}",
        app.tenant.agent
    );
    app.post(&call, json!({})).await.expect(202);
    // It waits for its turn, and was promised.
    let refused = all(&app, kit.changes(), "", 409).await;
    say(refused, "calls under way use this: let them end first");

    app.start_worker(&peal_worker::Role::ALL).await;
    let is_live = || async { app.count("select count(*) from calls where live").await == 1 };
    eventually("the call is live", TEST_TIMEOUT, is_live).await;
    let refused = all(&app, kit.changes(), "", 409).await;
    say(refused, "calls under way use this: let them end first");
    let refused = all(&app, kit.losses(), "", 409).await;
    say(refused, "calls under way use this");
    all(&app, kit.elsewhere(), "", 200).await;

    let there = || async { !app.carrier.creates().is_empty() };
    eventually("it is at the carrier", TEST_TIMEOUT, there).await;
    let sid = app.carrier.creates()[0].sid.clone().expect("a call");
    end_call_at_carrier(&app, &sid).await;
    app.drain().await;
    all(&app, kit.changes(), "", 200).await;
    all(&app, kit.losses(), "", 200).await;
    app.finish().await;
}

/// Makes 99 tools like the agent's own.
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

/// Makes rules with these numbers, which the agent has, whatever its limit is.
async fn give_rules(app: &App, from: i32, to: i32) {
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
async fn an_agent_has_no_more_tools_and_rules_than_are_listed() {
    let app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;
    let kit = Kit::of(&app).await;
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

    give_rules(&app, 1, 49).await;
    let attach = json!({"agent_id": app.tenant.agent, "rule_id": kit.spare_rule});
    let path = format!("{}/post-analysis", kit.agent);
    let refused = app.post(&path, attach).await.expect(409);
    assert_eq!(refused["code"], "too_many_rules");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_do_not_pass_the_limit_and_what_is_beyond_it_can_be_changed() {
    let app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;
    let kit = Kit::of(&app).await;
    give_rules(&app, 1, 48).await;
    let other = app.post(RULES, summary("Other")).await.json()["id"].clone();
    let path = format!("{}/post-analysis", kit.agent);
    let attach = async |rule: &Value| {
        let body = json!({"agent_id": app.tenant.agent, "rule_id": rule, "sort_order": 7});
        app.post(&path, body).await
    };
    let (one, two) = tokio::join!(attach(&kit.spare_rule), attach(&other));
    let mut told = [one.status.as_u16(), two.status.as_u16()];
    told.sort_unstable();
    assert_eq!(told, [200, 409], "{} {}", one.text, two.text);

    give_rules(&app, 49, 50).await;
    let had = "select count(*) from agent_analysis_rules";
    assert_eq!(app.count(had).await, 52);
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
