//! The job queue: jobs are added with their transaction, run once per claim, and end in a fixed set
//! of states.

mod outages;
mod shutdown;
mod states;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use peal_shared::Error;
use peal_shared::platform::clock::Clock;
use peal_shared::platform::ids::{JobId, OrgId};
use peal_shared::platform::queue;
use peal_shared::platform::queue::wakeup::Wakeups;
use peal_shared::platform::queue::{
    EnqueuedJob, JobOutcome, JobPayload, Queue, RunningJob, WorkerTiming,
};
use peal_worker::jobs::{HandlerRegistry, JobHandler};
use peal_worker::queues::{QueueRuntime, run_queues};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::harness::db::{TestDatabase, fresh_database};
use crate::harness::{env_setting, eventually};

/// Long enough for a busy machine, short enough to notice a standstill.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs recorded by the handlers below.
struct RunLog {
    /// Number and attempt of each run, in order.
    runs: Mutex<Vec<(i64, i32)>>,
    /// Holds back `Gated` jobs.
    gate: Semaphore,
    /// Number of runs that were notified of a lost job.
    lost_runs: AtomicUsize,
}

impl Default for RunLog {
    fn default() -> Self {
        Self {
            runs: Mutex::default(),
            gate: Semaphore::new(0),
            lost_runs: AtomicUsize::new(0),
        }
    }
}

impl RunLog {
    fn record_run(&self, n: i64, job: &RunningJob) {
        self.runs.lock().unwrap().push((n, job.attempt));
    }

    fn runs(&self) -> Vec<(i64, i32)> {
        self.runs.lock().unwrap().clone()
    }

    fn run_count(&self) -> usize {
        self.runs.lock().unwrap().len()
    }
}

macro_rules! payloads {
    ($($name:ident($kind:literal, $queue:ident, attempts $max:literal, priority $priority:literal);)+) => {$(
        #[derive(Serialize, Deserialize)]
        struct $name {
            n: i64,
        }

        impl JobPayload for $name {
            const KIND: &'static str = $kind;
            const QUEUE: Queue = Queue::$queue;
            const MAX_ATTEMPTS: i32 = $max;
            const PRIORITY: i16 = $priority;

            fn org(&self) -> Option<OrgId> {
                None
            }
        }
    )+};
}

payloads! {
    Probe("probe", Control, attempts 5, priority 0);
    Urgent("urgent", Control, attempts 5, priority 10);
    Poison("poison", Control, attempts 3, priority 5);
    Panics("panics", Control, attempts 2, priority 5);
    Gated("gated", Control, attempts 5, priority 0);
    Deaf("deaf", Control, attempts 5, priority 0);
    Other("other", Ingest, attempts 5, priority 0);
}

/// At most one of these per number is live.
#[derive(Serialize, Deserialize)]
struct KeyedJob {
    n: i64,
}

impl JobPayload for KeyedJob {
    const KIND: &'static str = "keyed";
    const QUEUE: Queue = Queue::Control;
    const MAX_ATTEMPTS: i32 = 5;

    fn dedupe_key(&self) -> Option<String> {
        Some(self.n.to_string())
    }

    fn org(&self) -> Option<OrgId> {
        None
    }
}

macro_rules! handled_by_noting {
    ($($name:ident)+) => {$(
        impl JobHandler<RunLog> for $name {
            async fn handle(self, log: &RunLog, job: &RunningJob) -> JobOutcome {
                log.record_run(self.n, job);
                JobOutcome::Done
            }
        }
    )+};
}

handled_by_noting!(Probe Urgent KeyedJob Other);

impl JobHandler<RunLog> for Poison {
    async fn handle(self, log: &RunLog, job: &RunningJob) -> JobOutcome {
        log.record_run(self.n, job);
        JobOutcome::Retry {
            after: Some(Duration::ZERO),
            why: "poisoned".into(),
        }
    }
}

