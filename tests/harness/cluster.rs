//! A cluster of real processes for fault tests: a private PostgreSQL and Redis, the API, and
//! workers, with the simulator in the test's process as the carrier.
//!
//! The test injects faults, then calls [`Cluster::finish`], which compares the carrier's log with
//! the database. These processes run on the real clock, so waits that are long by design (a
//! silent carrier, a dead worker's job) are shortened by ageing rows, and only where a longer wait
//! would lead to the same result.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use peal_local::processes::{ChildProcess, ProcessDir, ProcessSpec};
use peal_local::services::Services;
use peal_local::{ports, services};
use peal_simulator::{RunningSimulator, Simulator, SimulatorConfig as Carrier};
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use super::app::{
    AppOptions, carrier_where_all_answer, connect_with, create_tenant, test_settings,
};
use super::client::{ApiClient, TEST_TIMEOUT};
use peal_shared::billing::verify::verify_unscoped;
use peal_shared::context::MIGRATIONS;

/// Lets one cluster run at a time, because its pace is measured against the clock of this machine.
static CLUSTER_LOCK: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Ages calls without a recent callback, so that they are reconciled at once and not after minutes.
const AGE_SILENT_CALLS: &str = "update calls
     set changed_at = changed_at - interval '10 minutes', check_at = null
     where live
       and status in ('accepted', 'dialing', 'ringing', 'in_progress', 'canceling')
       and changed_at between now() - interval '5 minutes' and now() - interval '3 seconds'";
/// Selects and locks calls whose placement is unknown.
const LOCK_UNKNOWN_CALLS: &str = "select id from calls
     where live
       and status = 'unknown'
     for no key update skip locked";
/// Ages those that the carrier has no request for: a search until the deadline finds nothing
/// either.
const AGE_UNKNOWN_CALLS: &str = "update calls
     set submitted_at = submitted_at - interval '5 minutes', check_at = now()
     where id = any ($1)
       and submitted_at > now() - interval '4 minutes'";
/// State half a minute after the death of every worker.
const ABANDON_SUBMITTING_CALLS: &str = "update calls
     set status = 'unknown', check_at = now(), changed_at = now(), error_message = 'its worker was killed'
     where live and status = 'submitting'";
/// State a minute after the death of every worker.
const EXPIRE_LEASES: &str = "update jobs set lease_until = now() where state = 'running'";

/// Most calls that one dying worker can lose: the slots of two horizons.
pub const MAX_LOST_PER_WORKER: i64 = 40;

/// Settings of a cluster.
pub struct ClusterOptions {
    pub cps: i64,
    pub max_concurrent: i32,
    pub workers: usize,
    pub carrier: Carrier,
    /// `PEAL_FAULT` of the first workers, until [`Cluster::restart_workers_without_faults`].
    pub worker_faults: &'static str,
    /// `PEAL_FAULT` of the API.
    pub api_faults: &'static str,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        let mut carrier = carrier_where_all_answer();
        carrier.behavior.suffixes.clear();
        Self {
            cps: 80,
            max_concurrent: 100,
            workers: 2,
            carrier,
            worker_faults: "",
            api_faults: "",
        }
    }
}

