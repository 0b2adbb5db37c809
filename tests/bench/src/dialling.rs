//! Rows about dialling: placing, pacing, time from a start to its first call, whole pipeline.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use peal_simulator::{FaultChance, Simulator};
use serde_json::json;

use crate::load::per_second;
use crate::report::{BenchRow, ResultBound};
use crate::stack::{ALL_ROLES, Installation, carrier_config};
use crate::{BenchScale, limits};

/// Calls per second above what can be dialled, so that the pacer is not the limit.
const UNLIMITED_CPS: i64 = 5_000;
/// Required ratio of one worker's rate to that of a bare loop.
const MIN_PLACING_RATIO: f64 = 0.5;
const MIN_SLOW_CARRIER_RATE: f64 = 500.0;
const PACING_WORKERS: usize = 4;
const MIN_PACING_USE: f64 = 0.95;
const MAX_FIRST_DIAL_MS: f64 = 500.0;

/// Calls per second of one dialling worker, next to the same HTTP client in a bare loop. The
/// carrier posts nothing after its response, so that the worker has no other load.
pub async fn placing(scale: &BenchScale, latency_ms: u64) -> anyhow::Result<BenchRow> {
    let mut silent = carrier_config(latency_ms);
    silent.speed = 1.0;
    silent.faults.callbacks_lost = FaultChance::Rate(1.0);
    silent.faults.suppress_answer = FaultChance::Rate(1.0);

    // 1. The limit, on a fresh carrier.
    let bare = if latency_ms == 0 {
        let alone = Simulator::start(silent.clone()).await?;
        let rate = limits::creates(alone.url(), scale.campaign).await?;
        alone.stop().await;
        Some(rate)
    } else {
        None
    };

    // 2. Launched batches without a dialling worker.
    let mut stack = Installation::start(UNLIMITED_CPS, silent).await?;
    stack.start_worker("inbox,ingest,misc")?;
    for batch in stack.batches(0, scale.campaign).await {
        stack.client.start_batch(&batch).await;
    }
    stack
        .until("all batches are launched", async || {
            let waiting = "select count(*) from call_batches where launched_at is null";
            Ok(stack.count(waiting).await? == 0)
        })
        .await?;

    // 3. One dialling worker.
    stack.start_worker("dial")?;
    let meter = stack.watched_processes().meter();
    stack
        .until("every row is dialled", async || {
            Ok(stack.carrier.oracle().accepted >= u64::from(scale.campaign))
        })
        .await?;
    let spent = meter.read();
    let rate = stack.carrier.oracle().mean_rate;
    let burned = stack.count_in_worker_logs("slot burned");
    stack.kill().await?;

    let (what, bound) = match bare {
        Some(bare) => (
            "placing, carrier answers at once, one worker",
            ResultBound::at_least("ratio", rate / bare, MIN_PLACING_RATIO, ""),
        ),
        None => (
            "placing, carrier takes 150 ms, one worker",
            ResultBound::at_least("calls/s", rate, MIN_SLOW_CARRIER_RATE, ""),
        ),
    };
    Ok(BenchRow {
        label: what.to_owned(),
        measured: format!("{rate:.0} calls/s"),
        limit: bare.map(|bare| format!("the same HTTP client in a bare loop: {bare:.0}/s")),
        ratio: bare.map(|bare| rate / bare),
        bounds: vec![bound],
        cpu: spent,
        details: json!({"calls": scale.campaign, "slots_burned": burned}),
    })
}

/// The worst second at the carrier with four workers, and the used share of the limit.
pub async fn pacing(scale: &BenchScale, cps: u32) -> anyhow::Result<BenchRow> {
    let mut stack = Installation::start(cps.into(), carrier_config(0)).await?;
    for _ in 0..PACING_WORKERS {
        stack.start_worker(ALL_ROLES)?;
    }

    let calls = cps * scale.pacing_secs;
    let meter = stack.watched_processes().meter();
    stack.campaign(calls).await?;
    let spent = meter.read();
    let oracle = stack.carrier.oracle();
    let creates = stack.carrier.creates();
    let burned = stack.count_in_worker_logs("slot burned");
    let rejected = stack.count_in_worker_logs("slots burned");
    stack.stop().await?;

    let used = oracle.mean_rate / f64::from(cps);
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    let worst = oracle.worst_window.count as f64;

    let span = Duration::from_micros(
        creates
            .last()
            .zip(creates.first())
            .map_or(0, |(last, first)| last.at_micros - first.at_micros),
    );
    let slots = span.as_secs_f64() * f64::from(cps) / 1.04 + 1.0;

    Ok(BenchRow {
        label: format!("pacing at {cps}/s, {PACING_WORKERS} workers"),
        measured: format!(
            "worst second {worst:.0}, {:.1}/s on average ({:.1} %)",
            oracle.mean_rate,
            used * 100.0
        ),
        limit: Some(format!("{cps}/s")),
        ratio: Some(used),
        bounds: vec![
            ResultBound::at_most("worst second", worst, cps.into(), ""),
            ResultBound::at_least("use", used, MIN_PACING_USE, ""),
        ],
        cpu: spent,
        details: json!({
            "calls": creates.len(),
            "seconds": span.as_secs_f64(),
            // The pacer keeps slots 4 % apart, so at most 96.2 % can be used.
            "slots_in_that_time": slots.round(),
            "slots_burned_late": burned,
            "leases_not_believed": rejected,
        }),
    })
}