impl JobHandler<RunLog> for Panics {
    async fn handle(self, _: &RunLog, job: &RunningJob) -> JobOutcome {
        panic!("attempt {} panics", job.attempt)
    }
}

/// Waits for the gate, or fails permanently when its job is lost.
impl JobHandler<RunLog> for Gated {
    async fn handle(self, log: &RunLog, job: &RunningJob) -> JobOutcome {
        log.record_run(self.n, job);
        tokio::select! {
            passed = log.gate.acquire() => passed.unwrap().forget(),
            () = job.lease_lost().cancelled() => {
                log.lost_runs.fetch_add(1, Ordering::SeqCst);
                return JobOutcome::Fail { why: "too late to matter".into() };
            }
        }
        JobOutcome::Done
    }
}

/// Waits for the gate and ignores the loss of its job.
impl JobHandler<RunLog> for Deaf {
    async fn handle(self, log: &RunLog, job: &RunningJob) -> JobOutcome {
        log.record_run(self.n, job);
        log.gate.acquire().await.unwrap().forget();
        JobOutcome::Done
    }
}

/// A database, wakeups and a log of runs.
struct QueueSetup {
    db: TestDatabase,
    wakeups: Wakeups,
    log: Arc<RunLog>,
    timing: WorkerTiming,
}

