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

use super::{Level, SECONDS};
use crate::bells::Bells;
use crate::billing::settle;
use crate::context::Context;
use crate::error::Result;
use crate::queue;
use crate::telephony::CallStatus;
use crate::trunks;

/// Greatest age of the database's sample.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// Longest time of one sample, waits for locks and connections included.
const SAMPLE_LIMIT: Duration = Duration::from_secs(2);
/// Greatest count of unapplied events and unsettled calls.
const EVENTS_LIMIT: i64 = 100_000;
/// The pools of a process.
const POOLS: [&str; 2] = ["main", "callbacks"];
/// Interval of the probes that measure the wait for a connection.
const PROBE_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Jobs {
    queue: &'static str,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfQueue {
    queue: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Status {
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Trunk {
    trunk: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pool {
    pool: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Connections {
    pool: &'static str,
    state: &'static str,
}

/// Gauge that is absent while its value is unknown.
#[derive(Clone, Debug, Default)]
struct Known<T>(Arc<Mutex<Option<T>>>);

impl<T> Known<T> {
    fn set(&self, value: Option<T>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

impl<T: EncodeGaugeValue + Copy> EncodeMetric for Known<T> {
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
pub struct Sampled {
    looked: tokio::sync::Mutex<Option<Instant>>,
    up: Gauge,
    jobs: Family<Jobs, Gauge>,
    oldest_job: Family<OfQueue, Level>,
    live: Family<Status, Gauge>,
    unapplied: Known<i64>,
    oldest_event: Known<f64>,
    unsettled: Known<i64>,
    oldest_charge: Known<f64>,
    trunk_calls: Family<Trunk, Gauge>,
    trunk_limit: Family<Trunk, Gauge>,
    trunk_pace: Family<Trunk, Level>,
    trunk_slowdown: Family<Trunk, Level>,
    trunk_active: Family<Trunk, Gauge>,
    connections: Family<Connections, Gauge>,
    waits: Family<Pool, Histogram, fn() -> Histogram>,
    failed_waits: Family<Pool, Counter>,
    bell: Known<i64>,
    missed_bells: Counter,
    memory: Known<i64>,
}

impl Sampled {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let new = Self {
            looked: tokio::sync::Mutex::default(),
            up: Gauge::default(),
            jobs: Family::default(),
            oldest_job: Family::default(),
            live: Family::default(),
            unapplied: Known::default(),
            oldest_event: Known::default(),
            unsettled: Known::default(),
            oldest_charge: Known::default(),
            trunk_calls: Family::default(),
            trunk_limit: Family::default(),
            trunk_pace: Family::default(),
            trunk_slowdown: Family::default(),
            trunk_active: Family::default(),
            connections: Family::default(),
            waits: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            failed_waits: Family::default(),
            bell: Known::default(),
            missed_bells: Counter::default(),
            memory: Known::default(),
        };

        // A counter that exists from the start shows its first increment.
        for pool in POOLS {
            new.failed_waits.get_or_create(&Pool { pool }).inc_by(0);
        }

        new.name_state(registry);
        new.name_trunks(registry);
        new.name_process(registry);

        new
    }

    fn name_state(&self, registry: &mut Registry) {
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

    fn name_trunks(&self, registry: &mut Registry) {
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

    fn name_process(&self, registry: &mut Registry) {
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
            self.bell.clone(),
        );
        registry.register(
            "peal_wakeups_dropped",
            "Wakeups dropped because Redis did not keep up",
            self.missed_bells.clone(),
        );

        registry.register_with_unit(
            "process_resident_memory",
            "Memory of the process",
            Unit::Bytes,
            self.memory.clone(),
        );
    }

    /// Takes a new sample if the last one is too old. Concurrent scrapes wait for it.
    pub(super) async fn refresh(&self, context: &Context) {
        let mut looked = self.looked.lock().await;
        if looked.is_none_or(|at| at.elapsed() >= SAMPLE_EVERY) {
            let (state, ()) = tokio::join!(
                timeout(SAMPLE_LIMIT, State::read_unscoped(&context.pool)),
                self.show_bells(&context.bells),
            );
            let state = state.ok().and_then(|read| {
                read.inspect_err(|error| tracing::warn!(%error, "cannot sample the database"))
                    .ok()
            });
            self.show(state);
            *looked = Some(Instant::now());
        }
        self.show_process(context);
    }

    fn show(&self, state: Option<State>) {
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
                self.jobs.get_or_create(&Jobs { queue, state }).set(jobs);
            }
            let oldest = depth.oldest_secs.unwrap_or(0.0);
            self.oldest_job
                .get_or_create(&OfQueue { queue })
                .set(oldest);
        }

        // 3. Live calls.
        for status in CallStatus::LIVE {
            let calls = state.live.iter().find(|(live, _)| *live == status);
            let status = status.as_str();
            let calls = calls.map_or(0, |(_, calls)| *calls);
            self.live.get_or_create(&Status { status }).set(calls);
        }

        // 4. Trunks.
        for trunk in state.trunks {
            let of = Trunk {
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

    async fn show_bells(&self, bells: &Bells) {
        self.bell.set(bells.answers().await.map(i64::from));
        // The total never decreases, as a counter requires.
        let dropped = bells.missed();
        self.missed_bells.inner().store(dropped, Ordering::Relaxed);
    }

    fn show_process(&self, context: &Context) {
        for (name, pool) in pools(context) {
            let idle = i64::try_from(pool.num_idle()).unwrap_or(i64::MAX);
            for (state, count) in [
                ("limit", pool.options().get_max_connections().into()),
                ("open", pool.size().into()),
                ("idle", idle),
            ] {
                let of = Connections { pool: name, state };
                self.connections.get_or_create(&of).set(count);
            }
        }
        self.memory.set(resident_bytes());
    }

    /// Measures at intervals the wait for a connection of each pool in use. Never ends.
    pub(super) async fn probe(&self, context: &Context) {
        let mut ticks = interval(PROBE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let probes = pools(context).map(async |(name, pool)| {
                // A pool that this process does not use stays closed.
                if pool.size() == 0 {
                    return;
                }
                let of = Pool { pool: name };
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

fn pools(context: &Context) -> [(&'static str, &PgPool); 2] {
    let [main, callbacks] = POOLS;
    [(main, &context.pool), (callbacks, &context.callbacks)]
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
struct State {
    depths: Vec<queue::Depth>,
    live: Vec<(CallStatus, i64)>,
    unapplied: i64,
    oldest_event_secs: f64,
    unsettled: i64,
    oldest_charge_secs: f64,
    trunks: Vec<trunks::TrunkState>,
}

impl State {
    /// Reads the state over all organisations, for operators.
    async fn read_unscoped(pool: &PgPool) -> Result<Self> {
        let mut db = pool.begin().await?;
        sqlx::query("set local statement_timeout = '1s'")
            .execute(&mut *db)
            .await?;

        let depths = queue::depths(&mut db).await?;

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
            EVENTS_LIMIT,
        )
        .fetch_one(&mut *db)
        .await?;

        let charges = settle::backlog_unscoped(&mut db, EVENTS_LIMIT).await?;
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
