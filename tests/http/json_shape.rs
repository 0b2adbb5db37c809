//! Where a body has an object, a list is no object: asked of every body of the document, at
//! every place.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::auth::login::quiet;
use crate::harness::actors::{Actor, ActorKind};
use crate::harness::digest::digest_org;
use crate::harness::document::{Document, Operation};
use crate::harness::example_request::{example_body, example_request, send_checked};

/// One step into a body.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Field(String),
    Item,
}

/// Whether a value of a type may stand where the schema is.
fn takes(document: &Document, schema: &Value, kind: &str) -> bool {
    let schema = document.resolve(schema);
    for (forms, all) in [("oneOf", false), ("anyOf", false), ("allOf", true)] {
        if let Some(forms) = schema[forms].as_array() {
            let mut taken = forms.iter().map(|form| takes(document, form, kind));
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

/// Every place of a schema that has an object and no list.
fn places(
    document: &Document,
    schema: &Value,
    path: &mut Vec<Step>,
    found: &mut BTreeSet<Vec<Step>>,
) {
    let schema = document.resolve(schema);
    if takes(document, schema, "object") && !takes(document, schema, "array") {
        found.insert(path.clone());
    }
    for forms in ["oneOf", "anyOf", "allOf"] {
        for form in schema[forms].as_array().into_iter().flatten() {
            places(document, form, path, found);
        }
    }
    let fields = schema["properties"].as_object();
    for (name, field) in fields.into_iter().flatten() {
        path.push(Step::Field(name.clone()));
        places(document, field, path, found);
        path.pop();
    }
    if schema["additionalProperties"].is_object() {
        path.push(Step::Field("any".to_owned()));
        places(document, &schema["additionalProperties"], path, found);
        path.pop();
    }
    if schema["items"].is_object() {
        path.push(Step::Item);
        places(document, &schema["items"], path, found);
        path.pop();
    }
}

/// The body with a value at a place, made on the way where there is nothing yet.
fn with(mut body: Value, path: &[Step], value: Value) -> Value {
    match path {
        [] => value,
        [Step::Field(name), rest @ ..] => {
            if !body.is_object() {
                body = Value::Object(Map::new());
            }
            let old = body[name.as_str()].take();
            body[name.as_str()] = with(old, rest, value);
            body
        }
        [Step::Item, rest @ ..] => {
            let mut items = match body {
                Value::Array(items) => items,
                _ => Vec::new(),
            };
            match items.first_mut() {
                Some(first) => *first = with(first.take(), rest, value),
                None => items.push(with(Value::Null, rest, value)),
            }
            Value::Array(items)
        }
    }
}

fn at<'a>(body: &'a Value, path: &[Step]) -> &'a Value {
    path.iter().fold(body, |body, step| match step {
        Step::Field(name) => &body[name.as_str()],
        Step::Item => &body[0],
    })
}

/// The lists that could be taken for what an example has at a place.
fn lists(example: &Value) -> Vec<Value> {
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

fn bodies<'a>(document: &'a Document) -> Vec<(Operation<'a>, BTreeSet<Vec<Step>>)> {
    let mut bodies = Vec::new();
    for operation in document.operations() {
        let Some(("application/json", told)) = operation.body() else {
            continue;
        };
        if operation.spec["security"] == json!([{}]) && operation.path.starts_with("/callbacks") {
            continue;
        }
        let mut found = BTreeSet::new();
        places(document, &told["schema"], &mut Vec::new(), &mut found);
        bodies.push((operation, found));
    }
    assert!(bodies.len() > 40, "{} bodies", bodies.len());
    bodies
}

#[tokio::test(flavor = "multi_thread")]
async fn no_body_takes_a_list_for_an_object() {
    let app = quiet().await;
    let player =
        async |who: ActorKind| Actor::new(&app.context, app.carrier.url(), who, who.name()).await;
    let (admin, root) = (
        player(ActorKind::OrgAdmin).await,
        player(ActorKind::SuperAdmin).await,
    );
    let document = Document::current();
    let (mut wrong, mut tried) = (Vec::new(), 0);
    for (operation, places) in bodies(&document) {
        let told = operation.spec["description"].as_str().unwrap_or_default();
        let player = match told.contains("super_admin") && !told.contains("org_admin") {
            true => &root,
            false => &admin,
        };
        let things = player.path_ids(&app.context, &app).await;
        let example = example_body(&operation, &things).unwrap_or(Value::Null);
        let org = player.tenant.org.to_string();
        let before = digest_org(&app.context.pool, &org).await;
        for place in &places {
            for list in lists(at(&example, place)) {
                let body = with(example.clone(), place, list);
                let request =
                    example_request(&app, player, &operation, &things, Some(body.clone()));
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
            wrong.push(format!("{} changed something", operation.name()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tried > 200, "only {tried} lists were tried");
    app.drop_jobs().await;
    app.finish().await;
}