/// Workers of one process.
struct WorkerProcess {
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl WorkerProcess {
    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

impl QueueSetup {
    /// A setup with wakeups on the shared test Redis, under a prefix of its own.
    async fn new() -> Self {
        Self::with_redis(Some(&env_setting("PEAL_TEST_REDIS_URL"))).await
    }

    async fn with_redis(url: Option<&str>) -> Self {
        let prefix = format!("test-{}", JobId::new());
        Self {
            db: fresh_database().await,
            wakeups: Wakeups::new(url, &prefix).unwrap(),
            log: Arc::default(),
            timing: WorkerTiming::default(),
        }
    }

    /// Starts a process with a concurrency for the control queue, and one for the ingest queue.
    fn start_workers(&self, concurrency: usize) -> WorkerProcess {
        let registry = HandlerRegistry::default()
            .with::<Probe>()
            .with::<Urgent>()
            .with::<KeyedJob>()
            .with::<Other>()
            .with::<Poison>()
            .with::<Panics>()
            .with::<Gated>()
            .with::<Deaf>()
            .with::<states::ScriptedJob>();

        let queues = QueueRuntime {
            pool: self.db.pool.clone(),
            wakeups: self.wakeups.clone(),
            state: Arc::clone(&self.log),
            registry: Arc::new(registry),
            timing: self.timing,
        };
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let ended = tokio::spawn(async move {
            let queue_limits = [(Queue::Control, concurrency), (Queue::Ingest, 1)];
            run_queues(queues, &queue_limits, token).await
        });
        WorkerProcess {
            shutdown,
            task: ended,
        }
    }

    async fn add<P: JobPayload>(&self, payload: P) -> EnqueuedJob {
        let mut db = self.db.pool.acquire().await.unwrap();
        let job = queue::enqueue(&mut db, &payload, None).await.unwrap();
        self.wakeups.notify_job(&job);
        job
    }

    async fn add_all<P: JobPayload>(&self, payloads: &[P], delay: Duration) -> Vec<EnqueuedJob> {
        let mut db = self.db.pool.acquire().await.unwrap();
        let run_at = (!delay.is_zero()).then(|| Clock::default().now() + delay);
        let jobs = queue::enqueue_all(&mut db, payloads, run_at).await.unwrap();
        jobs.iter().for_each(|job| self.wakeups.notify_job(job));
        jobs
    }

    async fn job_state(&self, id: JobId) -> (String, i32) {
        sqlx::query_as("select state, attempts from jobs where id = $1")
            .bind(id)
            .fetch_one(&self.db.pool)
            .await
            .unwrap()
    }

    async fn wait_for_state(&self, job: &EnqueuedJob, state: &str) {
        eventually(&format!("the job is {state}"), TEST_TIMEOUT, || async {
            self.job_state(job.id).await.0 == state
        })
        .await;
    }

    async fn count_unfinished(&self) -> i64 {
        sqlx::query_scalar("select count(*) from jobs where state in ('ready', 'running')")
            .fetch_one(&self.db.pool)
            .await
            .unwrap()
    }

    /// Waits until no job is left; fails when the number stops falling.
    async fn wait_until_drained(&self) {
        let (mut fewest, mut since) = (i64::MAX, Instant::now());
        loop {
            let left = self.count_unfinished().await;
            if left == 0 {
                return;
            }
            if left < fewest {
                (fewest, since) = (left, Instant::now());
            }
            let waited = since.elapsed();
            assert!(waited < TEST_TIMEOUT, "for {waited:?} {left} jobs are left");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn lease_until(&self, id: JobId) -> Option<DateTime<Utc>> {
        sqlx::query_scalar("select lease_until from jobs where id = $1")
            .bind(id)
            .fetch_one(&self.db.pool)
            .await
            .unwrap()
    }

    /// Waits until the job's lease has been extended twice.
    async fn wait_for_two_extensions(&self, id: JobId) {
        for _ in 0..2 {
            let before = self.lease_until(id).await;
            eventually("the lease is extended", TEST_TIMEOUT, || async {
                self.lease_until(id).await > before
            })
            .await;
        }
    }

    /// Expires the lease of the job's claim with this fence, and sweeps.
    async fn expire_lease(&self, id: JobId, fence: i64) {
        eventually("the lease has expired", TEST_TIMEOUT, || async {
            sqlx::query(
                "update jobs set lease_until = now() - interval '1 second'
                where id = $1 and fence = $2 and state = 'running'",
            )
            .bind(id)
            .bind(fence)
            .execute(&self.db.pool)
            .await
            .unwrap();
            queue::sweep(&self.db.pool, &self.wakeups).await.unwrap();
            let left: bool = sqlx::query_scalar(
                "select fence > $2 or state <> 'running' from jobs where id = $1",
            )
            .bind(id)
            .bind(fence)
            .fetch_one(&self.db.pool)
            .await
            .unwrap();
            left
        })
        .await;
    }
}

fn probes(count: i64) -> Vec<Probe> {
    (0..count).map(|n| Probe { n }).collect()
}

#[tokio::test]
async fn a_job_exists_if_and_only_if_its_transaction_commits() {
    let setup = QueueSetup::new().await;
    let mut tx = setup.db.pool.begin().await.unwrap();
    let undone = queue::enqueue(&mut tx, &Probe { n: 1 }, None)
        .await
        .unwrap();
    tx.rollback().await.unwrap();
    setup.wakeups.notify_job(&undone);
    assert_eq!(setup.count_unfinished().await, 0);

    let mut tx = setup.db.pool.begin().await.unwrap();
    let job = queue::enqueue(&mut tx, &Probe { n: 2 }, None)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert!(job.is_new && job.is_due);

    let workers = setup.start_workers(4);
    setup.wait_for_state(&job, "done").await;
    workers.stop().await;
    assert_eq!(setup.log.runs(), [(2, 1)]);
}

#[tokio::test]
async fn a_dedupe_key_is_live_in_one_job_at_a_time() {
    let setup = QueueSetup::new().await;
    let first = setup.add(KeyedJob { n: 7 }).await;
    let second = setup.add(KeyedJob { n: 7 }).await;
    assert_eq!((second.id, second.is_new), (first.id, false));
    let both = [KeyedJob { n: 7 }, KeyedJob { n: 8 }];
    assert_eq!(setup.add_all(&both, Duration::ZERO).await.len(), 1);

    let workers = setup.start_workers(4);
    setup.wait_until_drained().await;
    assert!(setup.add(KeyedJob { n: 7 }).await.is_new);
    setup.wait_until_drained().await;
    workers.stop().await;
    assert_eq!(setup.log.run_count(), 3);
}

#[tokio::test]
async fn concurrent_adds_of_one_key_create_one_job() {
    let setup = QueueSetup::new().await;
    let adders = (0..8).map(|_| setup.add(KeyedJob { n: 1 }));
    let jobs = futures::future::join_all(adders).await;
    assert_eq!(jobs.iter().filter(|job| job.is_new).count(), 1);
    let ids: HashSet<JobId> = jobs.iter().map(|job| job.id).collect();
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn two_workers_run_each_of_2000_jobs_once() {
    let setup = QueueSetup::new().await;
    let workers = [setup.start_workers(8), setup.start_workers(8)];
    setup.add_all(&probes(2000), Duration::ZERO).await;
    setup.wait_until_drained().await;
    for process in workers {
        process.stop().await;
    }
    let runs = setup.log.runs();
    assert_eq!(runs.len(), 2000);
    assert!(runs.iter().all(|(_, attempt)| *attempt == 1));
    let distinct: HashSet<i64> = runs.iter().map(|(n, _)| *n).collect();
    assert_eq!(distinct.len(), 2000);
}

#[tokio::test]
async fn a_lost_job_runs_again_and_its_first_run_changes_nothing() {
    let mut setup = QueueSetup::new().await;
    setup.timing.heartbeat = Duration::from_millis(200);
    let workers = setup.start_workers(4);
    let job = setup.add(Gated { n: 1 }).await;
    eventually("the first run", TEST_TIMEOUT, || async {
        setup.log.run_count() == 1
    })
    .await;

    setup.expire_lease(job.id, 1).await;
    eventually("the second run", TEST_TIMEOUT, || async {
        setup.log.run_count() == 2
    })
    .await;
    eventually("the first run is notified", TEST_TIMEOUT, || async {
        setup.log.lost_runs.load(Ordering::SeqCst) == 1
    })
    .await;
    // The first run returned a permanent failure, under an old fence.
    assert_eq!(setup.job_state(job.id).await, ("running".into(), 2));

    setup.log.gate.add_permits(1);
    setup.wait_for_state(&job, "done").await;
    workers.stop().await;
    assert_eq!(setup.log.runs(), [(1, 1), (1, 2)]);
    assert_eq!(setup.job_state(job.id).await, ("done".into(), 2));
}

#[tokio::test]
async fn a_job_of_dead_workers_dies_after_its_last_attempt() {
    let mut setup = QueueSetup::new().await;
    // No heartbeat while the test lasts, as if the process had died.
    setup.timing.heartbeat = Duration::from_secs(600);
    let workers = setup.start_workers(10);
    let job = setup.add(Gated { n: 1 }).await;
    for fence in 1..=5 {
        eventually("a run", TEST_TIMEOUT, || async {
            setup.log.runs().last() == Some(&(1, i32::try_from(fence).unwrap()))
        })
        .await;
        setup.expire_lease(job.id, fence).await;
    }
    assert_eq!(setup.job_state(job.id).await, ("dead".into(), 5));
    setup.log.gate.add_permits(5);
    workers.stop().await;
    assert_eq!(setup.job_state(job.id).await, ("dead".into(), 5));

    let mut db = setup.db.pool.acquire().await.unwrap();
    let dead = queue::dead_jobs(&mut db, 10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert!(dead[0].why.as_ref().unwrap().starts_with("attempt 5 of 5"));
}

#[tokio::test]
async fn leases_are_extended_while_a_job_runs() {
    let mut setup = QueueSetup::new().await;
    setup.timing.heartbeat = Duration::from_millis(300);
    // No run is aborted while the test lasts.
    setup.timing.grace = Duration::from_secs(600);
    let workers = setup.start_workers(2);
    let job = setup.add(Gated { n: 1 }).await;
    eventually("it starts", TEST_TIMEOUT, || async {
        setup.log.run_count() == 1
    })
    .await;
    setup.wait_for_two_extensions(job.id).await;
    assert_eq!(setup.job_state(job.id).await, ("running".into(), 1));

    // Also while the process drains.
    workers.shutdown.cancel();
    setup.wait_for_two_extensions(job.id).await;
    assert_eq!(setup.job_state(job.id).await, ("running".into(), 1));
    setup.log.gate.add_permits(1);
    workers.stop().await;
    assert_eq!(setup.job_state(job.id).await, ("done".into(), 1));
}

#[tokio::test]
async fn a_failing_job_dies_after_its_attempts_and_others_run() {
    let setup = QueueSetup::new().await;
    let poison = setup.add(Poison { n: -1 }).await;
    setup.add_all(&probes(500), Duration::ZERO).await;
    let workers = setup.start_workers(2);
    setup.wait_until_drained().await;
    workers.stop().await;
    assert_eq!(setup.job_state(poison.id).await, ("dead".into(), 3));
    let probes = setup.log.runs().iter().filter(|(n, _)| *n >= 0).count();
    assert_eq!(probes, 500);

    let mut db = setup.db.pool.acquire().await.unwrap();
    let dead = queue::dead_jobs(&mut db, 10).await.unwrap();
    assert_eq!(dead[0].id, poison.id);
    assert!(dead[0].why.as_ref().unwrap().contains("poisoned"));
}

#[tokio::test]
async fn a_panic_ends_one_run_and_counts_as_a_failure() {
    let setup = QueueSetup::new().await;
    let workers = setup.start_workers(2);
    let bad = setup.add(Panics { n: 1 }).await;
    let good = setup.add(Probe { n: 2 }).await;
    setup.wait_for_state(&good, "done").await;
    setup.wait_for_state(&bad, "dead").await;
    assert_eq!(setup.job_state(bad.id).await, ("dead".into(), 2));
    let mut db = setup.db.pool.acquire().await.unwrap();
    let dead = queue::dead_jobs(&mut db, 10).await.unwrap();
    assert!(dead[0].why.as_ref().unwrap().contains("attempt 2 panics"));
    workers.stop().await;
}

#[tokio::test]
async fn a_dead_job_can_be_retried_unless_its_key_is_live() {
    let setup = QueueSetup::new().await;
    let workers = setup.start_workers(2);
    let bad = setup.add(Panics { n: 1 }).await;
    setup.wait_for_state(&bad, "dead").await;
    let mut db = setup.db.pool.acquire().await.unwrap();
    let revived = queue::retry_dead_job(&mut db, bad.id).await.unwrap();
    setup.wakeups.notify_job(&revived);
    setup.wait_for_state(&bad, "dead").await;
    workers.stop().await;
    let missing = queue::retry_dead_job(&mut db, JobId::new()).await;
    assert!(matches!(missing, Err(Error::NotFound(_))));

    let old = setup.add(KeyedJob { n: 1 }).await;
    sqlx::query(
        "update jobs set state = 'dead', finished_at = now(), last_error = 'a test' where id = $1",
    )
    .bind(old.id)
    .execute(&setup.db.pool)
    .await
    .unwrap();
    assert!(setup.add(KeyedJob { n: 1 }).await.is_new);
    let taken = queue::retry_dead_job(&mut db, old.id).await;
    assert!(matches!(taken, Err(Error::Conflict { .. })));
}

#[tokio::test]
async fn delayed_jobs_due_at_the_same_time_drain() {
    let setup = QueueSetup::new().await;
    let workers = setup.start_workers(64);
    let jobs = setup.add_all(&probes(20_000), Duration::from_secs(5)).await;
    assert!(jobs.iter().all(|job| !job.is_due));
    let _ = setup.add(Poison { n: -1 }).await;
    eventually("only the delayed jobs are left", TEST_TIMEOUT, || async {
        setup.count_unfinished().await <= 20_000
    })
    .await;
    setup.wait_until_drained().await;
    workers.stop().await;
    let distinct: HashSet<(i64, i32)> = setup.log.runs().into_iter().collect();
    assert_eq!(distinct.len(), 20_003);
}

#[tokio::test]
async fn a_backlog_drains_each_job_once() {
    let setup = QueueSetup::new().await;
    setup.add_all(&probes(20_000), Duration::ZERO).await;
    let started = Instant::now();
    let workers = setup.start_workers(64);
    setup.wait_until_drained().await;
    eprintln!("20,000 jobs in {:?}", started.elapsed());
    workers.stop().await;
    assert_eq!(setup.log.run_count(), 20_000);
}

#[tokio::test]
async fn a_paused_queue_claims_nothing_until_it_is_resumed() {
    let setup = QueueSetup::new().await;
    let mut db = setup.db.pool.acquire().await.unwrap();
    queue::pause(&mut db, Queue::Control).await.unwrap();
    let workers = setup.start_workers(4);
    let held = setup.add(Probe { n: 1 }).await;
    let other = setup.add(Other { n: 2 }).await;
    setup.wait_for_state(&other, "done").await;
    // The wakeup of the paused queue was sent before that of the other queue.
    assert_eq!(setup.job_state(held.id).await, ("ready".into(), 0));
    let depths = queue::queue_depths(&mut db).await.unwrap();
    let control = depths.iter().find(|d| d.queue == Queue::Control).unwrap();
    assert!(control.paused_at.is_some() && control.oldest_secs.is_some());
    assert_eq!((control.ready, control.running, control.dead), (1, 0, 0));

    queue::resume(&mut db, Queue::Control).await.unwrap();
    setup.wait_for_state(&held, "done").await;
    workers.stop().await;
}

#[tokio::test]
async fn jobs_run_by_priority_then_age() {
    let setup = QueueSetup::new().await;
    setup.add_all(&probes(5), Duration::ZERO).await;
    // Delayed jobs of a higher priority do not block due ones.
    let delayed: Vec<Poison> = (0..2000).map(|n| Poison { n: -n }).collect();
    setup.add_all(&delayed, Duration::from_secs(3600)).await;
    for n in 10..15 {
        let _ = setup.add(Urgent { n }).await;
    }
    let workers = setup.start_workers(1);
    eventually("all due jobs ran", TEST_TIMEOUT, || async {
        setup.log.run_count() == 10
    })
    .await;
    workers.stop().await;
    let order: Vec<i64> = setup.log.runs().iter().map(|(n, _)| *n).collect();
    assert_eq!(order[..5], [10, 11, 12, 13, 14]);
    assert_eq!(order[5..], [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_job_of_an_unknown_kind_waits_for_a_worker_that_knows_it() {
    let setup = QueueSetup::new().await;
    let workers = setup.start_workers(1);
    let job = setup.add(Probe { n: 1 }).await;
    setup.wait_for_state(&job, "done").await;
    sqlx::query(
        "update jobs set kind = 'from_tomorrow', state = 'ready', attempts = 0, finished_at = null",
    )
    .execute(&setup.db.pool)
    .await
    .unwrap();
    eventually("it was tried", TEST_TIMEOUT, || async {
        setup.job_state(job.id).await == ("ready".into(), 1)
    })
    .await;
    workers.stop().await;
}

#[tokio::test]
async fn finished_jobs_are_deleted_after_a_week() {
    let setup = QueueSetup::with_redis(None).await;
    setup.add_all(&probes(1200), Duration::ZERO).await;
    sqlx::query("update jobs set state = 'done', finished_at = now() - interval '8 days'")
        .execute(&setup.db.pool)
        .await
        .unwrap();
    let recent = setup.add(Probe { n: 1 }).await;
    sqlx::query("update jobs set state = 'done', finished_at = now() where id = $1")
        .bind(recent.id)
        .execute(&setup.db.pool)
        .await
        .unwrap();
    let swept = queue::sweep(&setup.db.pool, &setup.wakeups).await.unwrap();
    assert_eq!(swept.deleted, 1200);
    assert_eq!(setup.job_state(recent.id).await.0, "done");
}
