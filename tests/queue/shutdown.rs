//! Ending a process: nothing more is claimed, what runs may finish, and nothing is lost.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Deaf, Gated, House, PATIENCE, Probe, Urgent};
use crate::harness::eventually;

#[tokio::test]
async fn a_shutdown_finishes_what_runs_and_claims_nothing_more() {
    let house = House::new().await;
    let workers = house.work(2);
    let gated: Vec<Gated> = (0..2).map(|n| Gated { n }).collect();
    house.add_all(&gated, Duration::ZERO).await;
    eventually("both hands are busy", PATIENCE, || async {
        house.log.count() == 2
    })
    .await;
    let waiting = house.add(Urgent { n: 9 }).await;
    workers.shutdown.cancel();
    house.log.gate.add_permits(2);
    let stopping = Instant::now();
    workers.stop().await;
    assert!(stopping.elapsed() < Duration::from_secs(10));
    assert_eq!(house.state(waiting.id).await, ("ready".into(), 0));
    let done: i64 = sqlx::query_scalar("select count(*) from jobs where state = 'done'")
        .fetch_one(&house.db.pool)
        .await
        .unwrap();
    assert_eq!(done, 2);
}

#[tokio::test]
async fn idle_workers_stop_at_once() {
    let house = House::new().await;
    let workers = house.work(8);
    let job = house.add(Probe { n: 1 }).await;
    house.becomes(&job, "done").await;
    let stopping = Instant::now();
    workers.stop().await;
    assert!(stopping.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_job_that_outlasts_the_grace_is_told_to_stop_and_may_still_answer() {
    let mut house = House::new().await;
    house.timing.grace = Duration::from_millis(300);
    let workers = house.work(2);
    let job = house.add(Gated { n: 1 }).await;
    eventually("it runs", PATIENCE, || async { house.log.count() == 1 }).await;
    workers.stop().await;
    assert_eq!(house.log.lost.load(Ordering::SeqCst), 1);
    assert_eq!(house.state(job.id).await, ("dead".into(), 1));
}

#[tokio::test]
async fn a_job_that_will_not_stop_is_left_to_its_lease() {
    let mut house = House::new().await;
    house.timing.grace = Duration::from_millis(200);
    house.timing.abort_grace = Duration::from_millis(200);
    let workers = house.work(2);
    let job = house.add(Deaf { n: 1 }).await;
    eventually("it runs", PATIENCE, || async { house.log.count() == 1 }).await;
    let stopping = Instant::now();
    workers.stop().await;
    assert!(stopping.elapsed() < Duration::from_secs(10));
    assert_eq!(house.state(job.id).await, ("running".into(), 1));

    let others = house.work(2);
    house.lose_lease(job.id, 1).await;
    eventually("it runs again", PATIENCE, || async {
        house.log.count() == 2
    })
    .await;
    house.log.gate.add_permits(2);
    house.becomes(&job, "done").await;
    others.stop().await;
    assert_eq!(house.state(job.id).await, ("done".into(), 2));
}
