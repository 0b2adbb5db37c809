//! The OpenAPI document: complete, equal to the routes, and equal to the committed file.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use reqwest::Method;
use serde_json::Value;

use crate::harness::app::{App, AppOptions, send_request};
use crate::harness::cluster::built_program;
use crate::harness::document::{Document, Operation};

const PROBLEM_CONTENT_TYPE: &str = "application/problem+json";

/// Fails with a list of errors, one per line.
fn assert_no_errors(wrong: Vec<String>) {
    assert!(
        wrong.is_empty(),
        "{} to fix:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

fn check_operations(check: impl Fn(&Operation<'_>) -> Vec<String>) -> Vec<String> {
    let document = Document::current();
    let operations = document.operations();
    let each = operations.iter().flat_map(|operation| {
        let name = operation.name();
        check(operation)
            .into_iter()
            .map(move |complaint| format!("{name}: {complaint}"))
    });
    each.collect()
}

/// True when the operation needs no authentication.
fn is_unauthenticated(operation: &Operation<'_>) -> bool {
    operation.spec["security"] == serde_json::json!([{}])
}

#[test]
fn every_operation_has_an_id_a_summary_and_a_tag() {
    let document = Document::current();
    let tags: BTreeSet<&str> = document.0["tags"]
        .as_array()
        .expect("tags")
        .iter()
        .filter_map(|tag| tag["name"].as_str())
        .collect();
    assert_no_errors(check_operations(|operation| {
        let mut wrong = Vec::new();
        match operation.spec["summary"].as_str() {
            None | Some("") => wrong.push("has no summary: begin its doc comment with one".into()),
            Some(summary) if summary.ends_with('.') || summary.len() > 80 => {
                wrong.push(format!("{summary:?} is a sentence, not a summary"));
            }
            Some(_) => {}
        }

        match operation.spec["tags"].as_array().map(Vec::as_slice) {
            Some([Value::String(tag)]) if tags.contains(tag.as_str()) => {}
            other => wrong.push(format!(
                "{other:?} is not one tag of api/src/http/openapi.rs: {tags:?}"
            )),
        }

        let schemes = operation.spec["security"].as_array();
        let schemes = schemes.into_iter().flatten().flat_map(|scheme| {
            let scheme = scheme.as_object().expect("an object");
            scheme.keys().map(String::as_str)
        });
        let schemes: Vec<&str> = schemes.collect();
        if operation.spec["security"].is_null()
            || schemes
                .iter()
                .any(|scheme| !["api_key", "session"].contains(scheme))
        {
            wrong.push(format!("{schemes:?} is not a known authentication scheme"));
        }
        wrong
    }));

    let mut names = HashMap::new();
    for operation in document.operations() {
        let id = operation.spec["operationId"].as_str().expect("an id");
        assert!(
            id.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
            "{id}"
        );
        if let Some(other) = names.insert(id, operation.name()) {
            panic!("{other} and {} are both called {id}", operation.name());
        }
    }
}

#[test]
fn every_request_and_response_body_has_an_example() {
    assert_no_errors(check_operations(|operation| {
        let mut wrong = Vec::new();
        if let Some((kind, body)) = operation.body()
            && kind == "application/json"
            && operation.example(body).is_none()
        {
            wrong.push("its request body has no example".to_owned());
        }

        for (status, answer) in operation.spec["responses"].as_object().expect("responses") {
            let content = answer["content"].as_object();
            for (kind, body) in content.into_iter().flatten() {
                if status.starts_with('2') && operation.example(body).is_none() {
                    wrong.push(format!("its answer {status} has no example in {kind}"));
                }
            }
        }
        wrong
    }));
}

#[test]
fn every_error_response_is_a_problem_document() {
    assert_no_errors(check_operations(|operation| {
        // 1. Expected statuses that are missing.
        let responses = operation.spec["responses"].as_object().expect("responses");
        let mut expected = Vec::new();
        if !is_unauthenticated(operation) {
            expected.extend(["401", "403", "422", "429", "503"]);
            if operation.path.contains('{') {
                expected.push("404");
            }
            if operation.body().is_some() {
                expected.extend(["413", "415"]);
            }
        }
        let missing = expected
            .into_iter()
            .filter(|status| !responses.contains_key(*status));
        let missing = missing.map(|status| format!("{status} is not described"));

        // 2. Refusals without a problem document.
        let other_format = responses.iter().filter(|(status, answer)| {
            let answer = operation.document.resolve(answer);
            let is_refusal = status.starts_with('4') || status.starts_with('5');
            let schema = &answer["content"][PROBLEM_CONTENT_TYPE]["schema"]["$ref"];
            // Health checks report failures in their own document.
            is_refusal
                && !operation.path.starts_with("/health")
                && schema != "#/components/schemas/ProblemDocument"
        });
        let other_format =
            other_format.map(|(status, _)| format!("{status} is not a problem document"));

        // 3. Responses without a description.
        let undescribed = responses
            .iter()
            .filter(|(_, answer)| {
                let answer = operation.document.resolve(answer);
                answer["description"].as_str().is_none_or(str::is_empty)
            })
            .map(|(status, _)| format!("{status} is not explained"));
        missing.chain(other_format).chain(undescribed).collect()
    }));
}

/// POST operations without an `Idempotency-Key`, because their caller is not authenticated.
const POSTS_WITHOUT_KEY: [&str; 9] = [
    // The response is a secret that is not stored; a second session is harmless.
    "POST /api/v1/auth/login",
    // The invitation's token works once.
    "POST /api/v1/organizations/invites/accept",
    // Carriers repeat callbacks; events are deduplicated by content.
    "POST /api/v1/batch-call/status-callback",
    "POST /api/v1/batch-call/status-callback/{trunk}/{call}/{token}",
    "POST /callbacks/{trunk}/{call}/{token}/answer",
    "POST /callbacks/{trunk}/{call}/{token}/machine",
    "POST /callbacks/{trunk}/{call}/{token}/recording",
    // Removed routes, without effect.
    "POST /api/v1/organizations/{id}/billing/assign-credits",
    "POST /organizations/{id}/billing/assign-credits",
];

#[test]
fn every_authenticated_post_takes_an_idempotency_key() {
    let document = Document::current();
    let posts = document.operations().into_iter();
    let posts = posts.filter(|operation| operation.method == Method::POST);
    let without: BTreeSet<String> = posts
        .filter(|operation| {
            let headers = operation.parameters("header");
            let mut names = headers.iter().map(|parameter| &parameter["name"]);
            !names.any(|name| name == "Idempotency-Key")
        })
        .map(|operation| operation.name())
        .collect();
    let expected = POSTS_WITHOUT_KEY.map(str::to_owned);
    assert_eq!(without, BTreeSet::from(expected));
}

#[test]
fn every_parameter_of_a_path_is_described() {
    assert_no_errors(check_operations(|operation| {
        let described: BTreeSet<&str> = operation
            .parameters("path")
            .iter()
            .filter_map(|parameter| parameter["name"].as_str())
            .collect();
        let named: BTreeSet<&str> = operation
            .path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .collect();
        match described == named {
            true => Vec::new(),
            false => vec![format!(
                "its path has {named:?}, it describes {described:?}"
            )],
        }
    }));
}

#[test]
fn every_reference_resolves() {
    fn walk(document: &Document, value: &Value) {
        match value {
            Value::Object(parts) => {
                if parts.contains_key("$ref") {
                    document.resolve(value);
                }
                parts.values().for_each(|part| walk(document, part));
            }
            Value::Array(parts) => parts.iter().for_each(|part| walk(document, part)),
            _ => {}
        }
    }
    let document = Document::current();
    walk(&document, &document.0);
}

fn repository_root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.expect("the root").to_owned()
}

fn read_sources(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("text");
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            found.push((path, text.to_owned()));
        }
    }
}

