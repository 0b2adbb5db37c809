//! Nothing personal and nothing secret leaves its place: not into logs, not into jobs, not into
//! Redis, not into metrics.

use std::io::Write;
use std::sync::{Arc, Mutex};

use peal_shared::ids::{CallId, TrunkId};
use peal_simulator::{Chance, Faults};
use serde_json::json;

use crate::harness::app::{AUTH_TOKEN, App, PATIENCE, number};
use crate::harness::scrape::show;
use crate::harness::{eventually, setting};

/// Everything that was logged.
#[derive(Clone, Default)]
struct Logs(Arc<Mutex<Vec<u8>>>);

impl Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("logs").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_number_name_key_or_token_is_logged_queued_shown_or_put_into_redis() {
    let logs = Logs::default();
    let writer = logs.clone();
    tracing_subscriber::fmt()
        .with_env_filter("warn,peal_api=trace,peal_worker=trace,peal_shared=trace")
        .with_writer(move || writer.clone())
        .init();
    let app = App::start().await;
    // Rough weather, so that the paths that complain are walked too.
    app.carrier.set_faults(Faults {
        refuse_429: Chance::next(2),
        drop_after: Chance::next(2),
        callbacks_duplicated: Chance::Rate(0.5),
        ..Faults::default()
    });
    let batch = app.create_batch(json!({})).await;
    let mut csv = String::from("to_phonenumber,name\n");
    for n in 0..20 {
        csv.push_str(&format!("{},Canary{n}\n", number(n)));
    }
    csv.push_str("+1212555000000000,Canary99\n");
    app.upload(&batch, &csv).await;
    app.post(
        "/api/call/create_call?phoneNumber=%2B121255&agent_id=00000000-0000-7000-8000-000000000000",
        json!({}),
    )
    .await
    .expect(422);
    app.start_batch(&batch).await;
    app.wait_for(&batch, "completed").await;
    let jobs = "select count(*) from jobs where args::text ~ '[0-9]{9,}(?![0-9a-f-])' or args::text like '%Canary%'";
    assert_eq!(app.count(jobs).await, 0);

    let kept = in_redis(&app).await;
    let shown = in_metrics(&app).await;
    let written = || async { !logs.0.lock().expect("logs").is_empty() };
    eventually("something is logged", PATIENCE, written).await;
    let logged = String::from_utf8_lossy(&logs.0.lock().expect("logs")).into_owned();
    assert!(
        logged.contains("place") || logged.contains("batch completed"),
        "the logs were not captured"
    );
    let mut secrets = vec![
        "Canary".to_owned(),
        AUTH_TOKEN.to_owned(),
        app.tenant.api_key.clone(),
        "+12125550100".to_owned(),
        "1212555000000000".to_owned(),
    ];
    secrets.extend(call_tokens(&app).await);
    secrets.extend((0..20).map(|n| number(n).trim_start_matches('+').to_owned()));
    for secret in secrets {
        for (place, text) in [("the logs", &logged), ("Redis", &kept), ("metrics", &shown)] {
            let line = text.lines().find(|line| line.contains(&secret));
            assert!(
                line.is_none(),
                "{place} hold {secret}: {}",
                line.unwrap_or_default()
            );
        }
    }
    app.finish().await;
}

/// What every process shows of itself. Labels name no call, no batch and no organisation.
async fn in_metrics(app: &App) -> String {
    let mut shown = String::new();
    for context in app.worker_contexts.iter().chain([&app.context]) {
        shown.push_str(&show(context).await.scrape().await.text);
    }
    for series in ["peal_dials_total{", "peal_callback_seconds_count{"] {
        assert!(shown.contains(series), "{series} is not shown");
    }
    let ids: Vec<uuid::Uuid> = sqlx::query_scalar(
        "select id from calls union all select id from call_batches union all select id from organizations",
    )
    .fetch_all(&app.context.pool)
    .await
    .expect("ids");
    for id in ids {
        assert!(!shown.contains(&id.to_string()), "metrics name {id}");
    }
    shown
}

/// The tokens in the addresses of calls.
async fn call_tokens(app: &App) -> Vec<String> {
    let calls: Vec<(CallId, TrunkId)> = sqlx::query_as("select id, trunk_id from calls")
        .fetch_all(&app.context.pool)
        .await
        .expect("calls");
    let keys = &app.context.config.keys;
    let tokens = calls
        .iter()
        .map(|(call, trunk)| keys.call_token(*trunk, *call));
    tokens.collect()
}

/// Every key and value that this installation has put into Redis.
async fn in_redis(app: &App) -> String {
    let client = redis::Client::open(setting("PEAL_TEST_REDIS_URL")).expect("url");
    let mut connection = client
        .get_multiplexed_async_connection()
        .await
        .expect("redis");
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(format!("{}*", app.context.config.redis_prefix))
        .query_async(&mut connection)
        .await
        .expect("keys");
    let mut kept = keys.join(" ");
    for key in &keys {
        let list: Vec<String> = redis::cmd("LRANGE")
            .arg(key)
            .arg(0)
            .arg(-1)
            .query_async(&mut connection)
            .await
            .expect("a list");
        kept.push_str(&list.join(" "));
    }
    kept
}
