//! Rules of every changing operation, checked with its own example: it leaves one row in the audit
//! log, it happens once under one `Idempotency-Key`, and it rejects unknown fields.

use std::collections::BTreeSet;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::harness::app::App;
use crate::harness::cast::{Player, Who};
use crate::harness::digest::digest;
use crate::harness::document::{Document, Operation};
use crate::harness::knock::{Things, body, request, send};
use crate::sign_in::quiet;

/// POST operations that change nothing.
const ASKING: [&str; 1] = ["POST /api/v1/api-keys/exists"];

/// Operations whose example the state refuses; each has its own test.
const REFUSED: [&str; 14] = [
    // The session belongs to another issuer.
    "POST /api/v1/auth/logout",
    "POST /api/v1/auth/password",
    // The batch has not started, and cannot start.
    "POST /api/v1/batch-call/pause/{batch_id}",
    "POST /api/v1/batch-call/resume/{batch_id}",
    "POST /api/v1/batch-call/start/{batch_id}",
    "POST /api/v1/batch-call/stop/{batch_id}",
    // The agent has no such part yet.
    "PATCH /api/v1/agents/{agent_id}/transcriber-config",
    "PATCH /api/v1/agents/{agent_id}/vad-config",
    // There are several trunks, so one must be named; the number is mapped already.
    "POST /api/v1/phone",
    "POST /api/v1/phone/mapping",
    // Another tool has the example's name; the server is down.
    "PUT /api/v1/tool-endpoint-defs/{tool_id}",
    "PUT /api/v1/tools-mcp-server-defs/{server_id}/filter-tools",
    // The example's carrier cannot be reached; the simulator rejects the example's secret.
    "POST /api/v1/trunks",
    "POST /api/v1/trunks/{trunk_id}/rotate",
];

/// Fields that a caller might try to set.
const HOPED_FOR: [&str; 9] = [
    "id",
    "org_id",
    "organization_id",
    "role",
    "is_super_admin",
    "balance_usd",
    "markup_percentage",
    "created_at",
    "surprise",
];

fn changes(document: &Document) -> Vec<Operation<'_>> {
    let all = document.operations().into_iter();
    let changes: Vec<_> = all
        .filter(|operation| {
            operation.method != Method::GET && operation.told["security"] != json!([{}])
        })
        .collect();
    assert!(changes.len() > 50, "{} operations change", changes.len());
    changes
}

async fn audited(app: &App) -> i64 {
    app.count("select count(*) from audit_log").await
}

/// Actors that together may use every changing operation.
async fn doers(app: &App) -> [Player; 2] {
    let actor = async |kind| Player::new(&app.context, app.carrier.url(), kind, kind.word()).await;
    [actor(Who::OrgAdmin).await, actor(Who::SuperAdmin).await]
}

/// An operation, an actor that may use it, and the ids for its example.
struct Attempt<'a> {
    app: &'a App,
    operation: &'a Operation<'a>,
    player: &'a Player,
    things: Things,
}

impl<'a> Attempt<'a> {
    async fn new(app: &'a App, operation: &'a Operation<'a>, doers: &'a [Player; 2]) -> Self {
        let description = operation.told["description"].as_str().unwrap_or_default();
        let [admin, root] = doers;
        let actor = match description.contains("super_admin") && !description.contains("org_admin")
        {
            true => root,
            false => admin,
        };
        let path_ids = actor.things(&app.context, app).await;
        Self {
            app,
            operation,
            player: actor,
            things: path_ids,
        }
    }

    fn request(&self, body: Option<Value>) -> RequestBuilder {
        request(self.app, self.player, self.operation, &self.things, body)
    }

    fn body(&self) -> Option<Value> {
        body(self.operation, &self.things)
    }
}

