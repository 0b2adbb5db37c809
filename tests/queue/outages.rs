//! Outages of Redis and of database connections: jobs are delayed, never lost.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use peal_shared::platform::queue;
use peal_shared::platform::queue::Queue;
use peal_shared::platform::queue::wakeup::{WakeupChannel, Wakeups};

use super::{Other, Probe, QueueSetup, TEST_TIMEOUT};
use crate::harness::eventually;
use crate::harness::redis::PrivateRedis;

#[tokio::test]
async fn jobs_run_without_redis() {
    let setup = QueueSetup::with_redis(None).await;
    let workers = setup.start_workers(4);
    for n in 0..3 {
        let job = setup.add(Probe { n }).await;
        setup.wait_for_state(&job, "done").await;
    }
    workers.stop().await;
}

#[tokio::test]
async fn a_wakeup_starts_a_job_before_the_next_poll() {
    let mut setup = QueueSetup::new().await;
    setup.timing.poll = Duration::from_secs(5);

    let workers = setup.start_workers(4);
    let (mut notified, mut polled) = (Vec::new(), Vec::new());
    for n in 0..24 {
        let mut db = setup.db.pool.acquire().await.unwrap();
        let added = Instant::now();
        let job = queue::enqueue(&mut db, &Probe { n }, None).await.unwrap();
        drop(db);
        let times = if n % 8 == 7 {
            &mut polled
        } else {
            setup.wakeups.notify_job(&job);
            &mut notified
        };
        setup.wait_for_state(&job, "done").await;
        times.push(added.elapsed());
    }

    workers.stop().await;
    // Compared with polling on the same machine, which may stall and delay a job or lose a wakeup, but
    // not every fourth one.
    notified.sort();
    polled.sort();
    assert!(
        notified[15] * 2 < polled[1],
        "{notified:?} against {polled:?}"
    );
}

#[tokio::test]
async fn jobs_run_through_a_flush_an_outage_and_a_restart_of_redis() {
    let mut redis = PrivateRedis::start().await;
    let setup = QueueSetup::with_redis(Some(&redis.url())).await;
    let workers = setup.start_workers(4);
    let mut added = 0;
    let mut add = async |setup: &QueueSetup| {
        let batch: Vec<Probe> = (0..200).map(|n| Probe { n: added + n }).collect();
        added += 200;
        setup.add_all(&batch, Duration::ZERO).await;
    };
    add(&setup).await;
    redis.flush().await;
    setup.wait_until_drained().await;

    add(&setup).await;
    redis.kill().await;
    add(&setup).await;
    setup.wait_until_drained().await;
    add(&setup).await;
    setup.wait_until_drained().await;

    redis.restart().await;
    // Wakeups arrive again, far sooner than the next poll.
    eventually("a wakeup arrives again", TEST_TIMEOUT, || async {
        let before = Instant::now();
        let job = setup.add(Other { n: -1 }).await;
        setup.wait_for_state(&job, "done").await;
        before.elapsed() < Duration::from_millis(500)
    })
    .await;
    add(&setup).await;
    setup.wait_until_drained().await;
    workers.stop().await;
    let probes = setup.log.runs().iter().filter(|(n, _)| *n >= 0).count();
    assert_eq!(probes, 1000);
}

#[tokio::test]
async fn workers_survive_the_loss_of_every_database_connection() {
    let setup = QueueSetup::new().await;
    let workers = setup.start_workers(8);

    for round in 0..5 {
        let batch: Vec<Probe> = (0..200).map(|n| Probe { n: round * 200 + n }).collect();
        setup.add_all(&batch, Duration::ZERO).await;
        sqlx::query(
            "select pg_terminate_backend(pid) from pg_stat_activity
            where datname = $1 and pid <> pg_backend_pid()",
        )
        .bind(&setup.db.name)
        .execute(&setup.db.pool)
        .await
        .unwrap();
    }

    let pool = setup.db.pool.clone();
    eventually("all have run", TEST_TIMEOUT, || async {
        // A claim with a lost response waits for its lease to expire; expire it early.
        let _ = sqlx::query(
            "update jobs set lease_until = now() - interval '1 second'
            where state = 'running' and lease_until < now() + interval '50 seconds'",
        )
        .execute(&pool)
        .await;
        let distinct: HashSet<i64> = setup.log.runs().iter().map(|(n, _)| *n).collect();
        distinct.len() == 1000
    })
    .await;

    workers.stop().await;
}

#[tokio::test]
async fn a_wakeup_channel_without_listeners_stays_bounded() {
    let redis = PrivateRedis::start().await;
    let wakeups = Wakeups::new(Some(&redis.url()), "peal").unwrap();
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();

    // Channels that coalesce would hold few wakeups anyway; those of jobs do not.
    let mail = WakeupChannel::Jobs(Queue::Mail);
    for _ in 0..3000 {
        wakeups.notify(mail);
    }
    let mut listener = wakeups.listen(mail);
    assert!(listener.wait(1, Duration::from_secs(5)).await);

    wakeups.notify(WakeupChannel::Inbox);
    eventually("the last wakeup arrived", TEST_TIMEOUT, || {
        let mut connection = connection.clone();
        async move {
            let exists: bool = redis::cmd("EXISTS")
                .arg("peal:{inbox}:bell")
                .query_async(&mut connection)
                .await
                .unwrap();
            exists
        }
    })
    .await;

    let length: usize = redis::cmd("LLEN")
        .arg("peal:{mail}:bell")
        .query_async(&mut connection)
        .await
        .unwrap();
    assert!(length <= 1000, "{length}");
}