/// The document identifies schemas by name: a second type of the same name silently replaces the
/// first.
#[test]
fn schema_names_are_unique() {
    let mut files = Vec::new();
    read_sources(&repository_root().join("api/src"), &mut files);
    read_sources(&repository_root().join("shared/src"), &mut files);

    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in &files {
        for (at, _) in text.match_indices("ToSchema") {
            // Between the derive and the braces, where another attribute may rename the type.
            let derived = text[..at].rfind("#[derive(");
            let Some(from) = derived.filter(|from| !text[*from..at].contains(")]")) else {
                continue;
            };
            let declared = ["struct ", "enum "]
                .iter()
                .filter_map(|word| Some(at + text[at..].find(word)? + word.len()))
                .min();
            let Some(declared) = declared else { continue };
            let renamed = text[from..declared].split("#[schema(as = ").nth(1);
            let name = renamed.unwrap_or(&text[declared..]);
            let name = name
                .split(|c: char| !c.is_alphanumeric() && c != '$')
                .next();
            if name.is_some_and(|name| name.starts_with('$')) {
                continue;
            }
            let place = path.display().to_string();
            places
                .entry(name.unwrap_or_default().to_owned())
                .or_default()
                .push(place);
        }
    }

    assert!(places.len() > 20, "the types were not found: {places:?}");
    let shared = places.into_iter().filter(|(_, places)| places.len() > 1);
    assert_no_errors(
        shared
            .map(|(name, places)| {
                format!("{name} is in {places:?}: rename one, or #[schema(as = ...)]")
            })
            .collect(),
    );
}

