//! No list is cut in silence: what a list does not show, it says that there is, and a page of it
//! can be asked for.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::auth::login::quiet;
use crate::harness::actors::{Actor, ActorKind};
use crate::harness::app::{App, send_request};
use crate::harness::document::{Document, Operation};
use crate::harness::example_request::{PathIds, path_id};

/// Answers with lists that are never cut, because they cannot grow.
const BOUNDED: [&str; 22] = [
    // Parts of one thing.
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
    // What is built in.
    "/api/v1/noise-assets",
    "/api/v1/providers/all",
    "/api/v1/providers/model",
    "/api/v1/providers/stt",
    "/api/v1/providers/tts",
    "/api/v1/providers/vad",
    // Hours, days or months of a period, counted by the period.
    "/api/v1/billing/usage/summary",
    "/api/v1/earnings/me/breakdown",
    // The thing is the wallet: its ledger is read on, and X-Truncated is about its grants.
    "/api/v1/wallets/{wallet_id}",
];
/// Lists that are read on from where they ended, and say where that is.
const READ_ON: [(&str, &str); 2] = [
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

/// Whether an answer has a list, on its own or in its envelopes.
fn has_list(document: &Document, schema: &Value, depth: u8) -> bool {
    let schema = document.resolve(schema);
    let fields = schema["properties"].as_object();
    is_list(document, schema)
        || fields.into_iter().flatten().any(|(name, field)| {
            is_list(document, field)
                || depth > 0 && name == "data" && has_list(document, field, depth - 1)
        })
}

fn answered<'a>(operation: &Operation<'a>) -> Option<&'a Value> {
    let content = &operation.spec["responses"]["200"]["content"]["application/json"];
    content.get("schema")
}

/// Whether an answer says how many there are.
fn counts(document: &Document, schema: &Value) -> bool {
    let schema = document.resolve(schema);
    let fields = &schema["properties"];
    let data = document.resolve(&fields["data"]);
    fields.get("total").is_some() || data["properties"].get("total").is_some()
}

fn says_more(operation: &Operation<'_>) -> bool {
    let headers = &operation.spec["responses"]["200"]["headers"];
    headers.get("X-Truncated").is_some()
}

fn takes<'a>(operation: &Operation<'a>) -> BTreeSet<&'a str> {
    let query = operation.parameters("query").into_iter();
    query
        .filter_map(|parameter| parameter["name"].as_str())
        .collect()
}

/// Every operation that answers with a list that may grow.
fn lists(document: &Document) -> Vec<Operation<'_>> {
    let all = document.operations().into_iter();
    let lists: Vec<_> = all
        .filter(|operation| {
            operation.method == Method::GET
                && answered(operation).is_some_and(|schema| has_list(document, schema, 1))
                && !BOUNDED.contains(&operation.path)
                && !BOUNDED.contains(&format!("/api/v1{}", operation.path).as_str())
        })
        .collect();
    assert!(lists.len() > 30, "{} lists", lists.len());
    lists
}

#[test]
fn every_list_has_pages_and_says_when_it_shows_not_all() {
    let document = Document::current();
    let paths: BTreeSet<_> = document.operations().iter().map(|o| o.path).collect();
    let gone = BOUNDED.iter().find(|path| !paths.contains(*path));
    assert_eq!(gone, None, "it is not in the document any more");
    let mut wrong = Vec::new();
    for operation in lists(&document) {
        let (name, query) = (operation.name(), takes(&operation));
        let cursor = READ_ON.iter().find(|(path, _)| *path == operation.path);
        let schema = answered(&operation).expect("an answer");
        let wanted = match cursor {
            Some((_, cursor)) => query.contains(cursor) && query.contains("limit"),
            None => query.contains("page") && query.contains("page_size"),
        };
        if !wanted {
            wrong.push(format!("{name} has no pages: {query:?}"));
        }
        let has_next = document.resolve(schema)["properties"].get("next").is_some();
        if !counts(&document, schema) && !says_more(&operation) && !has_next {
            wrong.push(format!("{name} does not say whether there are more"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The rows of an answer, wherever its envelope has them.
fn rows(body: &Value) -> Vec<Value> {
    let list = body.as_array().or_else(|| {
        let fields = body.as_object()?;
        fields.values().find_map(Value::as_array)
    });
    list.unwrap_or_else(|| panic!("no rows in {body}")).clone()
}

/// A list as somebody asks for it: its rows, and whether there are more.
async fn ask(app: &App, player: &Actor, path: &str) -> (Vec<Value>, bool) {
    let told = send_request(player.request(app, Method::GET, path)).await;
    let more = told.headers.get("x-truncated");
    let more = more.is_some_and(|more| more == "true");
    (rows(&told.expect(200)), more)
}

/// What is wrong with the pages of a list that has been filled.
async fn complaints(app: &App, player: &Actor, path: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let (whole, more) = ask(app, player, path).await;
    if more || whole.is_empty() {
        wrong.push(format!("{} rows, more: {more}", whole.len()));
    }
    // Lists of hundreds are read by larger pages.
    let size = whole.len().div_ceil(10).max(1);
    let mut seen = Vec::new();
    for page in 1..=whole.len().div_ceil(size) {
        let (rows, more) = ask(app, player, &format!("{path}?page={page}&page_size={size}")).await;
        seen.extend(rows);
        if more != (seen.len() < whole.len()) {
            wrong.push(format!("page {page} of {size} says that more is {more}"));
        }
    }
    if seen != whole {
        wrong.push("its pages are not the whole list".to_owned());
    }
    let (behind, more) = ask(app, player, &format!("{path}?page=1000&page_size={size}")).await;
    if more || !behind.is_empty() {
        wrong.push("there is something behind its end".to_owned());
    }
    for odd in ["page=0", "page_size=0", "page_size=101", "page=one"] {
        let path = format!("{path}?{odd}");
        let told = send_request(player.request(app, Method::GET, &path)).await;
        if told.status != 422 {
            wrong.push(format!("{odd}: {}", told.status));
        }
    }
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_of_every_list_are_the_list_and_say_whether_more_follow() {
    let app = quiet().await;
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
    for operation in lists(&document) {
        let by_pages = takes(&operation).contains("page") && says_more(&operation);
        if !by_pages {
            continue;
        }
        let mut path = operation.path.to_owned();
        for parameter in operation.parameters("path") {
            let name = parameter["name"].as_str().expect("a name");
            path = path.replace(&format!("{{{name}}}"), &path_id(&operation, &things, name));
        }
        // No call was charged here.
        if path.ends_with("/billing/usage-records") {
            continue;
        }
        asked += 1;
        long += usize::from(ask(&app, &player, &path).await.0.len() > 2);
        let complaints = complaints(&app, &player, &path).await.into_iter();
        wrong.extend(complaints.map(|complaint| format!("{path}: {complaint}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(asked >= 18 && long >= 14, "{asked} lists, {long} with rows");
    app.drop_jobs().await;
    app.drop_calls().await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_without_pages_shows_the_newest_thousand_and_says_that_there_are_more() {
    let app = quiet().await;
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