/// Time from the request that starts a batch to the first create at the carrier.
pub async fn first_dial(scale: &BenchScale) -> anyhow::Result<BenchRow> {
    let mut stack = Installation::start(50, carrier_config(0)).await?;
    stack.start_worker(ALL_ROLES)?;
    let mut took = Vec::new();
    let meter = stack.watched_processes().meter();
    for n in 0..scale.starts {
        let batches = stack.batches(n * 10, 10).await;
        if n % 2 == 1 {
            // Long enough for the trunk's dialler to have stopped.
            tokio::time::sleep(Duration::from_secs(7)).await;
        }

        let seen = stack.carrier.creates().len();
        let (requested, begin) = (SystemTime::now(), Instant::now());
        for batch in &batches {
            stack.client.start_batch(batch).await;
        }
        stack
            .until("the batch ends", async || {
                let open = "select count(*) from call_batches where status <> 'completed'";
                Ok(stack.count(open).await? == 0)
            })
            .await?;

        let creates = stack.carrier.creates();
        let first = creates
            .get(seen)
            .map_or(u64::MAX, |create| create.unix_micros);
        let requested = requested.duration_since(UNIX_EPOCH)?;
        let wait = Duration::from_micros(first).saturating_sub(requested);
        anyhow::ensure!(wait < begin.elapsed(), "the carrier received no create");
        took.push(wait.as_secs_f64() * 1000.0);
    }

    let spent = meter.read();
    stack.stop().await?;
    took.sort_unstable_by(f64::total_cmp);
    let median = took.get(took.len() / 2).copied().unwrap_or(f64::NAN);
    let worst = took.last().copied().unwrap_or(f64::NAN);

    Ok(BenchRow {
        label: format!("start to first dial, {} starts", scale.starts),
        measured: format!("median {median:.0} ms, worst {worst:.0} ms"),
        limit: None,
        ratio: None,
        bounds: vec![ResultBound::at_most(
            "worst",
            worst,
            MAX_FIRST_DIAL_MS,
            " ms",
        )],
        cpu: spent,
        details: json!({"milliseconds": took}),
    })
}

/// Whole calls with four events each, and their transactions in the database.
pub async fn pipeline(scale: &BenchScale) -> anyhow::Result<BenchRow> {
    // Rollbacks are not counted: they are the empty ones that pools send with a connection.
    let transactions =
        "select xact_commit from pg_stat_database where datname = current_database()";
    let mut stack = Installation::start(UNLIMITED_CPS, carrier_config(0)).await?;
    stack.start_worker(ALL_ROLES)?;
    let batches = stack.batches(0, scale.campaign).await;

    let before = stack.count(transactions).await?;
    let meter = stack.watched_processes().meter();
    for batch in &batches {
        stack.client.start_batch(batch).await;
    }
    stack
        .until("the campaign ends", async || {
            // The carrier counts, so the database has no extra load.
            let ended: u64 = stack.carrier.oracle().outcomes.values().sum();
            Ok(ended >= u64::from(scale.campaign))
        })
        .await?;
    stack
        .until("the batches complete", async || {
            let open = "select count(*) from call_batches where status <> 'completed'";
            Ok(stack.count(open).await? == 0)
        })
        .await?;

    let spent = meter.read();
    let took: f64 = sqlx::query_scalar(
        "select extract(epoch from max(completed_at) - min(started_at))::float8 from call_batches",
    )
    .fetch_one(&stack.database.pool)
    .await?;
    let burned = stack.count_in_worker_logs("slot burned");
    let callbacks = stack.carrier.oracle().callbacks;

    // A session reports its transactions when it ends; an idle one only seconds later.
    let database = stack.stop().await?;
    let after: i64 = sqlx::query_scalar(transactions)
        .fetch_one(&database.pool)
        .await?;

    let used = after - before;
    let rate = per_second(scale.campaign.into(), Duration::from_secs_f64(took));
    let each = f64::from(u32::try_from(used)?) / f64::from(scale.campaign);
    Ok(BenchRow {
        label: "whole pipeline, 4 events a call, one worker".to_owned(),
        measured: format!("{rate:.0} completed calls/s, {each:.2} transactions a call"),
        limit: None,
        ratio: None,
        bounds: vec![
            ResultBound::at_least("calls/s", rate, 300.0, ""),
            ResultBound::at_most("transactions a call", each, 1.0, ""),
        ],
        cpu: spent,
        details: json!({
            "calls": scale.campaign,
            "seconds": took,
            "slots_burned": burned,
            "callbacks": callbacks,
        }),
    })
}
