//! Lists of the API: every list that may grow has pages and reports when it is truncated.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::auth::login::without_workers;
use crate::harness::actors::{Actor, ActorKind};
use crate::harness::app::{App, send_request};
use crate::harness::document::{Document, Operation};
use crate::harness::example_request::{PathIds, path_id};

/// Operations whose lists are never truncated, because they cannot grow.
const BOUNDED_LISTS: [&str; 22] = [
    // Parts of one resource.
    "/api/v1/batch-call/{batch_id}",
    "/api/v1/batch-call/{batch_id}/readiness",
    "/api/v1/batch-call/{batch_id}/ingests/{ingest_id}",
    "/api/v1/billing/usage/sessions/{session_id}",
    "/api/v1/post-analysis/rules/{rule_id}",
    "/api/v1/tool-endpoint-defs/{tool_id}",
    "/api/v1/tools-mcp-server-defs/{server_id}",
    "/api/v1/tts-voices/{voice_id}",
    "/api/v1/workflows/{workflow_id}",
    // An agent has at most a hundred tools and fifty rules.
    "/api/v1/agents/{agent_id}/tools",
    "/api/v1/agents/{agent_id}/post-analysis",
    "/api/v1/agents/{agent_id}/post-analysis/attached-rules",
    "/api/v1/agents/{agent_id}/post-analysis/attached-rule-ids",
    // Built-in catalogues.
    "/api/v1/noise-assets",
    "/api/v1/providers/all",
    "/api/v1/providers/model",
    "/api/v1/providers/stt",
    "/api/v1/providers/tts",
    "/api/v1/providers/vad",
    // Hours, days or months of a period, counted by the period.
    "/api/v1/billing/usage/summary",
    "/api/v1/earnings/me/breakdown",
    // A wallet: its ledger has a cursor, and X-Truncated concerns its grants.
    "/api/v1/wallets/{wallet_id}",
];
/// Lists with a cursor, and the query parameter of the cursor.
const CURSOR_LISTS: [(&str, &str); 2] = [
    ("/api/v1/audit-log", "before"),
    ("/api/v1/batch-call/{batch_id}/data", "after"),
];

fn is_list(document: &Document, schema: &Value) -> bool {
    let schema = document.resolve(schema);
    schema["type"] == "array"
        || schema["type"]
            .as_array()
            .is_some_and(|types| types.contains(&json!("array")))
}

/// True when a response has a list, at the top or in its envelopes.
fn has_list(document: &Document, schema: &Value, depth: u8) -> bool {
    let schema = document.resolve(schema);
    let fields = schema["properties"].as_object();
    is_list(document, schema)
        || fields.into_iter().flatten().any(|(name, field)| {
            is_list(document, field)
                || depth > 0 && name == "data" && has_list(document, field, depth - 1)
        })
}

fn success_schema<'a>(operation: &Operation<'a>) -> Option<&'a Value> {
    let content = &operation.spec["responses"]["200"]["content"]["application/json"];
    content.get("schema")
}

/// True when a response has a total count.
fn has_total(document: &Document, schema: &Value) -> bool {
    let schema = document.resolve(schema);
    let fields = &schema["properties"];
    let data = document.resolve(&fields["data"]);
    fields.get("total").is_some() || data["properties"].get("total").is_some()
}

fn reports_truncation(operation: &Operation<'_>) -> bool {
    let headers = &operation.spec["responses"]["200"]["headers"];
    headers.get("X-Truncated").is_some()
}

fn query_parameters<'a>(operation: &Operation<'a>) -> BTreeSet<&'a str> {
    let query = operation.parameters("query").into_iter();
    query
        .filter_map(|parameter| parameter["name"].as_str())
        .collect()
}

/// Operations with a list that may grow.
fn growing_lists(document: &Document) -> Vec<Operation<'_>> {
    let all = document.operations().into_iter();
    let lists: Vec<_> = all
        .filter(|operation| {
            operation.method == Method::GET
                && success_schema(operation).is_some_and(|schema| has_list(document, schema, 1))
                && !BOUNDED_LISTS.contains(&operation.path)
                && !BOUNDED_LISTS.contains(&format!("/api/v1{}", operation.path).as_str())
        })
        .collect();
    assert!(lists.len() > 30, "{} lists", lists.len());
    lists
}

