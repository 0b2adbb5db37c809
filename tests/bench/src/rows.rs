//! The rows of the table.

use std::sync::Arc;
use std::time::{Duration, Instant};

use peal_shared::telephony::{Account, Carriers, Credentials, NewCall, Placement};
use peal_simulator::{Config as Carrier, Faults, Simulator};
use serde_json::json;
use sqlx::Executor;
use sqlx::postgres::PgPoolCopyExt;

use crate::Row;
use crate::harness::app::{ACCOUNT, AUTH_TOKEN, App, Options, everybody_answers, number, people};

/// How long a campaign may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Rows of a campaign; `PEAL_BENCH_ROWS` changes it.
pub fn scale() -> u32 {
    std::env::var("PEAL_BENCH_ROWS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(5_000)
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people to read")]
fn per_second(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// A carrier without fates by suffix, whose callees talk for a moment.
fn carrier(latency_ms: u64) -> Carrier {
    let mut carrier = everybody_answers();
    carrier.keep_callbacks = false;
    carrier.behavior.suffixes.clear();
    carrier.faults = Faults {
        create_latency_ms: latency_ms,
        ..Faults::default()
    };
    carrier
}

fn options(latency_ms: u64) -> Options {
    Options {
        cps: 5_000,
        max_concurrent: 5_000,
        carrier: carrier(latency_ms),
        ..Options::default()
    }
}

async fn campaign(app: &App, count: u32) -> anyhow::Result<Duration> {
    sqlx::query("update organizations set max_concurrent_calls = 100000")
        .execute(&app.context.pool)
        .await?;
    let batch = app.create_batch(json!({"batch_size": 1000})).await;
    app.upload(&batch, &people(count)).await;
    let start = Instant::now();
    app.start_batch(&batch).await;
    while app.status(&batch).await["batch"]["status"] != "completed" {
        anyhow::ensure!(start.elapsed() < PATIENCE, "the campaign does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(start.elapsed())
}

/// A list of people into a batch, beside COPY into staging and one INSERT..SELECT into the same
/// table.
pub async fn ingest(count: u32) -> anyhow::Result<Row> {
    let count = count.saturating_mul(10).min(80_000);
    let app = App::start().await;
    let (ours, limit) = (
        app.create_batch(json!({})).await,
        app.create_batch(json!({})).await,
    );
    let csv = people(count);
    let start = Instant::now();
    let ingest = app.upload(&ours, &csv).await;
    let took = start.elapsed();
    anyhow::ensure!(ingest["inserted"] == json!(count), "{ingest}");
    let pool = &app.context.pool;
    pool.execute("create unlogged table staging (number text, name text)")
        .await?;
    let start = Instant::now();
    let mut copy = pool
        .copy_in_raw("copy staging from stdin (format csv, header)")
        .await?;
    copy.send(csv.as_bytes()).await?;
    copy.finish().await?;
    sqlx::query(
        "insert into batch_data (id, org_id, batch_id, row_no, to_phonenumber, variable_values)
         select gen_random_uuid(), b.org_id, b.id, row_number() over (), s.number, jsonb_build_object('name', s.name)
         from staging s, call_batches b
         where b.id = $1::uuid",
    )
    .bind(&limit)
    .execute(pool)
    .await?;
    let bare = start.elapsed();
    app.finish().await;
    Ok(Row {
        what: "ingest",
        measured: format!("{:.0} rows/s", per_second(count.into(), took)),
        limit: format!(
            "COPY + INSERT..SELECT {:.0} rows/s",
            per_second(count.into(), bare)
        ),
        ratio: Some(bare.as_secs_f64() / took.as_secs_f64()),
    })
}

/// Calls created per second by one worker, beside the same client in a bare loop.
pub async fn placing(count: u32, latency_ms: u64) -> anyhow::Result<Row> {
    // A carrier of its own: the calls of the loop have nobody to answer them.
    let alone = Simulator::start(carrier(latency_ms)).await?;
    let bare = bare_creates(alone.url(), count.min(3_000)).await?;
    alone.stop().await;
    let app = App::with(options(latency_ms)).await;
    campaign(&app, count).await?;
    let seen = app.carrier.creates();
    let span = seen
        .last()
        .zip(seen.first())
        .map_or(0, |(last, first)| last.unix_micros - first.unix_micros);
    let rate = per_second(u64::try_from(seen.len())?, Duration::from_micros(span));
    app.finish().await;
    Ok(Row {
        what: if latency_ms == 0 {
            "placing, carrier answers at once"
        } else {
            "placing, carrier takes 150 ms"
        },
        measured: format!("{rate:.0} calls/s"),
        limit: format!("bare client {bare:.0} creates/s"),
        ratio: Some(rate / bare),
    })
}

async fn bare_creates(url: &str, count: u32) -> anyhow::Result<f64> {
    let account = Arc::new(Account {
        kind: peal_shared::telephony::CarrierKind::Twilio,
        account_id: ACCOUNT.to_owned(),
        credentials: Credentials {
            username: None,
            password: AUTH_TOKEN.into(),
            signing_secrets: Vec::new(),
        },
        api_base_url: Some(url.parse()?),
    });
    let carriers = Carriers::new()?;
    let start = Instant::now();
    let mut requests = tokio::task::JoinSet::new();
    for n in 0..count {
        let nowhere: reqwest::Url = "http://127.0.0.1:9/".parse()?;
        let call = NewCall {
            to: number(50_000 + n).parse()?,
            from: number(1).parse()?,
            answer_url: format!("http://127.0.0.1:9/{n}").parse()?,
            status_url: nowhere,
            machine_detection_url: None,
            recording_url: None,
            ring_timeout_secs: 30,
            max_duration_secs: 60,
        };
        let (carriers, account) = (carriers.clone(), Arc::clone(&account));
        requests.spawn(async move {
            let placement = carriers.of(account.kind).create(&account, &call).await;
            matches!(placement, Placement::Accepted { .. })
        });
        if requests.len() >= 512 {
            anyhow::ensure!(
                requests.join_next().await.transpose()? == Some(true),
                "a create was not accepted"
            );
        }
    }
    while let Some(accepted) = requests.join_next().await {
        anyhow::ensure!(accepted?, "a create was not accepted");
    }
    Ok(per_second(count.into(), start.elapsed()))
}

/// Whole lives of calls, four events each, and what they cost the database.
pub async fn pipeline(count: u32) -> anyhow::Result<Row> {
    let app = App::with(options(0)).await;
    let transactions = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()";
    let before = app.count(transactions).await;
    let took = campaign(&app, count).await?;
    // The statistics follow within a second.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let spent = app.count(transactions).await - before;
    let first: f64 = sqlx::query_scalar(
        "select extract(epoch from (select min(submitted_at) from calls) - started_at)::float8 from call_batches",
    )
    .fetch_one(&app.context.pool)
    .await?;
    app.finish().await;
    let each = f64::from(u32::try_from(spent)?) / f64::from(count);
    Ok(Row {
        what: "whole pipeline",
        measured: format!(
            "{:.0} completed calls/s, {each:.2} transactions a call, first claim after {:.0} ms",
            per_second(count.into(), took),
            first * 1000.0
        ),
        limit: "300 calls/s, 1 transaction a call, 500 ms".to_owned(),
        ratio: Some(per_second(count.into(), took) / 300.0),
    })
}

/// The worst second at the carrier with four workers, beside what the trunk allows.
pub async fn pacing(cps: u32) -> anyhow::Result<Row> {
    let app = App::with(Options {
        cps: cps.into(),
        workers: 4,
        max_concurrent: 5_000,
        carrier: carrier(0),
        ..Options::default()
    })
    .await;
    campaign(&app, cps * 15).await?;
    let oracle = app.carrier.oracle();
    app.finish().await;
    Ok(Row {
        what: match cps {
            10 => "pacing at 10/s, 4 workers",
            50 => "pacing at 50/s, 4 workers",
            _ => "pacing at 200/s, 4 workers",
        },
        measured: format!(
            "worst second {}, {:.1}/s on average",
            oracle.worst_window.count, oracle.mean_rate
        ),
        limit: format!("{cps}/s"),
        ratio: Some(oracle.mean_rate / f64::from(cps)),
    })
}
