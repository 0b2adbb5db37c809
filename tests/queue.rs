//! Jobs: they exist with their transaction, run once per claim, and end in one of few ways.

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
const PATIENCE: Duration = Duration::from_secs(60);

/// What the handlers below write down.
struct Log {
    /// Number and attempt of each run, in order.
    runs: Mutex<Vec<(i64, i32)>>,
    /// Holds back `Gated` jobs.
    gate: Semaphore,
    /// How many runs were told that their job was lost.
    lost: AtomicUsize,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            runs: Mutex::default(),
            gate: Semaphore::new(0),
            lost: AtomicUsize::new(0),
        }
    }
}

impl Log {
    fn note(&self, n: i64, job: &RunningJob) {
        self.runs.lock().unwrap().push((n, job.attempt));
    }

    fn runs(&self) -> Vec<(i64, i32)> {
        self.runs.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
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
struct Keyed {
    n: i64,
}

impl JobPayload for Keyed {
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
        impl JobHandler<Log> for $name {
            async fn handle(self, log: &Log, job: &RunningJob) -> JobOutcome {
                log.note(self.n, job);
                JobOutcome::Done
            }
        }
    )+};
}

handled_by_noting!(Probe Urgent Keyed Other);

impl JobHandler<Log> for Poison {
    async fn handle(self, log: &Log, job: &RunningJob) -> JobOutcome {
        log.note(self.n, job);
        JobOutcome::Retry {
            after: Some(Duration::ZERO),
            why: "poisoned".into(),
        }
    }
}

impl JobHandler<Log> for Panics {
    async fn handle(self, _: &Log, job: &RunningJob) -> JobOutcome {
        panic!("attempt {} panics", job.attempt)
    }
}

/// Waits for the gate, or fails for good as soon as its job is lost.
impl JobHandler<Log> for Gated {
    async fn handle(self, log: &Log, job: &RunningJob) -> JobOutcome {
        log.note(self.n, job);
        tokio::select! {
            passed = log.gate.acquire() => passed.unwrap().forget(),
            () = job.lease_lost().cancelled() => {
                log.lost.fetch_add(1, Ordering::SeqCst);
                return JobOutcome::Fail { why: "too late to matter".into() };
            }
        }
        JobOutcome::Done
    }
}

/// Waits for the gate, whatever it is told.
impl JobHandler<Log> for Deaf {
    async fn handle(self, log: &Log, job: &RunningJob) -> JobOutcome {
        log.note(self.n, job);
        log.gate.acquire().await.unwrap().forget();
        JobOutcome::Done
    }
}

/// A database, bells and workers.
struct House {
    db: TestDatabase,
    bells: Wakeups,
    log: Arc<Log>,
    timing: WorkerTiming,
}

/// Workers of one process.
struct Workers {
    shutdown: CancellationToken,
    ended: JoinHandle<anyhow::Result<()>>,
}

impl Workers {
    async fn stop(self) {
        self.shutdown.cancel();
        self.ended.await.unwrap().unwrap();
    }
}

impl House {
    /// A house whose bells hang on the shared test Redis, under a prefix of their own.
    async fn new() -> Self {
        Self::with_redis(Some(&env_setting("PEAL_TEST_REDIS_URL"))).await
    }

    async fn with_redis(url: Option<&str>) -> Self {
        let prefix = format!("test-{}", JobId::new());
        Self {
            db: fresh_database().await,
            bells: Wakeups::new(url, &prefix).unwrap(),
            log: Arc::default(),
            timing: WorkerTiming::default(),
        }
    }