#[test]
fn every_list_has_pages_and_reports_truncation() {
    let document = Document::current();
    let paths: BTreeSet<_> = document.operations().iter().map(|o| o.path).collect();
    let gone = BOUNDED_LISTS.iter().find(|path| !paths.contains(*path));
    assert_eq!(gone, None, "not in the document");

    let mut wrong = Vec::new();
    for operation in growing_lists(&document) {
        let (name, query) = (operation.name(), query_parameters(&operation));
        let cursor = CURSOR_LISTS
            .iter()
            .find(|(path, _)| *path == operation.path);
        let schema = success_schema(&operation).expect("an answer");
        let wanted = match cursor {
            Some((_, cursor)) => query.contains(cursor) && query.contains("limit"),
            None => query.contains("page") && query.contains("page_size"),
        };
        if !wanted {
            wrong.push(format!("{name} has no pages: {query:?}"));
        }
        let has_next = document.resolve(schema)["properties"].get("next").is_some();
        if !has_total(&document, schema) && !reports_truncation(&operation) && !has_next {
            wrong.push(format!("{name} does not say whether there are more"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Rows of a response, at the top or in its envelope.
fn rows(body: &Value) -> Vec<Value> {
    let list = body.as_array().or_else(|| {
        let fields = body.as_object()?;
        fields.values().find_map(Value::as_array)
    });
    list.unwrap_or_else(|| panic!("no rows in {body}")).clone()
}

/// Requests a list; returns its rows, and true when it is truncated.
async fn request_list(app: &App, player: &Actor, path: &str) -> (Vec<Value>, bool) {
    let response = send_request(player.request(app, Method::GET, path)).await;
    let more = response.headers.get("x-truncated");
    let more = more.is_some_and(|more| more == "true");
    (rows(&response.expect(200)), more)
}

/// Errors in the pages of a filled list.
async fn page_errors(app: &App, player: &Actor, path: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let (whole, more) = request_list(app, player, path).await;
    if more || whole.is_empty() {
        wrong.push(format!("{} rows, more: {more}", whole.len()));
    }

    // Long lists are read in larger pages.
    let size = whole.len().div_ceil(10).max(1);

    let mut seen = Vec::new();
    for page in 1..=whole.len().div_ceil(size) {
        let (rows, more) =
            request_list(app, player, &format!("{path}?page={page}&page_size={size}")).await;
        seen.extend(rows);
        if more != (seen.len() < whole.len()) {
            wrong.push(format!("page {page} of {size} says that more is {more}"));
        }
    }

    if seen != whole {
        wrong.push("its pages are not the whole list".to_owned());
    }
    let (beyond, more) =
        request_list(app, player, &format!("{path}?page=1000&page_size={size}")).await;
    if more || !beyond.is_empty() {
        wrong.push("there are rows after its end".to_owned());
    }

    for odd in ["page=0", "page_size=0", "page_size=101", "page=one"] {
        let path = format!("{path}?{odd}");
        let response = send_request(player.request(app, Method::GET, &path)).await;
        if response.status != 422 {
            wrong.push(format!("{odd}: {}", response.status));
        }
    }

    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_add_up_to_the_whole_list_and_report_the_last_page() {
    let app = without_workers().await;
    let player = Actor::new(
        &app.context,
        app.carrier.url(),
        ActorKind::OrgAdmin,
        "Lister",
    )
    .await;
    let mut things = PathIds::new();
    for _ in 0..3 {
        things = player.path_ids(&app.context, &app).await;
    }

    let document = Document::current();
    let (mut wrong, mut asked, mut long) = (Vec::new(), 0, 0);
    for operation in growing_lists(&document) {
        let by_pages =
            query_parameters(&operation).contains("page") && reports_truncation(&operation);
        if !by_pages {
            continue;
        }
        let mut path = operation.path.to_owned();
        for parameter in operation.parameters("path") {
            let name = parameter["name"].as_str().expect("a name");
            path = path.replace(&format!("{{{name}}}"), &path_id(&operation, &things, name));
        }
        // No call was charged in this test.
        if path.ends_with("/billing/usage-records") {
            continue;
        }
        asked += 1;
        long += usize::from(request_list(&app, &player, &path).await.0.len() > 2);
        let errors = page_errors(&app, &player, &path).await.into_iter();
        wrong.extend(errors.map(|error| format!("{path}: {error}")));
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(asked >= 18 && long >= 14, "{asked} lists, {long} with rows");

    app.drop_jobs().await;
    app.drop_calls().await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_without_paging_shows_the_newest_thousand_and_reports_truncation() {
    let app = without_workers().await;
    let path = "/api/v1/post-analysis/rules";
    let oldest = json!({"name": "Oldest", "analysis_type": "summary", "prompt": "Sum up"});
    app.post(path, oldest).await.expect(200);
    let fill = "insert into analysis_rules (id, org_id, user_id, name, analysis_type, prompt, fields, is_active)
                select ('ffffffff-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, org_id, user_id, 'Rule ' || n,
                       analysis_type, prompt, fields, true
                from analysis_rules, generate_series($1::integer, $2::integer) n
                where name = 'Oldest'";
    let fill = async |from: i32, to: i32| {
        sqlx::query(fill)
            .bind(from)
            .bind(to)
            .execute(&app.context.pool)
            .await
            .expect("rules");
    };

    fill(1, 999).await;
    let whole = app.get(path).await;
    assert!(!whole.headers.contains_key("x-truncated"));
    assert_eq!(rows(&whole.expect(200)).len(), 1000);

    fill(1000, 1000).await;
    let cut = app.get(path).await;
    assert_eq!(cut.headers["x-truncated"], "true");
    let shown = rows(&cut.expect(200));
    assert_eq!(shown.len(), 1000);
    assert_eq!(shown[0]["name"], "Rule 1000");
    assert!(shown.iter().all(|rule| rule["name"] != "Oldest"));

    let last = app.get(&format!("{path}?page=11&page_size=100")).await;
    assert!(!last.headers.contains_key("x-truncated"));
    assert_eq!(rows(&last.expect(200))[0]["name"], "Oldest");
    app.finish().await;
}
