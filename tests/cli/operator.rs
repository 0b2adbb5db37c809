//! The commands of `peal-api admin`, as an operator types them.

use std::process::Output;

use peal_shared::platform::ids::{JobId, TrunkId};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::app::{App, AppOptions};
use crate::harness::cluster::{built_program, process_env};
use crate::harness::env_setting;

async fn quiet() -> App {
    App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await
}

/// Runs `peal-api admin` with these words on the app's database.
async fn run_admin(app: &App, words: &[&str]) -> Output {
    let redis_url = env_setting("PEAL_TEST_REDIS_URL");
    // Commands listen nowhere.
    let listen = "127.0.0.1:8080";

    Command::new(built_program("peal-api"))
        .arg("admin")
        .args(words)
        .envs(process_env(
            app.program_url(),
            &redis_url,
            listen,
            app.directory(),
        ))
        .env("PEAL_REDIS_PREFIX", &app.context.config.redis_prefix)
        .output()
        .await
        .expect("run")
}

/// Runs a command that succeeds; returns its lines.
async fn admin(app: &App, words: &[&str]) -> Vec<Value> {
    let output = run_admin(app, words).await;
    assert!(output.status.success(), "{words:?}: {output:?}");

    let printed = String::from_utf8(output.stdout).expect("text");
    let lines = printed.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().expect("an object per line")
}

/// Runs a command that is refused; returns the reason.
async fn refused(app: &App, words: &[&str]) -> String {
    let output = run_admin(app, words).await;
    assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).expect("text")
}

async fn execute(app: &App, sql: &'static str) {
    sqlx::query(sql)
        .execute(&app.context.pool)
        .await
        .expect(sql);
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_are_listed_paused_and_resumed() {
    let app = quiet().await;
    let paused = async || {
        let queues = admin(&app, &["queue", "list"]).await;
        assert_eq!(queues.len(), 4);
        let mail = queues.iter().find(|queue| queue["queue"] == "mail");
        !mail.expect("the queue")["paused_at"].is_null()
    };
    assert!(!paused().await);

    let printed = admin(&app, &["queue", "pause", "mail"]).await;
    assert!(printed.is_empty(), "{printed:?}");
    assert!(paused().await);

    admin(&app, &["queue", "resume", "mail"]).await;
    assert!(!paused().await);

    let reason = refused(&app, &["queue", "pause", "post"]).await;
    assert!(reason.contains("unknown queue \"post\": choose from control"));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_jobs_are_listed_and_retried() {
    let app = quiet().await;
    execute(
        &app,
        "insert into jobs (id, queue, kind, args, state, attempts, max_attempts, last_error, finished_at)
         values (gen_random_uuid(), 'mail', 'send_email', '{}', 'dead', 3, 3, 'a test', now())",
    )
    .await;

    let dead = admin(&app, &["job", "list"]).await;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0]["why"], "a test");
    let id = dead[0]["id"].as_str().expect("an id");

    admin(&app, &["job", "retry", id]).await;
    let ready = "select count(*) from jobs where state = 'ready' and attempts = 0";
    assert_eq!(app.count(ready).await, 1);
    assert!(admin(&app, &["job", "list"]).await.is_empty());

    // The job is no longer dead, and another does not exist.
    refused(&app, &["job", "retry", id]).await;
    refused(&app, &["job", "retry", &JobId::new().to_string()]).await;

    execute(&app, "delete from jobs").await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_trunk_is_listed_and_resumed() {
    let app = quiet().await;
    execute(
        &app,
        "update trunks set status = 'paused', status_reason = 'a test'",
    )
    .await;

    let trunks = admin(&app, &["trunk", "list"]).await;
    assert_eq!(trunks.len(), 1, "{trunks:?}");
    assert_eq!(trunks[0]["status_reason"], "a test");

    admin(&app, &["trunk", "resume", &app.tenant.trunk.to_string()]).await;
    let trunks = admin(&app, &["trunk", "list"]).await;
    assert_eq!(trunks[0]["status"], "active");

    refused(&app, &["trunk", "resume", &TrunkId::new().to_string()]).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caller_numbers_are_listed_with_their_organisation_and_trunk() {
    let app = quiet().await;

    let numbers = admin(&app, &["number", "list"]).await;
    assert_eq!(numbers.len(), 1, "{numbers:?}");
    assert_eq!(numbers[0]["id"], json!(app.tenant.phone));
    assert_eq!(numbers[0]["org_id"], json!(app.tenant.org));
    assert_eq!(numbers[0]["organization"], "Acme");
    assert_eq!(numbers[0]["trunk_id"], json!(app.tenant.trunk));

    execute(
        &app,
        "update phone_numbers set is_active = false, deleted_at = now()",
    )
    .await;
    assert!(admin(&app, &["number", "list"]).await.is_empty());
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wallets_are_listed_and_a_consistent_ledger_prints_nothing() {
    let app = quiet().await;

    let wallets = admin(&app, &["wallet", "list"]).await;
    assert_eq!(wallets.len(), 1, "{wallets:?}");
    assert_eq!(wallets[0]["organization"], "Acme");
    assert_eq!(wallets[0]["balance_usd"], wallets[0]["available_usd"]);

    let violations = admin(&app, &["ledger", "verify"]).await;
    assert!(violations.is_empty(), "{violations:?}");
    app.finish().await;
}
