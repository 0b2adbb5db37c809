//! Conformance of the API to its OpenAPI document: schemathesis generates valid and invalid
//! requests from the document, for every kind of caller. No response may be a 5xx, have a status or
//! a shape that is not described, or accept what the document forbids.
//!
//! schemathesis is a Python program; see [`python`](crate::harness::python). `PEAL_EXAMPLES` sets
//! the number of requests for each operation and caller.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::process::Command;

use crate::harness::actors::{Actor, ActorKind};
use crate::harness::app::{App, AppOptions};
use crate::harness::document::Document;
use crate::harness::example_request::{PathIds, path_id};
use crate::harness::python::{install_programs, run};

/// Checks on every response.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance,negative_data_rejection,\
    missing_required_header,unsupported_method,allow_header_conformance,ignored_auth";
/// Longest time of one caller's run, with all callers running at once.
const RUN_TIMEOUT: Duration = Duration::from_secs(900);
/// Generated requests for each operation by a super_admin, beyond those that the document's bounds
/// ask for; other callers reach fewer operations and send fewer requests.
const EXAMPLES: &str = "5";
const EXAMPLES_FOR_OTHERS: &str = "2";

/// Configuration with ids of existing resources, because generated ids only lead to 404.
fn config_toml(path_ids: &PathIds) -> String {
    let document = Document::current();
    // The example's carrier cannot be reached from tests, which leads to 503.
    let mut text = "[[operations]]\ninclude-name = \"POST /api/v1/trunks\"\n\
         [operations.checks.not_a_server_error]\n\
         expected-statuses = [\"2xx\", \"3xx\", \"4xx\", \"503\"]\n"
        .to_owned();

    for operation in document.operations() {
        let parameters = operation.parameters("path");
        if operation.spec["security"] == serde_json::json!([{}]) || parameters.is_empty() {
            continue;
        }
        let _written = writeln!(
            text,
            "[[operations]]\ninclude-name = {:?}",
            operation.name()
        );
        text.push_str("[operations.parameters]\n");

        for parameter in parameters {
            let name = parameter["name"].as_str().expect("a name");
            let value = path_id(&operation, path_ids, name);
            let _written = writeln!(text, "\"path.{name}\" = {value:?}");
        }
    }
    text
}

async fn run_as(app: &App, schemathesis: &Path, kind: ActorKind) -> Result<(), String> {
    let actor = Actor::new(&app.context, app.carrier.url(), kind, kind.name()).await;
    let path_ids = actor.path_ids(&app.context, app).await;

    let config = app.directory().join(format!("{}.toml", kind.name()));
    fs::write(&config, config_toml(&path_ids)).expect("write");

    let examples = std::env::var("PEAL_EXAMPLES").ok();
    let patience = match &examples {
        Some(_) => RUN_TIMEOUT * 20,
        None => RUN_TIMEOUT,
    };

    // The requests for the document's bounds are the same for every caller, so only the super_admin
    // sends them.
    let (phases, examples) = match (kind, examples.as_deref()) {
        (_, Some(examples)) => ("examples,coverage,fuzzing", examples),
        (ActorKind::SuperAdmin, None) => ("examples,coverage,fuzzing", EXAMPLES),
        _ => ("examples,fuzzing", EXAMPLES_FOR_OTHERS),
    };

    let checks = match kind {
        // An operation for sessions only answers a key with 403.
        ActorKind::Key => CHECKS.replace("missing_required_header,", ""),
        _ => CHECKS.to_owned(),
    };

    let mut command = Command::new(schemathesis);
    command
        .current_dir(app.directory())
        .arg("--config-file")
        .arg(&config)
        .args(["run", &format!("{}/openapi.json", app.url)])
        .args(["--phases", phases])
        .args(["--checks", &checks])
        .args(["--max-examples", examples])
        .args(["--seed", "1", "--generation-database", "none"])
        .args(["--request-timeout", "20", "--warnings", "off"])
        // This stream ends with its batch, after an hour.
        .args(["--exclude-operation-id", "batches_events"]);

    if let Some((name, value)) = actor.credential() {
        command.args(["--header", &format!("{name}: {value}")]);
    }

    let ran = run(patience, &mut command).await;
    ran.map_err(|why| format!("as {}:\n{why}", kind.name()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_conforms_to_its_document_for_every_caller() {
    let Some(programs) = install_programs("schemathesis").await else {
        return;
    };
    let schemathesis = programs.join("schemathesis");
    let app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;
    let runs = ActorKind::ALL.map(|kind| run_as(&app, &schemathesis, kind));
    let ended = futures::future::join_all(runs).await;
    let failed: Vec<String> = ended.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    app.drop_jobs().await;
    app.finish().await;
}
