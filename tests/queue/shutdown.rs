//! Shutdown of a worker process: no more claims, running jobs may finish, and no job is lost.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Deaf, Gated, Probe, QueueSetup, TEST_TIMEOUT, Urgent};
use crate::harness::eventually;

#[tokio::test]
async fn a_shutdown_finishes_running_jobs_and_claims_no_more() {
    let setup = QueueSetup::new().await;
    let workers = setup.start_workers(2);
    let gated: Vec<Gated> = (0..2).map(|n| Gated { n }).collect();
    setup.add_all(&gated, Duration::ZERO).await;
    eventually("both jobs run", TEST_TIMEOUT, || async {
        setup.log.run_count() == 2
    })
    .await;
    let waiting = setup.add(Urgent { n: 9 }).await;
    workers.shutdown.cancel();
    setup.log.gate.add_permits(2);
    let stopping = Instant::now();
    workers.stop().await;
    assert!(stopping.elapsed() < Duration::from_secs(10));
    assert_eq!(setup.job_state(waiting.id).await, ("ready".into(), 0));
    let done: i64 = sqlx::query_scalar("select count(*) from jobs where state = 'done'")
        .fetch_one(&setup.db.pool)
        .await
        .unwrap();
    assert_eq!(done, 2);
}

#[tokio::test]
async fn idle_workers_stop_at_once() {
    let setup = QueueSetup::new().await;
    let workers = setup.start_workers(8);
    let job = setup.add(Probe { n: 1 }).await;
    setup.wait_for_state(&job, "done").await;
    let stopping = Instant::now();
    workers.stop().await;
    assert!(stopping.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_job_that_outlasts_the_grace_period_is_aborted_and_may_report_its_outcome() {
    let mut setup = QueueSetup::new().await;
    setup.timing.grace = Duration::from_millis(300);
    let workers = setup.start_workers(2);
    let job = setup.add(Gated { n: 1 }).await;
    eventually("it runs", TEST_TIMEOUT, || async {
        setup.log.run_count() == 1
    })
    .await;
    workers.stop().await;
    assert_eq!(setup.log.lost_runs.load(Ordering::SeqCst), 1);
    assert_eq!(setup.job_state(job.id).await, ("dead".into(), 1));
}

#[tokio::test]
async fn a_job_that_ignores_the_abort_runs_again_after_its_lease() {
    let mut setup = QueueSetup::new().await;
    setup.timing.grace = Duration::from_millis(200);
    setup.timing.abort_grace = Duration::from_millis(200);
    let workers = setup.start_workers(2);
    let job = setup.add(Deaf { n: 1 }).await;
    eventually("it runs", TEST_TIMEOUT, || async {
        setup.log.run_count() == 1
    })
    .await;
    let stopping = Instant::now();
    workers.stop().await;
    assert!(stopping.elapsed() < Duration::from_secs(10));
    assert_eq!(setup.job_state(job.id).await, ("running".into(), 1));

    let others = setup.start_workers(2);
    setup.expire_lease(job.id, 1).await;
    eventually("it runs again", TEST_TIMEOUT, || async {
        setup.log.run_count() == 2
    })
    .await;
    setup.log.gate.add_permits(2);
    setup.wait_for_state(&job, "done").await;
    others.stop().await;
    assert_eq!(setup.job_state(job.id).await, ("done".into(), 2));
}
