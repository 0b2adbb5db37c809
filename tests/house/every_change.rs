//! Rules of every changing operation, checked with its own example: it leaves one row in the audit
//! log, it happens once under one `Idempotency-Key`, and it rejects unknown fields.

use std::collections::BTreeSet;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::auth::login::without_workers;
use crate::harness::actors::{Actor, ActorKind};
use crate::harness::app::App;
use crate::harness::digest::digest_org;
use crate::harness::document::{Document, Operation};
use crate::harness::example_request::{PathIds, example_body, example_request, send_checked};

/// POST operations that change nothing.
const READ_ONLY_POSTS: [&str; 1] = ["POST /api/v1/api-keys/exists"];

/// Operations whose example the state refuses; each has its own test.
const REFUSED_EXAMPLES: [&str; 14] = [
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
const FORBIDDEN_FIELDS: [&str; 9] = [
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

fn changing_operations(document: &Document) -> Vec<Operation<'_>> {
    let all = document.operations().into_iter();
    let changes: Vec<_> = all
        .filter(|operation| {
            operation.method != Method::GET && operation.spec["security"] != json!([{}])
        })
        .collect();
    assert!(changes.len() > 50, "{} operations change", changes.len());
    changes
}

async fn count_audit_rows(app: &App) -> i64 {
    app.count("select count(*) from audit_log").await
}

/// Actors that together may use every changing operation.
async fn create_actors(app: &App) -> [Actor; 2] {
    let actor = async |kind| Actor::new(&app.context, app.carrier.url(), kind, kind.name()).await;
    [
        actor(ActorKind::OrgAdmin).await,
        actor(ActorKind::SuperAdmin).await,
    ]
}

/// An operation, an actor that may use it, and the ids for its example.
struct OperationAttempt<'a> {
    app: &'a App,
    operation: &'a Operation<'a>,
    actor: &'a Actor,
    path_ids: PathIds,
}

impl<'a> OperationAttempt<'a> {
    async fn new(app: &'a App, operation: &'a Operation<'a>, doers: &'a [Actor; 2]) -> Self {
        let description = operation.spec["description"].as_str().unwrap_or_default();
        let [admin, root] = doers;
        let actor = match description.contains("super_admin") && !description.contains("org_admin")
        {
            true => root,
            false => admin,
        };
        let path_ids = actor.path_ids(&app.context, app).await;
        Self {
            app,
            operation,
            actor,
            path_ids,
        }
    }

    fn request(&self, body: Option<Value>) -> RequestBuilder {
        example_request(self.app, self.actor, self.operation, &self.path_ids, body)
    }

    fn body(&self) -> Option<Value> {
        example_body(self.operation, &self.path_ids)
    }
}

/// Sends an operation twice under the same key. Returns broken rules.
async fn broken_rules(attempt: &OperationAttempt<'_>) -> Vec<String> {
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
    let expected = i64::from(!READ_ONLY_POSTS.contains(&name.as_str()));
    let before = count_audit_rows(attempt.app).await;
    let (status, _, text) = send_checked(once(), attempt.operation, attempt.actor).await;
    let rows = count_audit_rows(attempt.app).await - before;

    if !status.is_success() {
        if !REFUSED_EXAMPLES.contains(&name.as_str()) {
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
        let (again, headers, replay) = send_checked(once(), attempt.operation, attempt.actor).await;
        let replayed = headers.get("idempotent-replayed");
        if again != status || replayed.is_none_or(|replayed| replayed != "true") {
            wrong.push(format!("sent again, it was not replayed: {again} {replay}"));
        }
        if count_audit_rows(attempt.app).await - before != rows {
            wrong.push("sent again, it happened again".to_owned());
        }
    }
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_audited_once_and_happens_once_under_its_key() {
    let app = without_workers().await;
    let doers = create_actors(&app).await;
    let document = Document::current();
    let mut wrong = Vec::new();
    for operation in changing_operations(&document) {
        let attempt = OperationAttempt::new(&app, &operation, &doers).await;
        let complaints = broken_rules(&attempt).await.into_iter();
        wrong.extend(complaints.map(|complaint| format!("{}: {complaint}", operation.name())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    app.drop_jobs().await;
    app.finish().await;
}

/// The names of the fields that a body may have, in any of its forms.
fn collect_fields<'a>(document: &'a Document, schema: &'a Value, found: &mut BTreeSet<&'a str>) {
    let schema = document.resolve(schema);
    let own = schema["properties"].as_object();
    found.extend(own.into_iter().flatten().map(|(name, _)| name.as_str()));
    for forms in ["oneOf", "anyOf", "allOf"] {
        for form in schema[forms].as_array().into_iter().flatten() {
            collect_fields(document, form, found);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_rejects_unknown_fields() {
    let app = without_workers().await;
    let doers = create_actors(&app).await;
    let document = Document::current();
    let mut wrong = Vec::new();

    for operation in changing_operations(&document) {
        let Some(("application/json", content)) = operation.body() else {
            continue;
        };
        let attempt = OperationAttempt::new(&app, &operation, &doers).await;
        let Some(Value::Object(example)) = attempt.body() else {
            continue;
        };

        let mut known = BTreeSet::new();
        collect_fields(&document, &content["schema"], &mut known);

        let org = attempt.actor.tenant.org.to_string();
        let before = digest_org(&app.context.pool, &org).await;

        for hoped in FORBIDDEN_FIELDS
            .iter()
            .filter(|name| !known.contains(*name))
        {
            let mut body = example.clone();
            body.insert((*hoped).to_owned(), json!("super_admin"));
            let request = attempt.request(Some(Value::Object(body)));
            let (status, _, text) = send_checked(request, &operation, attempt.actor).await;
            if status != 422 {
                let name = operation.name();
                wrong.push(format!("{name} with {hoped}: {status} {text}"));
            }
        }

        let after = digest_org(&app.context.pool, &org).await;
        if before != after {
            wrong.push(format!("{} changed something", operation.name()));
        }
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    app.drop_jobs().await;
    app.finish().await;
}
