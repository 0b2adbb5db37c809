//! Sampled metrics, read on a scrape: the state of the database, the pools, Redis and memory. The
//! database is queried at most every few seconds, with a short statement timeout; while it does
//! not answer, its metrics are absent rather than old.
//!
//! Every replica exposes the same state of the database: aggregate it with `max`, not `sum`.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeGaugeValue, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use rust_decimal::prelude::ToPrimitive;
use sqlx::PgPool;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::{DURATION_BUCKETS, FloatGauge};
use crate::billing::settle;
use crate::platform::error::Result;
use crate::platform::queue;
use crate::platform::queue::wakeup::Wakeups;
use crate::telephony::CallStatus;
use crate::trunks;

/// Greatest age of the database's sample.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// Longest time of one sample, waits for locks and connections included.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(2);
/// Greatest count of unapplied events and unsettled calls.
const MAX_COUNTED_ROWS: i64 = 100_000;
/// The pools of a process.
const POOL_NAMES: [&str; 2] = ["main", "callbacks"];
/// Interval of the probes that measure the wait for a connection.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Sources of a sample: the process's pools, and its wakeups.
#[derive(Clone, Copy)]
pub(crate) struct SampleSources<'a> {
    pub pool: &'a PgPool,
    pub callbacks: &'a PgPool,
    pub wakeups: &'a Wakeups,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueStateLabels {
    queue: &'static str,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabel {
    queue: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SampledTrunkLabel {
    trunk: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    pool: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolStateLabels {
    pool: &'static str,
    state: &'static str,
}

/// Gauge that is absent while its value is unknown.
#[derive(Clone, Debug, Default)]
struct OptionalGauge<T>(Arc<Mutex<Option<T>>>);

impl<T> OptionalGauge<T> {
    fn set(&self, value: Option<T>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

impl<T: EncodeGaugeValue + Copy> EncodeMetric for OptionalGauge<T> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let value = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        value.map_or(Ok(()), |value| encoder.encode_gauge(&value))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// Sampled metrics.
#[derive(Debug)]
pub struct SampledMetrics {
    sampled_at: tokio::sync::Mutex<Option<Instant>>,
    up: Gauge,
    jobs: Family<QueueStateLabels, Gauge>,
    oldest_job: Family<QueueLabel, FloatGauge>,
    live: Family<StatusLabel, Gauge>,
    unapplied: OptionalGauge<i64>,
    oldest_event: OptionalGauge<f64>,
    unsettled: OptionalGauge<i64>,
    oldest_charge: OptionalGauge<f64>,
    trunk_calls: Family<SampledTrunkLabel, Gauge>,
    trunk_limit: Family<SampledTrunkLabel, Gauge>,
    trunk_pace: Family<SampledTrunkLabel, FloatGauge>,
    trunk_slowdown: Family<SampledTrunkLabel, FloatGauge>,
    trunk_active: Family<SampledTrunkLabel, Gauge>,
    connections: Family<PoolStateLabels, Gauge>,
    waits: Family<PoolLabel, Histogram, fn() -> Histogram>,
    failed_waits: Family<PoolLabel, Counter>,
    redis_up: OptionalGauge<i64>,
    dropped_wakeups: Counter,
    memory: OptionalGauge<i64>,
}

impl SampledMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let new = Self {
            sampled_at: tokio::sync::Mutex::default(),
            up: Gauge::default(),
            jobs: Family::default(),
            oldest_job: Family::default(),
            live: Family::default(),
            unapplied: OptionalGauge::default(),
            oldest_event: OptionalGauge::default(),
            unsettled: OptionalGauge::default(),
            oldest_charge: OptionalGauge::default(),
            trunk_calls: Family::default(),
            trunk_limit: Family::default(),
            trunk_pace: Family::default(),
            trunk_slowdown: Family::default(),
            trunk_active: Family::default(),
            connections: Family::default(),
            waits: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS)),
            failed_waits: Family::default(),
            redis_up: OptionalGauge::default(),
            dropped_wakeups: Counter::default(),
            memory: OptionalGauge::default(),
        };

        // A counter that exists from the start shows its first increment.
        for pool in POOL_NAMES {
            new.failed_waits
                .get_or_create(&PoolLabel { pool })
                .inc_by(0);
        }

        new.register_state(registry);
        new.register_trunks(registry);
        new.register_process(registry);

        new
    }

    fn register_state(&self, registry: &mut Registry) {
        registry.register(
            "peal_sample_up",
            "1 while the database can be sampled",
            self.up.clone(),
        );
        registry.register(
            "peal_queue_jobs",
            "Jobs by queue and state",
            self.jobs.clone(),
        );
        registry.register_with_unit(
            "peal_queue_oldest",
            "Waiting time of the oldest job that could run",
            Unit::Seconds,
            self.oldest_job.clone(),
        );

        registry.register(
            "peal_calls_live",
            "Calls between their claim and their end, by status",
            self.live.clone(),
        );

        registry.register(
            "peal_events_unapplied",
            "Carrier events that wait to be applied, up to 100000",
            self.unapplied.clone(),
        );
        registry.register_with_unit(
            "peal_events_oldest",
            "Waiting time of the oldest unapplied event",
            Unit::Seconds,
            self.oldest_event.clone(),
        );

        registry.register(
            "peal_calls_unsettled",
            "Ended calls that wait to be charged, up to 100000",
            self.unsettled.clone(),
        );
        registry.register_with_unit(
            "peal_settle_lag",
            "Waiting time of the oldest ended call that waits to be charged",
            Unit::Seconds,
            self.oldest_charge.clone(),
        );
    }

    fn register_trunks(&self, registry: &mut Registry) {
        registry.register(
            "peal_trunk_calls",
            "Live calls of a trunk",
            self.trunk_calls.clone(),
        );
        registry.register(
            "peal_trunk_calls_limit",
            "Live calls that a trunk may have",
            self.trunk_limit.clone(),
        );
        registry.register(
            "peal_trunk_pace",
            "Calls per second that a trunk's carrier grants",
            self.trunk_pace.clone(),
        );
        registry.register(
            "peal_trunk_slowdown",
            "1 at full speed, more after the carrier pushed back",
            self.trunk_slowdown.clone(),
        );
        registry.register(
            "peal_trunk_active",
            "0 when a trunk is paused",
            self.trunk_active.clone(),
        );
    }

    fn register_process(&self, registry: &mut Registry) {
        registry.register(
            "peal_database_connections",
            "Connections to PostgreSQL by pool: limit, open and idle",
            self.connections.clone(),
        );
        registry.register_with_unit(
            "peal_database_wait",
            "Time that a probe, one a second, waited for a connection",
            Unit::Seconds,
            self.waits.clone(),
        );
        registry.register(
            "peal_database_wait_failures",
            "Probes that got no connection in time",
            self.failed_waits.clone(),
        );

        registry.register(
            "peal_redis_up",
            "1 while Redis answers; absent when none is configured",
            self.redis_up.clone(),
        );
        registry.register(
            "peal_wakeups_dropped",
            "Wakeups dropped because Redis did not keep up",
            self.dropped_wakeups.clone(),
        );

        registry.register_with_unit(
            "process_resident_memory",
            "Memory of the process",
            Unit::Bytes,
            self.memory.clone(),
        );
    }

    /// Takes a new sample if the last one is too old. Concurrent scrapes wait for it.
    pub(crate) async fn refresh(&self, sources: SampleSources<'_>) {
        let mut looked = self.sampled_at.lock().await;
        if looked.is_none_or(|at| at.elapsed() >= SAMPLE_INTERVAL) {
            let (state, ()) = tokio::join!(
                timeout(SAMPLE_TIMEOUT, DatabaseState::read_unscoped(sources.pool)),
                self.publish_redis(sources.wakeups),
            );
            let state = state.ok().and_then(|read| {
                read.inspect_err(|error| tracing::warn!(%error, "cannot sample the database"))
                    .ok()
            });
            self.publish_state(state);
            *looked = Some(Instant::now());
        }
        self.publish_process(sources);
    }

    fn publish_state(&self, state: Option<DatabaseState>) {
        // 1. Reset all series: without a sample they are absent.
        self.jobs.clear();
        self.oldest_job.clear();
        self.live.clear();

        let events = state.as_ref().map(|state| state.unapplied);
        self.unapplied.set(events);
        let oldest = state.as_ref().map(|state| state.oldest_event_secs);
        self.oldest_event.set(oldest);
        self.unsettled
            .set(state.as_ref().map(|state| state.unsettled));
        let oldest = state.as_ref().map(|state| state.oldest_charge_secs);
        self.oldest_charge.set(oldest);

        self.trunk_calls.clear();
        self.trunk_limit.clear();
        self.trunk_pace.clear();
        self.trunk_slowdown.clear();
        self.trunk_active.clear();

        self.up.set(state.is_some().into());
        let Some(state) = state else { return };

        // 2. Queues.
        for depth in &state.depths {
            let queue = depth.queue.name();
            for (state, jobs) in [
                ("ready", depth.ready),
                ("delayed", depth.delayed),
                ("running", depth.running),
                ("dead", depth.dead),
            ] {
                self.jobs
                    .get_or_create(&QueueStateLabels { queue, state })
                    .set(jobs);
            }
            let oldest = depth.oldest_secs.unwrap_or(0.0);
            self.oldest_job
                .get_or_create(&QueueLabel { queue })
                .set(oldest);
        }

        // 3. Live calls.
        for status in CallStatus::LIVE {
            let calls = state.live.iter().find(|(live, _)| *live == status);
            let status = status.as_str();
            let calls = calls.map_or(0, |(_, calls)| *calls);
            self.live.get_or_create(&StatusLabel { status }).set(calls);
        }

        // 4. Trunks.
        for trunk in state.trunks {
            let of = SampledTrunkLabel {
                trunk: trunk.id.to_string(),
            };
            self.trunk_calls.get_or_create(&of).set(trunk.live_calls);
            let limit = trunk.max_concurrent.into();
            self.trunk_limit.get_or_create(&of).set(limit);
            let pace = trunk.cps.to_f64().unwrap_or_default();
            self.trunk_pace.get_or_create(&of).set(pace);
            let slowdown = trunk.slowdown.unwrap_or(1.0);
            self.trunk_slowdown.get_or_create(&of).set(slowdown);
            let active = trunk.status == "active";
            self.trunk_active.get_or_create(&of).set(active.into());
        }
    }

    async fn publish_redis(&self, wakeups: &Wakeups) {
        self.redis_up.set(wakeups.ping().await.map(i64::from));
        // The total never decreases, as a counter requires.
        let dropped = wakeups.dropped();
        self.dropped_wakeups
            .inner()
            .store(dropped, Ordering::Relaxed);
    }

    fn publish_process(&self, sources: SampleSources<'_>) {
        for (name, pool) in pools(sources) {
            let idle = i64::try_from(pool.num_idle()).unwrap_or(i64::MAX);
            for (state, count) in [
                ("limit", pool.options().get_max_connections().into()),
                ("open", pool.size().into()),
                ("idle", idle),
            ] {
                let of = PoolStateLabels { pool: name, state };
                self.connections.get_or_create(&of).set(count);
            }
        }
        self.memory.set(resident_bytes());
    }

    /// Measures at intervals the wait for a connection of each pool in use. Never ends.
    pub(crate) async fn probe_pools(&self, sources: SampleSources<'_>) {
        let mut ticks = interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let probes = pools(sources).map(async |(name, pool)| {
                // A pool that this process does not use stays closed.
                if pool.size() == 0 {
                    return;
                }
                let of = PoolLabel { pool: name };
                let began = Instant::now();
                match pool.acquire().await {
                    Ok(_connection) => {
                        let waited = began.elapsed().as_secs_f64();
                        self.waits.get_or_create(&of).observe(waited);
                    }
                    Err(_none) => {
                        self.failed_waits.get_or_create(&of).inc();
                    }
                }
            });
            futures::future::join_all(probes).await;
        }
    }
}

