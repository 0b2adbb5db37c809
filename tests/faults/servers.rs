//! Redis, PostgreSQL and the API fail in the middle of a campaign.

use serde_json::json;
use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::{SeededRng, seeds};
use crate::harness::client::TEST_TIMEOUT;
use crate::harness::cluster::{Cluster, ClusterOptions};

#[tokio::test(flavor = "multi_thread")]
async fn a_campaign_survives_a_flush_and_a_kill_of_redis() {
    for seed in seeds(1) {
        let mut dice = SeededRng::new(seed);
        let mut cluster = Cluster::start(seed, ClusterOptions::default()).await;
        let batch = cluster
            .start_campaign(300, json!({"batch_size": 100}))
            .await;
        cluster.wait_for_accepted(dice.draw(20..60)).await;

        let client = redis::Client::open(cluster.services.redis_url.as_str()).expect("url");
        let mut connection = client
            .get_multiplexed_async_connection()
            .await
            .expect("connect");
        let () = redis::cmd("FLUSHALL")
            .query_async(&mut connection)
            .await
            .expect("flush");

        cluster.wait_for_accepted(dice.draw(80..140)).await;
        cluster.services.kill_redis().await.expect("kill");
        cluster.wait_for_accepted(dice.draw(160..220)).await;
        cluster.services.start_redis().await.expect("start");
        cluster.finish(&batch, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_campaign_survives_crashes_of_postgresql() {
    for seed in seeds(1) {
        let mut dice = SeededRng::new(seed);
        let mut cluster = Cluster::start(seed, ClusterOptions::default()).await;
        let batch = cluster
            .start_campaign(300, json!({"batch_size": 100}))
            .await;
        cluster.wait_for_accepted(dice.draw(40..120)).await;
        cluster.services.restart_postgres().await.expect("restart");
        cluster.wait_for_accepted(dice.draw(150..200)).await;
        cluster.services.restart_postgres().await.expect("restart");
        // A claim whose commit was cut off may have been committed. No worker holds those calls,
        // so they are given up instead of being dialled without proof.
        cluster.finish(&batch, 40).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_callbacks_survive_crashes_of_the_api() {
    for seed in seeds(1) {
        let mut dice = SeededRng::new(seed);
        let mut cluster = Cluster::start(
            seed,
            ClusterOptions {
                api_faults: "append.committed=0.01",
                ..ClusterOptions::default()
            },
        )
        .await;

        let batch = cluster
            .start_campaign(600, json!({"batch_size": 100}))
            .await;
        let open = "select count(*) from call_batches where status <> 'completed'";

        // 1. Kill the API four times between callbacks.
        for _ in 0..4 {
            let next = cluster.carrier.oracle().callbacks.sent + dice.draw(50..150);
            let deadline = Instant::now() + TEST_TIMEOUT;
            let mut aged = Instant::now();
            while cluster.carrier.oracle().callbacks.sent < next
                && !cluster.api_has_crashed()
                && cluster.try_query_number(open).await != Some(0)
            {
                // Calls that ended without an API keep their slots until they are reconciled.
                if aged.elapsed() > Duration::from_millis(100) {
                    cluster.age_calls().await;
                    aged = Instant::now();
                }
                if Instant::now() > deadline {
                    cluster.fail_with_state("callbacks arrive").await;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }

            cluster.kill_api().await;
            cluster.start_api().await;
        }

        // 2. Restart it after each crash until the batch completes.
        let mut deadline = Instant::now() + TEST_TIMEOUT;
        while cluster.try_query_number(open).await != Some(0) {
            if cluster.api_has_crashed() {
                cluster.kill_api().await;
                cluster.start_api().await;
                deadline = Instant::now() + TEST_TIMEOUT;
            }
            cluster.age_calls().await;
            if Instant::now() > deadline {
                cluster.fail_with_state("the batch completes").await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }

        if !cluster.carrier.wait_idle(TEST_TIMEOUT).await {
            cluster.fail_with_state("the carrier becomes idle").await;
        }

        assert_acknowledged_are_stored(&cluster).await;
        cluster.finish(&batch, 0).await;
    }
}

/// Fails unless every callback that was acknowledged to the carrier is in `call_events`.
async fn assert_acknowledged_are_stored(cluster: &Cluster) {
    let written: Vec<(String, String)> = sqlx::query_as(
        "select c.carrier_call_id, e.dedup_key from call_events e join calls c on c.id = e.call_id
         where c.carrier_call_id is not null",
    )
    .fetch_all(cluster.pool())
    .await
    .expect("events");
    let written: HashSet<(String, String)> = written.into_iter().collect();

    let (mut acknowledged, mut missing) = (0, Vec::new());
    for sid in cluster.carrier.creates().into_iter().filter_map(|c| c.sid) {
        for callback in cluster.carrier.callbacks(&sid) {
            let is_good = callback
                .response_status
                .is_some_and(|s| (200..300).contains(&s));

            let key = match callback.kind.as_str() {
                "answer" => "answer".to_owned(),
                "status" => {
                    let part = |name: &str| callback.param(name).unwrap_or_default();
                    format!(
                        "{sid}|{}|{}",
                        part("CallbackSource"),
                        part("SequenceNumber")
                    )
                }
                _ => continue,
            };

            if is_good {
                acknowledged += 1;
                let event = (sid.clone(), key);
                if !written.contains(&event) {
                    missing.push(event);
                }
            }
        }
    }

    assert!(acknowledged > 300, "seed {}: {acknowledged}", cluster.seed);
    assert!(
        missing.is_empty(),
        "seed {}: acknowledged but not stored: {missing:?}",
        cluster.seed
    );
}