#[test]
fn every_route_is_in_the_document() {
    let mut files = Vec::new();
    read_sources(&repository_root().join("api/src"), &mut files);
    let undescribed = files.iter().filter(|(_, text)| {
        ["axum::routing", ".route(\"", ".route(&", "route_service("]
            .iter()
            .any(|pattern| text.contains(pattern))
    });
    let named = undescribed.map(|(path, _)| format!("{}: use routes!", path.display()));
    assert_no_errors(named.collect());
}

/// API changes show in the commit that makes them; `PEAL_UPDATE_SNAPSHOTS=1` rewrites the file.
#[test]
fn the_document_equals_the_committed_file() {
    let path = repository_root().join("tests/openapi.json");
    let mut document = peal_api::document().to_pretty_json().expect("JSON");
    document.push('\n');
    if std::env::var_os("PEAL_UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, &document).expect("write");
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let differing = document
        .lines()
        .zip(committed.lines())
        .enumerate()
        .find(|(_, (now, then))| now != then);
    assert!(
        document == committed,
        "tests/openapi.json differs from the code ({differing:?}); if the change is intended, run \
         the test again with PEAL_UPDATE_SNAPSHOTS=1 and commit the file"
    );
}

#[test]
fn the_program_prints_the_document_without_settings() {
    let printed = Command::new(built_program("peal-api"))
        .arg("openapi")
        .env_clear()
        .output()
        .expect("run");
    assert!(printed.status.success(), "{printed:?}");
    let printed: Value = serde_json::from_slice(&printed.stdout).expect("JSON");
    assert_eq!(printed, Document::current().0);
    assert_eq!(printed["openapi"], "3.1.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_and_its_page_are_served_without_external_assets() {
    let app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;
    let served = send_request(app.anonymous(Method::GET, "/openapi.json")).await;
    assert_eq!(served.expect(200), Document::current().0);

    let page = send_request(app.anonymous(Method::GET, "/docs")).await;
    assert_eq!(page.status, 200);
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    assert!(!policy.contains("http"), "{policy}");
    let parts: Vec<&str> = ["src=\"", "spec-url=\""]
        .iter()
        .flat_map(|attribute| page.text.split(attribute).skip(1))
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert_eq!(parts.len(), 2, "{parts:?}");
    for part in parts {
        assert!(!part.contains("//") && !part.starts_with('/'), "{part}");
        let part = send_request(app.anonymous(Method::GET, &format!("/{part}"))).await;
        assert_eq!(part.status, 200);
    }
    app.finish().await;
}
