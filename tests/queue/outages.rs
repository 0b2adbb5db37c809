//! Without Redis, without connections: jobs are late, never lost.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use peal_shared::platform::queue;
use peal_shared::platform::queue::Queue;
use peal_shared::platform::queue::wakeup::{WakeupChannel, Wakeups};

use super::{House, Other, PATIENCE, Probe};
use crate::harness::eventually;
use crate::harness::redis::PrivateRedis;

#[tokio::test]
async fn jobs_are_found_without_redis() {
    let house = House::with_redis(None).await;
    let workers = house.work(4);
    for n in 0..3 {
        let job = house.add(Probe { n }).await;
        house.becomes(&job, "done").await;
    }
    workers.stop().await;
}

#[tokio::test]
async fn a_bell_wakes_an_idle_worker_before_it_would_look() {
    let mut house = House::new().await;
    house.timing.poll = Duration::from_secs(5);
    let workers = house.work(4);
    let (mut rung, mut unrung) = (Vec::new(), Vec::new());
    for n in 0..24 {
        let mut db = house.db.pool.acquire().await.unwrap();
        let added = Instant::now();
        let job = queue::enqueue(&mut db, &Probe { n }, None).await.unwrap();
        drop(db);
        let times = if n % 8 == 7 {
            &mut unrung
        } else {
            house.bells.notify_job(&job);
            &mut rung
        };
        house.becomes(&job, "done").await;
        times.push(added.elapsed());
    }
    workers.stop().await;
    // How long looking takes is measured on the same machine. One that stands still may keep a
    // job waiting or lose a bell, but not every fourth.
    rung.sort();
    unrung.sort();
    assert!(rung[15] * 2 < unrung[1], "{rung:?} beside {unrung:?}");
}

#[tokio::test]
async fn redis_may_forget_restart_and_be_absent() {
    let mut redis = PrivateRedis::start().await;
    let house = House::with_redis(Some(&redis.url())).await;
    let workers = house.work(4);
    let mut added = 0;
    let mut add = async |house: &House| {
        let batch: Vec<Probe> = (0..200).map(|n| Probe { n: added + n }).collect();
        added += 200;
        house.add_all(&batch, Duration::ZERO).await;
    };
    add(&house).await;
    redis.flush().await;
    house.drained().await;

    add(&house).await;
    redis.kill().await;
    add(&house).await;
    house.drained().await;
    add(&house).await;
    house.drained().await;

    redis.restart().await;
    // The bell is heard again, without help: far sooner than by looking.
    eventually("a bell is heard again", PATIENCE, || async {
        let before = Instant::now();
        let job = house.add(Other { n: -1 }).await;
        house.becomes(&job, "done").await;
        before.elapsed() < Duration::from_millis(500)
    })
    .await;
    add(&house).await;
    house.drained().await;
    workers.stop().await;
    let probes = house.log.runs().iter().filter(|(n, _)| *n >= 0).count();
    assert_eq!(probes, 1000);
}

#[tokio::test]
async fn workers_survive_the_loss_of_every_database_connection() {
    let house = House::new().await;
    let workers = house.work(8);
    for round in 0..5 {
        let batch: Vec<Probe> = (0..200).map(|n| Probe { n: round * 200 + n }).collect();
        house.add_all(&batch, Duration::ZERO).await;
        sqlx::query(
            "select pg_terminate_backend(pid) from pg_stat_activity
            where datname = $1 and pid <> pg_backend_pid()",
        )
        .bind(&house.db.name)
        .execute(&house.db.pool)
        .await
        .unwrap();
    }
    let pool = house.db.pool.clone();
    eventually("all have run", PATIENCE, || async {
        // A claim whose answer was cut off is returned when its lease ends; hurry it.
        let _ = sqlx::query(
            "update jobs set lease_until = now() - interval '1 second'
            where state = 'running' and lease_until < now() + interval '50 seconds'",
        )
        .execute(&pool)
        .await;
        let distinct: HashSet<i64> = house.log.runs().iter().map(|(n, _)| *n).collect();
        distinct.len() == 1000
    })
    .await;
    workers.stop().await;
}

#[tokio::test]
async fn a_bell_that_nobody_hears_does_not_grow() {
    let redis = PrivateRedis::start().await;
    let bells = Wakeups::new(Some(&redis.url()), "peal").unwrap();
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    // Of a bell that rests there would be few anyway.
    let mail = WakeupChannel::Jobs(Queue::Mail);
    for _ in 0..3000 {
        bells.notify(mail);
    }
    let mut listener = bells.listen(mail);
    assert!(listener.wait(1, Duration::from_secs(5)).await);
    bells.notify(WakeupChannel::Inbox);
    eventually("the last ring arrived", PATIENCE, || {
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
