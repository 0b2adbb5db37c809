//! The API keeps what its document promises: schemathesis reads the document and makes up
//! requests, right ones and wrong ones, as every kind of caller. No answer may be a 5xx, have a
//! status or a shape that is not described, or accept what the document forbids.
//!
//! schemathesis is a Python program. It is installed once, as tests/schemathesis/ pins it, into
//! a directory beside the test's own; where Python or its registry is missing, the test says so
//! and passes, unless `CI` is set.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::harness::app::{App, Options};
use crate::harness::cast::{Player, Who};

const REQUIREMENTS: &str = include_str!("schemathesis/requirements.txt");
/// What is looked at in every answer.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance,negative_data_rejection,\
    missing_required_header,unsupported_method,allow_header_conformance,ignored_auth";
/// How long one caller's run may take.
const LIMIT: Duration = Duration::from_secs(240);
/// Requests made up for each operation, beyond those that the document's bounds ask for.
const EXAMPLES: &str = "12";

/// The installed program, or why there is none.
async fn program() -> Result<PathBuf, String> {
    let mut hasher = DefaultHasher::new();
    REQUIREMENTS.hash(&mut hasher);
    let test = std::env::current_exe().expect("a path");
    let beside = test.parent().and_then(Path::parent).expect("a directory");
    let home = beside.join(format!("schemathesis-{:016x}", hasher.finish()));
    let installed = home.join("installed");
    if !installed.exists() {
        let _gone = fs::remove_dir_all(&home);
        let requirements =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("schemathesis/requirements.txt");
        run(Command::new("python3").args(["-m", "venv"]).arg(&home)).await?;
        let pip = ["-m", "pip", "install", "--quiet", "--no-deps", "-r"];
        run(Command::new(home.join("bin/python"))
            .args(pip)
            .arg(&requirements))
        .await?;
        fs::write(&installed, "").expect("write");
    }
    Ok(home.join("bin/schemathesis"))
}

/// Runs a command to its end; its output, if it failed.
async fn run(command: &mut Command) -> Result<(), String> {
    let output = timeout(LIMIT, command.kill_on_drop(true).output())
        .await
        .map_err(|_elapsed| format!("not within {LIMIT:?}: {command:?}"))?
        .map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_is_what_its_document_says_for_every_caller() {
    let schemathesis = match program().await {
        Ok(program) => program,
        Err(why) if std::env::var_os("CI").is_none() => {
            eprintln!("skipped: schemathesis cannot be installed here: {why}");
            return;
        }
        Err(why) => panic!("schemathesis cannot be installed: {why}"),
    };
    let app = App::with(Options {
        workers: 0,
        ..Options::default()
    })
    .await;
    let known = [Who::Key, Who::User, Who::OrgAdmin, Who::SuperAdmin];
    let runs = known.map(|who| {
        let (app, schemathesis) = (&app, &schemathesis);
        async move {
            let player = Player::new(&app.context, app.carrier.url(), who, who.word()).await;
            let things = player.things(app).await;
            // Made-up ids are nobody's; with some real ones, answers are more than 404.
            let parameters: String = things
                .iter()
                .map(|(name, id)| format!("\"path.{name}\" = \"{id}\"\n"))
                .collect();
            let config = app.directory().join(format!("{}.toml", who.word()));
            fs::write(&config, format!("[parameters]\n{parameters}")).expect("write");
            let (name, value) = player.credential().expect("a credential");
            let mut command = Command::new(schemathesis);
            command
                .current_dir(app.directory())
                .arg("--config-file")
                .arg(&config)
                .args(["run", &format!("{}/openapi.json", app.url)])
                .args(["--header", &format!("{name}: {value}")])
                .args(["--phases", "examples,coverage,fuzzing"])
                .args(["--checks", CHECKS, "--max-examples", EXAMPLES])
                .args(["--seed", "1", "--generation-database", "none"])
                .args(["--request-timeout", "20", "--warnings", "off"])
                // It ends with its batch, an hour from here.
                .args(["--exclude-operation-id", "batches_events"]);
            run(&mut command)
                .await
                .map_err(|why| format!("as {}:\n{why}", who.word()))
        }
    });
    let ended = futures::future::join_all(runs).await;
    let failed: Vec<String> = ended.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    app.finish().await;
}