/// A running cluster. Its test must end with [`Cluster::finish`], which checks the result of a
/// campaign, or with [`Cluster::close`] when there was none.
pub struct Cluster {
    pub seed: u64,
    pub client: ApiClient,
    pub carrier: RunningSimulator,
    pub services: Services,
    pub workers: Vec<ChildProcess>,
    pool: PgPool,
    /// Connections with short timeouts, for queries that are retried.
    short_timeout_pool: PgPool,
    cps: i64,
    max_concurrent: i32,
    api: Option<ChildProcess>,
    process_dir: ProcessDir,
    envs: Vec<(&'static str, OsString)>,
    /// `PEAL_FAULT` of workers and APIs that are started later.
    pub worker_faults: &'static str,
    pub api_faults: &'static str,
    workers_started: usize,
    started_at: Instant,
    finished: bool,
    // Held for the API, which restarts on the same port.
    _port: ports::ReservedPort,
    _lock: tokio::sync::MutexGuard<'static, ()>,
}

/// Number of calls that a campaign placed, and that it gave up.
#[derive(Debug)]
pub struct CampaignTotals {
    pub accepted: i64,
    pub lost: i64,
}

impl Cluster {
    /// Starts the services, the carrier, the API and the workers.
    pub async fn start(seed: u64, setup: ClusterOptions) -> Self {
        let alone = CLUSTER_LOCK.lock().await;
        let begun = Instant::now();

        let mut carrier = setup.carrier.clone();
        (carrier.behavior.seed, carrier.faults.seed) = (seed, seed);
        let carrier = Simulator::start(carrier).await.expect("simulator");

        let services = Services::start(services::ServiceOptions::default())
            .await
            .expect("services");
        let directory = services.temporary_dir().expect("a directory").to_owned();

        let database_url = services
            .postgres()
            .create_owned_database("peal")
            .expect("database");
        let (pool, hasty) = connect_pools(&database_url);
        MIGRATIONS.run(&pool).await.expect("migrate");

        let port = ports::ReservedPort::localhost().expect("a free port");
        let listen = port.address().to_string();
        let url = format!("http://{listen}");
        let context = connect_with(test_settings(
            &database_url,
            &services.redis_url,
            &url,
            &directory,
        ))
        .await;

        let options = AppOptions {
            cps: setup.cps,
            max_concurrent: setup.max_concurrent,
            ..AppOptions::default()
        };
        let tenant = create_tenant(&context, "Acme", carrier.url(), &options).await;
        context.pool.close().await;

        let mut cluster = Self {
            seed,
            client: ApiClient::new(url.clone(), tenant),
            carrier,
            pool,
            short_timeout_pool: hasty,
            cps: setup.cps,
            max_concurrent: setup.max_concurrent,
            api: None,
            workers: Vec::new(),
            process_dir: ProcessDir::create(&directory).expect("logs"),
            envs: process_env(&database_url, &services.redis_url, &listen, &directory),
            services,
            worker_faults: setup.worker_faults,
            api_faults: setup.api_faults,
            workers_started: 0,
            started_at: begun,
            finished: false,
            _port: port,
            _lock: alone,
        };

        cluster.start_api().await;
        for _ in 0..setup.workers {
            cluster.start_worker();
        }
        cluster
    }

