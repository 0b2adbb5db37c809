//! The request that an operation's description asks for, made of its examples and of things
//! that are there.

use std::collections::BTreeMap;

use reqwest::header::HeaderMap;
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use super::cast::{Player, people};
use super::client::Client;
use super::document::Operation;

/// What paths, queries and bodies name, by the parameter's name.
pub type Things = BTreeMap<&'static str, String>;

/// Sends the request of an operation about these things.
pub async fn knock(
    client: &Client,
    player: &Player,
    operation: &Operation<'_>,
    things: &Things,
) -> (StatusCode, String) {
    let request = request(client, player, operation, things, body(operation, things));
    let (status, _, text) = send(request, operation, player).await;
    (status, text)
}

/// Sends a request; what was answered. No request may be answered with 500.
pub async fn send(
    request: RequestBuilder,
    operation: &Operation<'_>,
    player: &Player,
) -> (StatusCode, HeaderMap, String) {
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status(), response.headers().clone());
    let endless = headers
        .get("content-type")
        .is_some_and(|kind| kind == "text/event-stream");
    let text = match endless {
        true => String::new(),
        false => response.text().await.expect("a body"),
    };
    assert!(
        status != StatusCode::INTERNAL_SERVER_ERROR,
        "{} of {}: {status} {text}",
        operation.name(),
        player.who.word()
    );
    (status, headers, text)
}

/// The JSON that an operation's example makes of these things.
pub fn body(operation: &Operation<'_>, things: &Things) -> Option<Value> {
    let (kind, _) = operation.body()?;
    if kind == "multipart/form-data" {
        return None;
    }
    let mut body = operation.body_example().unwrap_or(Value::Null);
    set_things(&mut body, things);
    Some(body)
}

/// The request of an operation about these things, with a body.
pub fn request(
    client: &Client,
    player: &Player,
    operation: &Operation<'_>,
    things: &Things,
    body: Option<Value>,
) -> RequestBuilder {
    let mut path = operation.path.to_owned();
    for parameter in operation.parameters("path") {
        let name = parameter["name"].as_str().expect("a name");
        path = path.replace(&format!("{{{name}}}"), &thing(operation, things, name));
    }
    let mut query = Vec::new();
    for parameter in operation.parameters("query") {
        let name = parameter["name"].as_str().expect("a name");
        if name == "workflow_id" {
            // Never together with agent_id.
            continue;
        }
        let example = parameter["example"].as_str().map(str::to_owned);
        if let Some(value) = things.get(name).cloned().or(example) {
            query.push((name, value));
        }
    }
    let request = player
        .request(client, operation.method.clone(), &path)
        .query(&query);
    match (operation.body(), body) {
        (Some(("multipart/form-data", _)), _) => request.multipart(people()),
        (_, Some(body)) => request.json(&body),
        (_, None) => request,
    }
}

/// What a parameter of an operation's path is: known by the operation, its tag, or by itself.
pub fn thing(operation: &Operation<'_>, things: &Things, name: &str) -> String {
    let tag = operation.told["tags"][0].as_str().unwrap_or_default();
    let (exact, tagged) = (
        format!("{}.{name}", operation.name()),
        format!("{tag}.{name}"),
    );
    let thing = [exact.as_str(), tagged.as_str(), name]
        .into_iter()
        .find_map(|name| things.get(name));
    match thing {
        Some(value) => value.clone(),
        None if operation.told["security"] == json!([{}]) => Uuid::nil().to_string(),
        None => panic!(
            "{}: say in tests/harness/cast.rs, things(), what {name} is",
            operation.name()
        ),
    }
}

/// Puts ids where an example has made-up ones.
fn set_things(body: &mut Value, things: &Things) {
    match body {
        Value::Object(fields) => {
            for (name, value) in fields {
                let one = name.strip_suffix('s').unwrap_or(name);
                match (things.get(name.as_str()), things.get(one)) {
                    (Some(id), _) if value.is_string() => *value = json!(id),
                    (_, Some(id)) if value.is_array() => *value = json!([id]),
                    _ => set_things(value, things),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| set_things(item, things)),
        _ => {}
    }
}