    /// Starts a process with so many hands for the control queue, and one for each other.
    fn work(&self, hands: usize) -> Workers {
        let registry = HandlerRegistry::default()
            .with::<Probe>()
            .with::<Urgent>()
            .with::<Keyed>()
            .with::<Other>()
            .with::<Poison>()
            .with::<Panics>()
            .with::<Gated>()
            .with::<Deaf>()
            .with::<states::Told>();
        let queues = QueueRuntime {
            pool: self.db.pool.clone(),
            wakeups: self.bells.clone(),
            state: Arc::clone(&self.log),
            registry: Arc::new(registry),
            timing: self.timing,
        };
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let ended = tokio::spawn(async move {
            let hands = [(Queue::Control, hands), (Queue::Ingest, 1)];
            run_queues(queues, &hands, token).await
        });
        Workers { shutdown, ended }
    }

    async fn add<P: JobPayload>(&self, payload: P) -> EnqueuedJob {
        let mut db = self.db.pool.acquire().await.unwrap();
        let job = queue::enqueue(&mut db, &payload, None).await.unwrap();
        self.bells.notify_job(&job);
        job
    }

    async fn add_all<P: JobPayload>(&self, payloads: &[P], delay: Duration) -> Vec<EnqueuedJob> {
        let mut db = self.db.pool.acquire().await.unwrap();
        let run_at = (!delay.is_zero()).then(|| Clock::default().now() + delay);
        let jobs = queue::enqueue_all(&mut db, payloads, run_at).await.unwrap();
        jobs.iter().for_each(|job| self.bells.notify_job(job));
        jobs
    }

    async fn state(&self, id: JobId) -> (String, i32) {
        sqlx::query_as("select state, attempts from jobs where id = $1")
            .bind(id)
            .fetch_one(&self.db.pool)
            .await
            .unwrap()
    }

    async fn becomes(&self, job: &EnqueuedJob, state: &str) {
        eventually(&format!("the job is {state}"), PATIENCE, || async {
            self.state(job.id).await.0 == state
        })
        .await;
    }

    async fn unfinished(&self) -> i64 {
        sqlx::query_scalar("select count(*) from jobs where state in ('ready', 'running')")
            .fetch_one(&self.db.pool)
            .await
            .unwrap()
    }