fn pools(sources: SampleSources<'_>) -> [(&'static str, &PgPool); 2] {
    let [main, callbacks] = POOL_NAMES;
    [(main, sources.pool), (callbacks, sources.callbacks)]
}

/// Resident memory of this process; the kernel reports it in kilobytes.
fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: i64 = line.split_whitespace().next()?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// Sampled state of the database.
struct DatabaseState {
    depths: Vec<queue::QueueDepth>,
    live: Vec<(CallStatus, i64)>,
    unapplied: i64,
    oldest_event_secs: f64,
    unsettled: i64,
    oldest_charge_secs: f64,
    trunks: Vec<trunks::TrunkState>,
}

impl DatabaseState {
    /// Reads the state over all organisations, for operators.
    async fn read_unscoped(pool: &PgPool) -> Result<Self> {
        let mut db = pool.begin().await?;
        sqlx::query("set local statement_timeout = '1s'")
            .execute(&mut *db)
            .await?;

        let depths = queue::queue_depths(&mut db).await?;

        let live = sqlx::query!(
            r#"select status as "status: CallStatus", count(*) as "calls!"
               from calls
               where live
               group by status"#,
        )
        .fetch_all(&mut *db)
        .await?;

        let events = sqlx::query!(
            r#"select count(*) as "waiting!",
                      extract(epoch from clock_timestamp() - min(received_at))::float8 as oldest_secs
               from (select received_at
                     from call_events
                     where applied_at is null
                     order by id
                     limit $1) waiting"#,
            MAX_COUNTED_ROWS,
        )
        .fetch_one(&mut *db)
        .await?;

        let charges = settle::backlog_unscoped(&mut db, MAX_COUNTED_ROWS).await?;
        let trunks = trunks::list_unscoped(&mut db).await?;
        db.rollback().await?;

        Ok(Self {
            depths,
            live: live
                .into_iter()
                .map(|row| (row.status, row.calls))
                .collect(),
            unapplied: events.waiting,
            oldest_event_secs: events.oldest_secs.unwrap_or(0.0),
            unsettled: charges.calls,
            oldest_charge_secs: charges.oldest_secs,
            trunks,
        })
    }
}
