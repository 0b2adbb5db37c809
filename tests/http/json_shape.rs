//! Arrays in place of objects: every request body of the document refuses an array wherever its
//! schema has an object.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::auth::login::without_workers;
use crate::harness::actors::{Actor, ActorKind};
use crate::harness::digest::digest_org;
use crate::harness::document::{Document, Operation};
use crate::harness::example_request::{example_body, example_request, send_checked};

/// One step of a path into a body.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum BodyStep {
    Field(String),
    Item,
}

/// True when the schema accepts a value of this type.
fn accepts_type(document: &Document, schema: &Value, kind: &str) -> bool {
    let schema = document.resolve(schema);
    for (forms, all) in [("oneOf", false), ("anyOf", false), ("allOf", true)] {
        if let Some(forms) = schema[forms].as_array() {
            let mut taken = forms.iter().map(|form| accepts_type(document, form, kind));
            return match all {
                true => taken.all(|taken| taken),
                false => taken.any(|taken| taken),
            };
        }
    }

    match &schema["type"] {
        Value::String(one) => one == kind,
        Value::Array(several) => several.iter().any(|one| one == kind),
        _ => true,
    }
}

/// Paths of a schema where an object is accepted and an array is not.
fn object_paths(
    document: &Document,
    schema: &Value,
    path: &mut Vec<BodyStep>,
    found: &mut BTreeSet<Vec<BodyStep>>,
) {
    let schema = document.resolve(schema);
    if accepts_type(document, schema, "object") && !accepts_type(document, schema, "array") {
        found.insert(path.clone());
    }
    for forms in ["oneOf", "anyOf", "allOf"] {
        for form in schema[forms].as_array().into_iter().flatten() {
            object_paths(document, form, path, found);
        }
    }

    let fields = schema["properties"].as_object();
    for (name, field) in fields.into_iter().flatten() {
        path.push(BodyStep::Field(name.clone()));
        object_paths(document, field, path, found);
        path.pop();
    }

    if schema["additionalProperties"].is_object() {
        path.push(BodyStep::Field("any".to_owned()));
        object_paths(document, &schema["additionalProperties"], path, found);
        path.pop();
    }

    if schema["items"].is_object() {
        path.push(BodyStep::Item);
        object_paths(document, &schema["items"], path, found);
        path.pop();
    }
}

/// Sets the value at a path of a body, creating missing parents.
fn with_value(mut body: Value, path: &[BodyStep], value: Value) -> Value {
    match path {
        [] => value,
        [BodyStep::Field(name), rest @ ..] => {
            if !body.is_object() {
                body = Value::Object(Map::new());
            }
            let old = body[name.as_str()].take();
            body[name.as_str()] = with_value(old, rest, value);
            body
        }
        [BodyStep::Item, rest @ ..] => {
            let mut items = match body {
                Value::Array(items) => items,
                _ => Vec::new(),
            };
            match items.first_mut() {
                Some(first) => *first = with_value(first.take(), rest, value),
                None => items.push(with_value(Value::Null, rest, value)),
            }
            Value::Array(items)
        }
    }
}

fn value_at<'a>(body: &'a Value, path: &[BodyStep]) -> &'a Value {
    path.iter().fold(body, |body, step| match step {
        BodyStep::Field(name) => &body[name.as_str()],
        BodyStep::Item => &body[0],
    })
}

/// Arrays that a lenient parser could accept in place of the example's value.
fn array_values(example: &Value) -> Vec<Value> {
    let fields = example.as_object();
    let values: Vec<Value> = fields
        .into_iter()
        .flatten()
        .map(|(_, value)| value.clone())
        .collect();
    let reversed = values.iter().rev().cloned().collect();
    vec![
        json!([]),
        json!([null]),
        Value::Array(values),
        Value::Array(reversed),
    ]
}

fn json_bodies<'a>(document: &'a Document) -> Vec<(Operation<'a>, BTreeSet<Vec<BodyStep>>)> {
    let mut bodies = Vec::new();
    for operation in document.operations() {
        let Some(("application/json", content)) = operation.body() else {
            continue;
        };
        if operation.spec["security"] == json!([{}]) && operation.path.starts_with("/callbacks") {
            continue;
        }
        let mut found = BTreeSet::new();
        object_paths(document, &content["schema"], &mut Vec::new(), &mut found);
        bodies.push((operation, found));
    }
    assert!(bodies.len() > 40, "{} bodies", bodies.len());
    bodies
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_body_accepts_an_array_for_an_object() {
    let app = without_workers().await;
    let player =
        async |who: ActorKind| Actor::new(&app.context, app.carrier.url(), who, who.name()).await;
    let (admin, root) = (
        player(ActorKind::OrgAdmin).await,
        player(ActorKind::SuperAdmin).await,
    );

    let document = Document::current();
    let (mut wrong, mut tried) = (Vec::new(), 0);
    for (operation, places) in json_bodies(&document) {
        let description = operation.spec["description"].as_str().unwrap_or_default();
        let player = match description.contains("super_admin") && !description.contains("org_admin")
        {
            true => &root,
            false => &admin,
        };

        let path_ids = player.path_ids(&app.context, &app).await;
        let example = example_body(&operation, &path_ids).unwrap_or(Value::Null);
        let org = player.tenant.org.to_string();
        let before = digest_org(&app.context.pool, &org).await;

        for place in &places {
            for list in array_values(value_at(&example, place)) {
                let body = with_value(example.clone(), place, list);
                let request =
                    example_request(&app, player, &operation, &path_ids, Some(body.clone()));
                let (status, _, text) = send_checked(request, &operation, player).await;
                tried += 1;
                if status != 422 {
                    wrong.push(format!(
                        "{} at {place:?}: {status} {text}",
                        operation.name()
                    ));
                }
            }
        }

        if before != digest_org(&app.context.pool, &org).await {
            wrong.push(format!("{} changed data", operation.name()));
        }
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tried > 200, "only {tried} lists were tried");

    app.drop_jobs().await;
    app.finish().await;
}