    /// Waits until no job is left, while there are ever fewer.
    async fn drained(&self) {
        let (mut fewest, mut since) = (i64::MAX, Instant::now());
        loop {
            let left = self.unfinished().await;
            if left == 0 {
                return;
            }
            if left < fewest {
                (fewest, since) = (left, Instant::now());
            }
            let waited = since.elapsed();
            assert!(waited < PATIENCE, "for {waited:?} {left} jobs are left");
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
    async fn extended_twice(&self, id: JobId) {
        for _ in 0..2 {
            let before = self.lease_until(id).await;
            eventually("the lease is extended", PATIENCE, || async {
                self.lease_until(id).await > before
            })
            .await;
        }
    }

    /// Lets the lease of the job's `fence`th claim run out, and sweeps.
    async fn lose_lease(&self, id: JobId, fence: i64) {
        eventually("the lease has run out", PATIENCE, || async {
            sqlx::query(
                "update jobs set lease_until = now() - interval '1 second'
                where id = $1 and fence = $2 and state = 'running'",
            )
            .bind(id)
            .bind(fence)
            .execute(&self.db.pool)
            .await
            .unwrap();
            queue::sweep(&self.db.pool, &self.bells).await.unwrap();
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
    let house = House::new().await;
    let mut tx = house.db.pool.begin().await.unwrap();
    let undone = queue::enqueue(&mut tx, &Probe { n: 1 }, None)
        .await
        .unwrap();
    tx.rollback().await.unwrap();
    house.bells.notify_job(&undone);
    assert_eq!(house.unfinished().await, 0);

    let mut tx = house.db.pool.begin().await.unwrap();
    let job = queue::enqueue(&mut tx, &Probe { n: 2 }, None)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert!(job.is_new && job.is_due);

    let workers = house.work(4);
    house.becomes(&job, "done").await;
    workers.stop().await;
    assert_eq!(house.log.runs(), [(2, 1)]);
}

#[tokio::test]
async fn a_live_key_is_added_once_and_a_finished_one_again() {
    let house = House::new().await;
    let first = house.add(Keyed { n: 7 }).await;
    let second = house.add(Keyed { n: 7 }).await;
    assert_eq!((second.id, second.is_new), (first.id, false));
    let both = [Keyed { n: 7 }, Keyed { n: 8 }];
    assert_eq!(house.add_all(&both, Duration::ZERO).await.len(), 1);

    let workers = house.work(4);
    house.drained().await;
    assert!(house.add(Keyed { n: 7 }).await.is_new);
    house.drained().await;
    workers.stop().await;
    assert_eq!(house.log.count(), 3);
}

#[tokio::test]
async fn concurrent_adders_of_a_key_agree_on_one_job() {
    let house = House::new().await;
    let adders = (0..8).map(|_| house.add(Keyed { n: 1 }));
    let jobs = futures::future::join_all(adders).await;
    assert_eq!(jobs.iter().filter(|job| job.is_new).count(), 1);
    let ids: HashSet<JobId> = jobs.iter().map(|job| job.id).collect();
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn two_workers_run_each_of_2000_jobs_once() {
    let house = House::new().await;
    let workers = [house.work(8), house.work(8)];
    house.add_all(&probes(2000), Duration::ZERO).await;
    house.drained().await;
    for process in workers {
        process.stop().await;
    }
    let runs = house.log.runs();
    assert_eq!(runs.len(), 2000);
    assert!(runs.iter().all(|(_, attempt)| *attempt == 1));
    let distinct: HashSet<i64> = runs.iter().map(|(n, _)| *n).collect();
    assert_eq!(distinct.len(), 2000);
}

#[tokio::test]
async fn a_lost_job_is_run_again_and_its_first_run_changes_nothing() {
    let mut house = House::new().await;
    house.timing.heartbeat = Duration::from_millis(200);
    let workers = house.work(4);
    let job = house.add(Gated { n: 1 }).await;
    eventually("the first run", PATIENCE, || async {
        house.log.count() == 1
    })
    .await;

    house.lose_lease(job.id, 1).await;
    eventually("the second run", PATIENCE, || async {
        house.log.count() == 2
    })
    .await;
    eventually("the first run is told", PATIENCE, || async {
        house.log.lost.load(Ordering::SeqCst) == 1
    })
    .await;
    // The first run has answered that the job must die; its fence is old.
    assert_eq!(house.state(job.id).await, ("running".into(), 2));

    house.log.gate.add_permits(1);
    house.becomes(&job, "done").await;
    workers.stop().await;
    assert_eq!(house.log.runs(), [(1, 1), (1, 2)]);
    assert_eq!(house.state(job.id).await, ("done".into(), 2));
}

#[tokio::test]
async fn a_job_whose_workers_vanish_runs_out_of_attempts() {
    let mut house = House::new().await;
    // No sign of life while the test lasts, as if the process were gone.
    house.timing.heartbeat = Duration::from_secs(600);
    let workers = house.work(10);
    let job = house.add(Gated { n: 1 }).await;
    for fence in 1..=5 {
        eventually("a run", PATIENCE, || async {
            house.log.runs().last() == Some(&(1, i32::try_from(fence).unwrap()))
        })
        .await;
        house.lose_lease(job.id, fence).await;
    }
    assert_eq!(house.state(job.id).await, ("dead".into(), 5));
    house.log.gate.add_permits(5);
    workers.stop().await;
    assert_eq!(house.state(job.id).await, ("dead".into(), 5));

    let mut db = house.db.pool.acquire().await.unwrap();
    let dead = queue::dead_jobs(&mut db, 10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert!(dead[0].why.as_ref().unwrap().starts_with("attempt 5 of 5"));
}

#[tokio::test]
async fn leases_are_extended_while_a_job_runs() {
    let mut house = House::new().await;
    house.timing.heartbeat = Duration::from_millis(300);
    // Nobody is told to stop while the test lasts.
    house.timing.grace = Duration::from_secs(600);
    let workers = house.work(2);
    let job = house.add(Gated { n: 1 }).await;
    eventually("it starts", PATIENCE, || async { house.log.count() == 1 }).await;
    house.extended_twice(job.id).await;
    assert_eq!(house.state(job.id).await, ("running".into(), 1));

    // Also while the process drains.
    workers.shutdown.cancel();
    house.extended_twice(job.id).await;
    assert_eq!(house.state(job.id).await, ("running".into(), 1));
    house.log.gate.add_permits(1);
    workers.stop().await;
    assert_eq!(house.state(job.id).await, ("done".into(), 1));
}

#[tokio::test]
async fn a_poison_job_dies_after_its_own_limit_while_others_flow() {
    let house = House::new().await;
    let poison = house.add(Poison { n: -1 }).await;
    house.add_all(&probes(500), Duration::ZERO).await;
    let workers = house.work(2);
    house.drained().await;
    workers.stop().await;
    assert_eq!(house.state(poison.id).await, ("dead".into(), 3));
    let probes = house.log.runs().iter().filter(|(n, _)| *n >= 0).count();
    assert_eq!(probes, 500);

    let mut db = house.db.pool.acquire().await.unwrap();
    let dead = queue::dead_jobs(&mut db, 10).await.unwrap();
    assert_eq!(dead[0].id, poison.id);
    assert!(dead[0].why.as_ref().unwrap().contains("poisoned"));
}

#[tokio::test]
async fn a_panic_ends_one_run_and_counts_as_a_failure() {
    let house = House::new().await;
    let workers = house.work(2);
    let bad = house.add(Panics { n: 1 }).await;
    let good = house.add(Probe { n: 2 }).await;
    house.becomes(&good, "done").await;
    house.becomes(&bad, "dead").await;
    assert_eq!(house.state(bad.id).await, ("dead".into(), 2));
    let mut db = house.db.pool.acquire().await.unwrap();
    let dead = queue::dead_jobs(&mut db, 10).await.unwrap();
    assert!(dead[0].why.as_ref().unwrap().contains("attempt 2 panics"));
    workers.stop().await;
}

#[tokio::test]
async fn a_dead_job_can_be_retried_unless_its_work_is_under_way() {
    let house = House::new().await;
    let workers = house.work(2);
    let bad = house.add(Panics { n: 1 }).await;
    house.becomes(&bad, "dead").await;
    let mut db = house.db.pool.acquire().await.unwrap();
    let retried = queue::retry_dead_job(&mut db, bad.id).await.unwrap();
    house.bells.notify_job(&retried);
    house.becomes(&bad, "dead").await;
    workers.stop().await;
    let missing = queue::retry_dead_job(&mut db, JobId::new()).await;
    assert!(matches!(missing, Err(Error::NotFound(_))));

    let old = house.add(Keyed { n: 1 }).await;
    sqlx::query(
        "update jobs set state = 'dead', finished_at = now(), last_error = 'a test' where id = $1",
    )
    .bind(old.id)
    .execute(&house.db.pool)
    .await
    .unwrap();
    assert!(house.add(Keyed { n: 1 }).await.is_new);
    let taken = queue::retry_dead_job(&mut db, old.id).await;
    assert!(matches!(taken, Err(Error::Conflict { .. })));
}

#[tokio::test]
async fn delayed_jobs_that_fall_due_together_drain() {
    let house = House::new().await;
    let workers = house.work(64);
    let jobs = house.add_all(&probes(20_000), Duration::from_secs(5)).await;
    assert!(jobs.iter().all(|job| !job.is_due));
    let _ = house.add(Poison { n: -1 }).await;
    eventually("only the delayed jobs are left", PATIENCE, || async {
        house.unfinished().await <= 20_000
    })
    .await;
    house.drained().await;
    workers.stop().await;
    let distinct: HashSet<(i64, i32)> = house.log.runs().into_iter().collect();
    assert_eq!(distinct.len(), 20_003);
}

#[tokio::test]
async fn a_backlog_drains_each_job_once() {
    let house = House::new().await;
    house.add_all(&probes(20_000), Duration::ZERO).await;
    let started = Instant::now();
    let workers = house.work(64);
    house.drained().await;
    eprintln!("20,000 jobs in {:?}", started.elapsed());
    workers.stop().await;
    assert_eq!(house.log.count(), 20_000);
}

#[tokio::test]
async fn a_paused_queue_waits_and_goes_on() {
    let house = House::new().await;
    let mut db = house.db.pool.acquire().await.unwrap();
    queue::pause(&mut db, Queue::Control).await.unwrap();
    let workers = house.work(4);
    let held = house.add(Probe { n: 1 }).await;
    let other = house.add(Other { n: 2 }).await;
    house.becomes(&other, "done").await;
    // The bell of the paused queue has rung before that of the other one.
    assert_eq!(house.state(held.id).await, ("ready".into(), 0));
    let depths = queue::queue_depths(&mut db).await.unwrap();
    let control = depths.iter().find(|d| d.queue == Queue::Control).unwrap();
    assert!(control.paused_at.is_some() && control.oldest_secs.is_some());
    assert_eq!((control.ready, control.running, control.dead), (1, 0, 0));

    queue::resume(&mut db, Queue::Control).await.unwrap();
    house.becomes(&held, "done").await;
    workers.stop().await;
}

#[tokio::test]
async fn the_higher_priority_goes_first_then_the_older() {
    let house = House::new().await;
    house.add_all(&probes(5), Duration::ZERO).await;
    // Delayed jobs of a higher priority do not stand in the way.
    let delayed: Vec<Poison> = (0..2000).map(|n| Poison { n: -n }).collect();
    house.add_all(&delayed, Duration::from_secs(3600)).await;
    for n in 10..15 {
        let _ = house.add(Urgent { n }).await;
    }
    let workers = house.work(1);
    eventually("all due jobs ran", PATIENCE, || async {
        house.log.count() == 10
    })
    .await;
    workers.stop().await;
    let order: Vec<i64> = house.log.runs().iter().map(|(n, _)| *n).collect();
    assert_eq!(order[..5], [10, 11, 12, 13, 14]);
    assert_eq!(order[5..], [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_job_of_an_unknown_kind_waits_for_a_worker_that_knows_it() {
    let house = House::new().await;
    let workers = house.work(1);
    let job = house.add(Probe { n: 1 }).await;
    house.becomes(&job, "done").await;
    sqlx::query(
        "update jobs set kind = 'from_tomorrow', state = 'ready', attempts = 0, finished_at = null",
    )
    .execute(&house.db.pool)
    .await
    .unwrap();
    eventually("it was tried", PATIENCE, || async {
        house.state(job.id).await == ("ready".into(), 1)
    })
    .await;
    workers.stop().await;
}

#[tokio::test]
async fn finished_jobs_are_forgotten_after_a_week() {
    let house = House::with_redis(None).await;
    house.add_all(&probes(1200), Duration::ZERO).await;
    sqlx::query("update jobs set state = 'done', finished_at = now() - interval '8 days'")
        .execute(&house.db.pool)
        .await
        .unwrap();
    let recent = house.add(Probe { n: 1 }).await;
    sqlx::query("update jobs set state = 'done', finished_at = now() where id = $1")
        .bind(recent.id)
        .execute(&house.db.pool)
        .await
        .unwrap();
    let swept = queue::sweep(&house.db.pool, &house.bells).await.unwrap();
    assert_eq!(swept.deleted, 1200);
    assert_eq!(house.state(recent.id).await.0, "done");
}