/// Sends an operation twice under the same key. Returns broken rules.
async fn twice(attempt: &Attempt<'_>) -> Vec<String> {
    let (name, mut wrong) = (attempt.operation.name(), Vec::new());
    let headers = attempt.operation.parameters("header");
    let takes_key = headers
        .iter()
        .any(|parameter| parameter["name"] == "Idempotency-Key");

    let once = || {
        let mut body = attempt.body();
        if let Some(fields) = body.as_mut().and_then(Value::as_object_mut) {
            // The key is sent in the header, even where the body has a field for it.
            fields.remove("idempotency_key");
        }
        let request = attempt.request(body);
        match takes_key {
            true => request.header("Idempotency-Key", &name),
            false => request,
        }
    };

    // 1. The first request leaves one row in the audit log.
    let expected = i64::from(!ASKING.contains(&name.as_str()));
    let before = audited(attempt.app).await;
    let (status, _, text) = send(once(), attempt.operation, attempt.player).await;
    let rows = audited(attempt.app).await - before;

    if !status.is_success() {
        if !REFUSED.contains(&name.as_str()) {
            wrong.push(format!("its example is refused: {status} {text}"));
        }
        if rows != 0 {
            wrong.push(format!("refused, it left {rows} rows in the audit log"));
        }
        return wrong;
    }

    if rows != expected {
        wrong.push(format!("it left {rows} rows in the audit log: {text}"));
    }

    // 2. The second request is replayed.
    if takes_key && expected == 1 {
        let (again, headers, replay) = send(once(), attempt.operation, attempt.player).await;
        let replayed = headers.get("idempotent-replayed");
        if again != status || replayed.is_none_or(|replayed| replayed != "true") {
            wrong.push(format!("sent again, it was not replayed: {again} {replay}"));
        }
        if audited(attempt.app).await - before != rows {
            wrong.push("sent again, it happened again".to_owned());
        }
    }
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_written_down_once_and_happens_once_under_its_key() {
    let app = quiet().await;
    let doers = doers(&app).await;
    let document = Document::of_this_build();
    let mut wrong = Vec::new();
    for operation in changes(&document) {
        let attempt = Attempt::new(&app, &operation, &doers).await;
        let complaints = twice(&attempt).await.into_iter();
        wrong.extend(complaints.map(|complaint| format!("{}: {complaint}", operation.name())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    app.drop_jobs().await;
    app.finish().await;
}

/// The names of the fields that a body may have, in any of its forms.
fn fields<'a>(document: &'a Document, schema: &'a Value, found: &mut BTreeSet<&'a str>) {
    let schema = document.resolve(schema);
    let own = schema["properties"].as_object();
    found.extend(own.into_iter().flatten().map(|(name, _)| name.as_str()));
    for forms in ["oneOf", "anyOf", "allOf"] {
        for form in schema[forms].as_array().into_iter().flatten() {
            fields(document, form, found);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_change_takes_a_field_that_it_does_not_name() {
    let app = quiet().await;
    let doers = doers(&app).await;
    let document = Document::of_this_build();
    let mut wrong = Vec::new();

    for operation in changes(&document) {
        let Some(("application/json", content)) = operation.body() else {
            continue;
        };
        let attempt = Attempt::new(&app, &operation, &doers).await;
        let Some(Value::Object(example)) = attempt.body() else {
            continue;
        };

        let mut known = BTreeSet::new();
        fields(&document, &content["schema"], &mut known);

        let org = attempt.player.tenant.org.to_string();
        let before = digest(&app.context.pool, &org).await;

        for hoped in HOPED_FOR.iter().filter(|name| !known.contains(*name)) {
            let mut body = example.clone();
            body.insert((*hoped).to_owned(), json!("super_admin"));
            let request = attempt.request(Some(Value::Object(body)));
            let (status, _, text) = send(request, &operation, attempt.player).await;
            if status != 422 {
                let name = operation.name();
                wrong.push(format!("{name} with {hoped}: {status} {text}"));
            }
        }

        let after = digest(&app.context.pool, &org).await;
        if before != after {
            wrong.push(format!("{} changed something", operation.name()));
        }
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    app.drop_jobs().await;
    app.finish().await;
}
