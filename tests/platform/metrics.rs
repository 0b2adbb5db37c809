//! Metrics: counters and gauges match the carrier's log and the database.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use peal_simulator::{FaultChance, Faults};
use peal_worker::Role;
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::harness::app::{App, AppOptions, TEST_TIMEOUT, carrier_where_all_answer, send_request};
use crate::harness::eventually;
use crate::harness::scrape::{MetricsServer, MetricsSnapshot, serve_metrics};

fn to_f64(count: u64) -> f64 {
    u32::try_from(count).expect("a small number").into()
}

async fn count_rows(app: &App, sql: &'static str) -> f64 {
    to_f64(u64::try_from(app.count(sql).await).expect("a count"))
}

/// Scrapes until a condition holds.
async fn scrape_until(
    shown: &MetricsServer,
    description: &str,
    condition: impl Fn(&MetricsSnapshot) -> bool,
) -> MetricsSnapshot {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        let metrics = shown.scrape().await;
        if condition(&metrics) {
            return metrics;
        }
        let text = &metrics.text;
        assert!(Instant::now() < deadline, "not yet: {description}\n{text}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// True when all sampled values are present; sampling a busy database times out.
fn has_samples(seen: &MetricsSnapshot) -> bool {
    seen.get("peal_sample_up") == Some(1.0)
        && seen.get("peal_redis_up") == Some(1.0)
        && seen.sum("peal_database_wait_seconds_count", &["pool=\"main\""]) > 0.0
}

/// An app with a completed campaign whose carrier failed some requests.
async fn completed_campaign() -> App {
    let mut carrier = carrier_where_all_answer();
    carrier.behavior.mix = peal_simulator::OutcomeMix::default();
    let app = App::start_with(AppOptions {
        carrier,
        ..AppOptions::default()
    })
    .await;
    app.carrier.set_faults(Faults {
        refuse_429: FaultChance::next(2),
        drop_after: FaultChance::next(1),
        ..Faults::default()
    });
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 80).await;
    app.start_batch(&batch).await;
    app.wait_for_status(&batch, "completed").await;
    app.drain().await;
    app
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_metrics_match_the_carrier_and_the_database() {
    let app = completed_campaign().await;
    let shown = serve_metrics(&app.worker_contexts[0]).await;
    let oracle = app.carrier.oracle();
    let events = count_rows(&app, "select count(*) from call_events").await;
    let ends = count_rows(&app, "select count(outcome) from calls").await;
    // A worker counts after its commits, so wait for the counters.
    let has_counted = |seen: &MetricsSnapshot| {
        has_samples(seen)
            && seen.sum("peal_dials_total", &[]) == to_f64(oracle.creates)
            && seen.sum("peal_applied_events_sum", &[]) == events
            && seen.sum("peal_calls_ended_total", &[]) == ends
    };
    let seen = scrape_until(&shown, "all is counted", has_counted).await;

    let trunk = format!("trunk=\"{}\"", app.tenant.trunk);
    let dials = |result: &str| seen.sum("peal_dials_total", &[&trunk, result]);
    let verdict = |name: &str| to_f64(oracle.verdicts.get(name).copied().unwrap_or(0));
    assert_eq!(dials(""), to_f64(oracle.creates));
    assert_eq!(dials("accepted"), verdict("accepted"));
    assert_eq!(dials("unknown"), verdict("accepted_then_dropped"));
    assert_eq!((dials("unknown"), dials("deferred")), (1.0, 2.0));

    let outcomes: Vec<(String, i64)> =
        sqlx::query_as("select outcome, count(*) from calls where outcome is not null group by 1")
            .fetch_all(&app.context.pool)
            .await
            .unwrap();
    assert!(
        outcomes.len() > 1,
        "one outcome proves little: {outcomes:?}"
    );
    for (outcome, calls) in outcomes {
        let label = format!("outcome=\"{outcome}\"");
        let ended = seen.sum("peal_calls_ended_total", &[&label]);
        assert_eq!(ended, to_f64(calls.unsigned_abs()), "{label}");
    }

    let used = dials("");
    let granted = seen.sum("peal_slots_granted_total", &[&trunk]);
    let burned = seen.sum("peal_slots_burned_total", &[&trunk]);
    assert!(granted >= used + burned, "{granted} < {used} + {burned}");
    let late = seen.sum("peal_slot_lateness_seconds_count", &[]);
    assert!((used..=used + burned).contains(&late), "{late}");
    let in_time = seen.sum("peal_slot_lateness_seconds_bucket", &["le=\"0.01\""]);
    assert!(in_time <= late && in_time >= used - 1.0, "{in_time}");
    let claimed = count_rows(&app, "select sum(submit_count)::bigint from calls").await;
    assert_eq!(seen.sum("peal_claimed_calls_sum", &[]), claimed);

    assert_eq!(seen.get("peal_events_unapplied"), Some(0.0));
    assert_eq!(seen.sum("peal_calls_live", &[]), 0.0);
    assert_eq!(seen.sum("peal_trunk_pace", &[&trunk]), 200.0);
    assert_eq!(seen.sum("peal_trunk_active", &[&trunk]), 1.0);
    assert!(seen.get("process_resident_memory_bytes") > Some(1e6));
    let open = "peal_database_connections{pool=\"main\",state=\"open\"}";
    assert!(seen.get(open) >= Some(1.0), "{}", seen.text);
    assert_eq!(shown.status("/").await, 404);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_metrics_match_the_requests() {
    let app = completed_campaign().await;
    let path = "/callbacks/{trunk}/{call}/{token}/answer";
    let (trunk, call): (
        peal_shared::platform::ids::TrunkId,
        peal_shared::platform::ids::CallId,
    ) = sqlx::query_as("select trunk_id, id from calls limit 1")
        .fetch_one(&app.context.pool)
        .await
        .unwrap();
    let token = app.context.config.keys.call_token(trunk, call);
    let unsigned = format!("/callbacks/{trunk}/{call}/{token}/answer");
    let refused = send_request(app.anonymous(Method::POST, &unsigned)).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "{}", refused.text);

    let seen = serve_metrics(&app.context).await.scrape().await;

    let oracle = app.carrier.oracle();
    let callbacks = |kind: &str, status: &str| {
        let (kind, status) = (format!("kind=\"{kind}\""), format!("status=\"{status}\""));
        seen.sum("peal_callback_seconds_count", &[&kind, &status])
    };
    assert_eq!(callbacks("status", "2xx"), to_f64(oracle.callbacks.sent));
    assert_eq!(callbacks("answer", "2xx"), to_f64(oracle.documents.answers));
    assert_eq!(callbacks("answer", "4xx"), 1.0);
    assert_eq!(
        seen.get("peal_callback_signatures_refused_total"),
        Some(1.0)
    );

    let route = format!("route=\"{path}\"");
    let of_route = seen.sum("peal_http_requests_total", &[&route]);
    assert_eq!(of_route, callbacks("answer", "2xx") + 1.0);
    let upsert = "route=\"/api/v1/batch-call/{batch_id}/data/upsert\"";
    let upserts = seen.sum("peal_http_requests_total", &[upsert, "status=\"2xx\""]);
    assert_eq!(upserts, 1.0, "{}", seen.text);
    let appended = "select count(*) from call_events where source in ('callback', 'answer')";
    assert_eq!(
        seen.sum("peal_appended_events_sum", &[]),
        count_rows(&app, appended).await
    );
    assert_eq!(seen.sum("peal_http_shed_total", &[]), 0.0);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_are_shown_and_a_locked_table_hides_only_its_sample() {
    let mut app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 1).await;
    app.start_batch(&batch).await;
    let shown = serve_metrics(&app.context).await;
    let seen = scrape_until(&shown, "the database is looked at", has_samples).await;
    let ready = "peal_queue_jobs{queue=\"control\",state=\"ready\"}";
    assert_eq!(seen.get(ready), Some(1.0), "{}", seen.text);
    assert!(seen.get("peal_queue_oldest_seconds{queue=\"control\"}") > Some(0.0));

    app.start_worker(&Role::ALL).await;
    app.wait_for_status(&batch, "completed").await;
    app.drain().await;
    app.stop_workers().await;

    let mut lock = app.context.callback_pool.begin().await.unwrap();
    sqlx::query("set local idle_in_transaction_session_timeout = 0")
        .execute(&mut *lock)
        .await
        .unwrap();
    sqlx::query("lock table jobs in access exclusive mode")
        .execute(&mut *lock)
        .await
        .unwrap();

    // Every scrape succeeds while the lock is held.
    let sample_is_gone = || async {
        let scrape = timeout(TEST_TIMEOUT, shown.scrape()).await;
        let seen = scrape.expect("an answer in spite of the lock");
        assert!(seen.sum("peal_http_requests_total", &[]) > 0.0);
        seen.get("peal_sample_up") == Some(0.0) && seen.get(ready).is_none()
    };
    eventually("the sample is gone", TEST_TIMEOUT, sample_is_gone).await;

    lock.rollback().await.unwrap();
    let sample_is_back = || async { shown.scrape().await.get("peal_sample_up") == Some(1.0) };
    eventually("the sample is back", TEST_TIMEOUT, sample_is_back).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_and_the_dashboard_name_exactly_the_exported_metrics() {
    let app = completed_campaign().await;
    let mut shown: BTreeMap<String, String> = BTreeMap::new();

    for context in [&app.context, &app.worker_contexts[0]] {
        let page = serve_metrics(context).await;
        let seen = scrape_until(&page, "everything is looked up", has_samples).await;
        let types = seen.text.lines().filter_map(|line| {
            let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
            Some((name.to_owned(), kind.to_owned()))
        });
        shown.extend(types);
    }

    app.finish().await;
    let series: BTreeSet<String> = shown
        .iter()
        .flat_map(|(name, kind)| match kind.as_str() {
            "counter" => vec![format!("{name}_total")],
            "histogram" => ["", "_bucket", "_sum", "_count"]
                .map(|of| format!("{name}{of}"))
                .into(),
            _ => vec![name.clone()],
        })
        .collect();

    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect(path);

    let (dashboard, readme) = (read("deploy/grafana/peal.json"), read("deploy/README.md"));
    for text in [&dashboard, &readme] {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let names = words.filter(|word| {
            // API keys in examples and database roles have the same prefix.
            word.starts_with("peal_")
                && !word.starts_with("peal_live_")
                && !["peal_system", "peal_tenant"].contains(word)
        });
        let unknown: Vec<_> = names.filter(|name| !series.contains(*name)).collect();
        assert!(unknown.is_empty(), "named but not shown: {unknown:?}");
    }

    for (name, kind) in &shown {
        let total = if kind == "counter" { "_total" } else { "" };
        let short = name.trim_start_matches("peal_trunk");
        let names = [format!("`{name}{total}`"), format!("`{short}`")];
        assert!(
            names.iter().any(|name| readme.contains(name)),
            "the readme does not name {name}"
        );
    }
}