    /// Starts the API and waits until it is ready or has crashed at a failpoint, which a callback
    /// may trigger before it is ready.
    pub async fn start_api(&mut self) {
        self.api = Some(self.spawn("api", "peal-api", &[], self.api_faults));
        let ready = format!("{}/health/ready", self.client.url);
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            let answer = reqwest::get(&ready).await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            if self.api_has_crashed() {
                assert!(!self.api_faults.is_empty(), "the API does not start");
                return;
            }
            if Instant::now() > deadline {
                self.fail_with_state("the API is ready").await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Kills the API, unless it has crashed by itself.
    pub async fn kill_api(&mut self) {
        if let Some(api) = self.api.take() {
            api.kill().await.expect("kill");
        }
    }

    /// True when the API has crashed at a failpoint.
    pub fn api_has_crashed(&mut self) -> bool {
        let api = self.api.as_mut();
        api.is_none_or(|api| api.exit_status().expect("a status").is_some())
    }

    /// Adds a worker.
    pub fn start_worker(&mut self) {
        self.start_worker_for("dial,inbox,ingest,misc");
    }

    /// Adds a worker with these roles.
    pub fn start_worker_for(&mut self, roles: &str) {
        self.workers_started += 1;
        let name = format!("worker-{}", self.workers_started);
        let args = &["--roles", roles];
        let worker = self.spawn(&name, "peal-worker", args, self.worker_faults);
        self.workers.push(worker);
    }

    /// Kills the n-th worker and starts another in its place.
    pub async fn replace_worker(&mut self, n: usize) {
        let worker = self.workers.remove(n);
        worker.kill().await.expect("kill");
        self.start_worker();
    }

    /// Replaces each worker that has crashed at a failpoint.
    pub fn replace_crashed_workers(&mut self) {
        let before = self.workers.len();
        self.workers
            .retain_mut(|worker| worker.exit_status().expect("a status").is_none());
        for _ in self.workers.len()..before {
            self.start_worker();
        }
    }

    /// Kills every worker, expires their leases, and starts as many workers without faults.
    pub async fn restart_workers_without_faults(&mut self) {
        let workers = std::mem::take(&mut self.workers);
        let count = workers.len();
        for worker in workers {
            worker.kill().await.expect("kill");
        }
        self.worker_faults = "";
        self.expire_dead_workers().await;
        for _ in 0..count {
            self.start_worker();
        }
    }

    /// Abandons the calls and expires the leases of the workers, all of which must be dead.
    pub async fn expire_dead_workers(&self) {
        // First the server must end their transactions, because the statements below read rows.
        let sessions =
            "select count(*) from pg_stat_activity where application_name = 'peal-worker'";
        self.wait_until("the dead workers' sessions have ended", sessions, |n| {
            n == 0
        })
        .await;
        self.execute(ABANDON_SUBMITTING_CALLS).await;
        self.execute(EXPIRE_LEASES).await;
    }

    /// Starts a worker with faults and waits until it has crashed.
    pub async fn run_worker_until_crash(&mut self, roles: &str, faults: &'static str) {
        self.worker_faults = faults;
        self.start_worker_for(roles);
        self.worker_faults = "";
        let mut worker = self.workers.pop().expect("it was started");
        let deadline = Instant::now() + TEST_TIMEOUT;
        while worker.exit_status().expect("a status").is_none() {
            if Instant::now() > deadline {
                self.fail_with_state(&format!("a worker crashes at {faults}"))
                    .await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.expire_dead_workers().await;
    }

    /// Ends a test without a campaign: no job may be left, and no call may have been placed.
    pub async fn close(mut self) {
        let left = "select count(*) from jobs where state <> 'done'";
        self.wait_until("no job is left", left, |n| n == 0).await;
        assert_eq!(self.carrier.oracle().accepted, 0, "seed {}", self.seed);
        self.finished = true;
    }

    fn spawn(&self, name: &str, program: &str, args: &[&str], faults: &str) -> ChildProcess {
        self.spawn_with(name, program, args, &[("PEAL_FAULT", faults)])
    }

    /// Starts a program with additional environment variables.
    pub fn spawn_with(
        &self,
        name: &str,
        program: &str,
        args: &[&str],
        more: &[(&'static str, &str)],
    ) -> ChildProcess {
        let mut envs = self.envs.clone();
        envs.extend(more.iter().map(|(key, value)| (*key, value.into())));
        let spec = ProcessSpec {
            name,
            program: &built_program(program),
            args: args.iter().map(OsString::from).collect(),
            envs,
            run_as: None,
            stop_signal: Signal::SIGTERM,
            cmdline_marker: program,
            detached: false,
        };
        ChildProcess::spawn(spec, &self.process_dir).expect("start")
    }

    /// Creates a batch with `people` rows and starts it.
    pub async fn start_campaign(&self, people: u32, extra: serde_json::Value) -> String {
        let batch = self.client.create_batch(extra).await;
        self.client.add_people(&batch, people).await;
        self.client.start_batch(&batch).await;
        batch
    }

    /// Waits until the carrier has accepted this many calls.
    pub async fn wait_for_accepted(&mut self, calls: u64) {
        self.poll_accepted(calls, false).await;
    }

    /// Waits like [`Cluster::wait_for_accepted`] when callbacks were lost, and ages silent calls,
    /// which keep their slots until they are reconciled.
    pub async fn wait_for_accepted_despite_silence(&mut self, calls: u64) {
        self.poll_accepted(calls, true).await;
    }

    async fn poll_accepted(&mut self, calls: u64, through_silence: bool) {
        let what = format!("{calls} calls are accepted");
        let deadline = Instant::now() + TEST_TIMEOUT;
        while self.carrier.oracle().accepted < calls {
            self.replace_crashed_workers();
            if through_silence {
                self.age_calls().await;
            }
            if Instant::now() > deadline {
                self.fail_with_state(&what).await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Runs a query that returns one number; `None` while the database is away.
    pub async fn try_query_number(&self, sql: &str) -> Option<i64> {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&self.short_timeout_pool)
            .await
            .ok()
    }

    /// Runs a query that returns one number; fails the test on an error.
    pub async fn query_number(&self, sql: &str) -> i64 {
        let number = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
        let number = number.fetch_one(&self.pool).await;
        number.unwrap_or_else(|error| panic!("{error}: {sql}"))
    }

    /// Waits until the query's number satisfies `holds`.
    pub async fn wait_until(&self, what: &str, sql: &str, holds: impl Fn(i64) -> bool) {
        let deadline = Instant::now() + TEST_TIMEOUT;
        while !self.try_query_number(sql).await.is_some_and(&holds) {
            if Instant::now() > deadline {
                self.fail_with_state(what).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Executes statements.
    pub async fn execute(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&self.pool)
            .await
            .expect("statement");
    }

    /// Connections to the cluster's database.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Calls that the carrier has accepted, with the time of each request.
    pub fn accepted_calls(&self) -> BTreeMap<Uuid, SystemTime> {
        let creates = self.carrier.creates().into_iter();
        creates
            .filter(|create| create.verdict.is_accepted())
            .map(|create| {
                let id = call_id_from_url(&create.url);
                (id, UNIX_EPOCH + Duration::from_micros(create.unix_micros))
            })
            .collect()
    }

    /// Ages silent and unknown calls, so that they are reconciled at once.
    pub async fn age_calls(&self) {
        let silent = sqlx::raw_sql(AGE_SILENT_CALLS)
            .execute(&self.short_timeout_pool)
            .await;
        let hopeless = self.age_unknown_calls().await;
        if let Err(error) = silent.map(drop).and(hopeless) {
            eprintln!("rows could not be made older: {error}");
        }
    }

    /// Reads the calls before the carrier's log, so that the log has every request for them.
    async fn age_unknown_calls(&self) -> sqlx::Result<()> {
        let mut tx = self.short_timeout_pool.begin().await?;
        let mut calls: Vec<Uuid> = sqlx::query_scalar(LOCK_UNKNOWN_CALLS)
            .fetch_all(&mut *tx)
            .await?;
        let creates = self.carrier.creates().into_iter();
        let known: HashSet<Uuid> = creates
            .map(|create| call_id_from_url(&create.url))
            .collect();
        calls.retain(|call| !known.contains(call));
        sqlx::query(AGE_UNKNOWN_CALLS)
            .bind(&calls)
            .execute(&mut *tx)
            .await?;
        tx.commit().await
    }

    /// Waits until the batch is completed and no work is left.
    pub async fn wait_for_completion(&mut self, batch: &str) {
        let left = format!(
            "select (select count(*) from call_batches where id = '{batch}' and status <> 'completed')
                  + (select count(*) from jobs where state in ('ready', 'running'))
                  + (select count(*) from call_events where applied_at is null)
                  + (select count(*) from calls where live)
                  + (select count(*) from charges_due)"
        );

        let deadline = Instant::now() + TEST_TIMEOUT;
        while self.try_query_number(&left).await != Some(0) {
            self.age_calls().await;
            if Instant::now() > deadline {
                self.fail_with_state("the batch completes").await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Checks a campaign whose rows may be dialled once each. At most `lost_limit` rows may have
    /// been given up, each without a call at the carrier.
    pub async fn finish(mut self, batch: &str, lost_limit: i64) -> CampaignTotals {
        self.wait_for_completion(batch).await;

        if !self.carrier.wait_idle(TEST_TIMEOUT).await {
            self.fail_with_state("the carrier becomes idle").await;
        }

        let (seed, oracle) = (self.seed, self.carrier.oracle());
        for (offence, offences) in [
            ("sent twice", &oracle.duplicates),
            ("sent again without proof", &oracle.blind_retries),
            ("in two calls at once", &oracle.overlaps),
            ("rung twice", &oracle.rung_twice),
        ] {
            assert!(offences.is_empty(), "seed {seed}: {offence}: {offences:?}");
        }

        let live = i64::try_from(oracle.max_concurrent).expect("few");
        let cap = i64::from(self.max_concurrent);
        assert!(live <= cap, "seed {seed}: {live} calls at once of {cap}");

        let worst = i64::try_from(oracle.worst_window.count).expect("few");
        assert!(
            worst <= self.cps,
            "seed {seed}: {worst} calls in a second of {}: {:?}",
            self.cps,
            oracle.worst_window
        );

        let verdict = self.check_rows(batch, lost_limit).await;
        self.verify().await;

        eprintln!(
            "seed {seed}: {verdict:?}, {} workers, worst second {worst} of {}, {:.1} s",
            self.workers_started,
            self.cps,
            self.started_at.elapsed().as_secs_f64()
        );
        self.finished = true;
        verdict
    }

    /// Fails unless the ledger balances and no money is held.
    pub async fn verify(&self) {
        let seed = self.seed;
        let offenders = verify_unscoped(&self.pool).await.expect("verify");
        assert!(
            offenders.is_empty(),
            "seed {seed}: the ledger does not balance: {offenders:#?}"
        );
        let held = "select count(*) from wallets where held_micros <> 0";
        assert_eq!(
            self.query_number(held).await,
            0,
            "seed {seed}: money is held"
        );
    }

    async fn check_rows(&self, batch: &str, lost_limit: i64) -> CampaignTotals {
        let seed = self.seed;

        let one = async |sql: &str| {
            let sql = sql.replace("$batch", &format!("'{batch}'"));
            self.query_number(&sql).await
        };

        let open = "select count(*) from batch_data
                    where batch_id = $batch and status not in ('completed', 'failed', 'no_answer')";
        assert_eq!(one(open).await, 0, "seed {seed}: rows without an end");

        let drifted = "select count(*) from batch_progress p where (p.not_started, p.calling, p.completed, p.failed, p.no_answer) <> (
             select count(*) filter (where status = 'not_started'), count(*) filter (where status = 'calling'),
                    count(*) filter (where status = 'completed'), count(*) filter (where status = 'failed'),
                    count(*) filter (where status = 'no_answer')
             from batch_data d where d.batch_id = p.batch_id)";
        assert_eq!(one(drifted).await, 0, "seed {seed}: counts have drifted");

        let dead = "select count(*) from jobs where state = 'dead'";
        assert_eq!(one(dead).await, 0, "seed {seed}: jobs have died");

        let several = "select count(*) from (select from calls where row_id is not null group by row_id having count(*) > 1) s";
        assert_eq!(one(several).await, 0, "seed {seed}: rows with two calls");

        let rows = one("select count(*) from batch_data where batch_id = $batch").await;
        let accepted: HashSet<Uuid> = self.accepted_calls().into_keys().collect();

        let lost: Vec<Uuid> = sqlx::query_scalar("select id from calls where outcome = 'lost'")
            .fetch_all(&self.pool)
            .await
            .expect("lost calls");
        let wrong: Vec<&Uuid> = lost.iter().filter(|id| accepted.contains(id)).collect();
        assert!(
            wrong.is_empty(),
            "seed {seed}: given up, but at the carrier: {wrong:?}"
        );

        let most = one("select coalesce(max(n), 0)
             from (select count(*) as n from calls where outcome = 'lost' group by worker) l")
        .await;
        assert!(
            most <= MAX_LOST_PER_WORKER,
            "seed {seed}: one worker lost {most} calls"
        );

        let verdict = CampaignTotals {
            accepted: i64::try_from(accepted.len()).expect("few"),
            lost: i64::try_from(lost.len()).expect("few"),
        };
        assert_eq!(
            verdict.accepted + verdict.lost,
            rows,
            "seed {seed}: {verdict:?}"
        );
        assert!(
            verdict.lost <= lost_limit,
            "seed {seed}: more than {lost_limit} lost: {verdict:?}"
        );
        verdict
    }

    /// Fails the test with the state of batches, calls, jobs and sessions.
    pub async fn fail_with_state(&self, what: &str) -> ! {
        let picture: Option<serde_json::Value> = sqlx::query_scalar(
            "select jsonb_build_object(
                 'batches', (select jsonb_agg(jsonb_build_object('status', status, 'why', status_reason)) from call_batches),
                 'rows', (select jsonb_object_agg(status, n) from (select status, count(*) as n from batch_data group by 1) r),
                 'calls', (select jsonb_object_agg(status, n) from (select status, count(*) as n from calls group by 1) c),
                 'jobs', (select jsonb_object_agg(state, n) from (select kind || ' ' || state as state, count(*) as n from jobs group by 1) j),
                 'events', (select count(*) from call_events where applied_at is null),
                 'sessions', (select jsonb_agg(jsonb_build_object('pid', pid, 'blocked_by', pg_blocking_pids(pid), 'state', state,
                                                                  'since', now() - state_change, 'query', left(query, 60)))
                              from pg_stat_activity where state <> 'idle' and datname = current_database()),
                 'live', (select jsonb_agg(to_jsonb(l) - 'variable_values' - 'to_number') from (select * from calls where live limit 3) l))",
        )
        .fetch_one(&self.short_timeout_pool)
        .await
        .ok();

        panic!(
            "seed {}: not within {TEST_TIMEOUT:?}: {what}\n{}\n{:?}",
            self.seed,
            picture.unwrap_or(json!("the database is away")),
            self.carrier.oracle()
        );
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let forgotten = !self.finished && !std::thread::panicking();
        for worker in &self.workers {
            worker.signal(Signal::SIGKILL);
        }
        if std::thread::panicking() {
            eprintln!(
                "PEAL_SEED={} repeats this test. Ends of the logs:",
                self.seed
            );
            let logs = std::fs::read_dir(&self.process_dir.logs)
                .into_iter()
                .flatten();
            for log in logs.flatten() {
                let text = std::fs::read_to_string(log.path()).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let tail = lines.get(lines.len().saturating_sub(25)..);
                eprintln!(
                    "--- {:?}\n{}",
                    log.file_name(),
                    tail.unwrap_or_default().join("\n")
                );
            }
        }

        assert!(
            !forgotten,
            "the test must end with Cluster::finish() or Cluster::close()"
        );
    }
}

/// Connections to a cluster's database: patient ones, and ones that soon give up on a server that
/// is away or a lock that another session holds.
fn connect_pools(database_url: &str) -> (PgPool, PgPool) {
    let options: PgConnectOptions = database_url.parse().expect("url");
    let hasty = options.clone().options([("lock_timeout", "2s")]);
    let pool = |patience| {
        let pool = PgPoolOptions::new().max_connections(4);
        pool.acquire_timeout(patience)
    };
    (
        pool(TEST_TIMEOUT).connect_lazy_with(options),
        pool(Duration::from_secs(2)).connect_lazy_with(hasty),
    )
}

/// Id of the call that a request to the carrier names in its answer URL.
fn call_id_from_url(url: &str) -> Uuid {
    let id = url.split('/').rev().nth(2).unwrap_or_default();
    id.parse().unwrap_or_else(|_| panic!("no call in {url}"))
}

/// Environment variables of a process.
pub fn process_env(
    database_url: &str,
    redis_url: &str,
    listen: &str,
    directory: &Path,
) -> Vec<(&'static str, OsString)> {
    vec![
        ("PEAL_DATABASE_URL", database_url.into()),
        ("PEAL_DATABASE_POOL", "12".into()),
        ("PEAL_REDIS_URL", redis_url.into()),
        ("PEAL_MASTER_KEY", STANDARD.encode([7; 32]).into()),
        ("PEAL_PUBLIC_URL", format!("http://{listen}").into()),
        ("PEAL_LISTEN", listen.into()),
        (
            "PEAL_STORE_URL",
            format!("file://{}/store", directory.display()).into(),
        ),
        ("PEAL_MAIL_DIR", directory.join("mail").into()),
        ("PEAL_RECONCILE_SECS", "1".into()),
        ("PEAL_UNKNOWN_DEADLINE_SECS", "1".into()),
        ("PEAL_LOG", "text".into()),
        ("RUST_LOG", "warn".into()),
    ]
}

/// Path of a program next to the test binary; fails the test when its sources are newer.
pub fn built_program(program: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let directory = test
        .parent()
        .and_then(Path::parent)
        .expect("target directory");
    let path = directory.join(program);
    let Ok(made) = path.metadata().and_then(|meta| meta.modified()) else {
        panic!("{} is missing; run `make build`", path.display());
    };
    for source in source_files(&path) {
        let changed = source.metadata().and_then(|meta| meta.modified());
        assert!(
            changed.is_ok_and(|changed| changed <= made),
            "{program} is older than {}; run `make build`",
            source.display()
        );
    }
    path
}

/// Source files of a program, from Cargo's make-style dependency file next to it: the program, a
/// colon, and the files, in whose names a space is escaped by a backslash.
fn source_files(program: &Path) -> Vec<PathBuf> {
    let notes = program.with_extension("d");
    let text = std::fs::read_to_string(&notes)
        .unwrap_or_else(|error| panic!("{}: {error}; run `make build`", notes.display()));
    let (_, files) = text.split_once(": ").expect("a program and its files");
    let files = files.trim_end().replace("\\ ", "\0");
    files
        .split(' ')
        .map(|file| file.replace('\0', " ").into())
        .collect()
}
