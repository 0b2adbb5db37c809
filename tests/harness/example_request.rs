//! Requests built from the examples in the OpenAPI document, with ids of existing resources.

use std::collections::BTreeMap;

use reqwest::header::HeaderMap;
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use super::actors::{Actor, people_form};
use super::client::ApiClient;
use super::document::Operation;

/// Ids for paths, queries and bodies, by the name of the parameter.
pub type PathIds = BTreeMap<&'static str, String>;

/// Sends an operation's example request with these ids.
pub async fn send_example(
    client: &ApiClient,
    actor: &Actor,
    operation: &Operation<'_>,
    path_ids: &PathIds,
) -> (StatusCode, String) {
    let request = example_request(
        client,
        actor,
        operation,
        path_ids,
        example_body(operation, path_ids),
    );
    let (status, _, text) = send_checked(request, operation, actor).await;
    (status, text)
}

/// Sends a request and returns the response; fails the test on status 500.
pub async fn send_checked(
    request: RequestBuilder,
    operation: &Operation<'_>,
    actor: &Actor,
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
        actor.kind.name()
    );
    (status, headers, text)
}

/// An operation's example body with these ids.
pub fn example_body(operation: &Operation<'_>, path_ids: &PathIds) -> Option<Value> {
    let (kind, _) = operation.body()?;
    if kind == "multipart/form-data" {
        return None;
    }
    let mut body = operation.body_example().unwrap_or(Value::Null);
    substitute_ids(&mut body, path_ids);
    Some(body)
}

/// An operation's example request with these ids and this body.
pub fn example_request(
    client: &ApiClient,
    actor: &Actor,
    operation: &Operation<'_>,
    path_ids: &PathIds,
    body: Option<Value>,
) -> RequestBuilder {
    let mut path = operation.path.to_owned();
    for parameter in operation.parameters("path") {
        let name = parameter["name"].as_str().expect("a name");
        path = path.replace(&format!("{{{name}}}"), &path_id(operation, path_ids, name));
    }

    let mut query = Vec::new();
    for parameter in operation.parameters("query") {
        let name = parameter["name"].as_str().expect("a name");
        if name == "workflow_id" {
            // Excludes agent_id, which the example has.
            continue;
        }
        let example = parameter["example"].as_str().map(str::to_owned);
        if let Some(value) = path_ids.get(name).cloned().or(example) {
            query.push((name, value));
        }
    }

    let request = actor
        .request(client, operation.method.clone(), &path)
        .query(&query);

    match (operation.body(), body) {
        (Some(("multipart/form-data", _)), _) => request.multipart(people_form()),
        (_, Some(body)) => request.json(&body),
        (_, None) => request,
    }
}

/// Value of a path parameter, looked up by `operation.name`, `tag.name`, then `name`.
pub fn path_id(operation: &Operation<'_>, path_ids: &PathIds, name: &str) -> String {
    let tag = operation.spec["tags"][0].as_str().unwrap_or_default();
    let (exact, tagged) = (
        format!("{}.{name}", operation.name()),
        format!("{tag}.{name}"),
    );
    let thing = [exact.as_str(), tagged.as_str(), name]
        .into_iter()
        .find_map(|name| path_ids.get(name));
    match thing {
        Some(value) => value.clone(),
        None if operation.spec["security"] == json!([{}]) => Uuid::nil().to_string(),
        None => panic!(
            "{}: add {name} to path_ids() in tests/harness/actors.rs",
            operation.name()
        ),
    }
}

/// Replaces the placeholder ids of an example.
fn substitute_ids(body: &mut Value, path_ids: &PathIds) {
    match body {
        Value::Object(fields) => {
            for (name, value) in fields {
                let one = name.strip_suffix('s').unwrap_or(name);
                match (path_ids.get(name.as_str()), path_ids.get(one)) {
                    (Some(id), _) if value.is_string() => *value = json!(id),
                    (_, Some(id)) if value.is_array() => *value = json!([id]),
                    _ => substitute_ids(value, path_ids),
                }
            }
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| substitute_ids(item, path_ids)),
        _ => {}
    }
}
