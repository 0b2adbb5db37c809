//! Redis, PostgreSQL and the API go away in the middle of a campaign.

use serde_json::json;
use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::{Dice, seeds};
use crate::harness::client::PATIENCE;
use crate::harness::plant::{Plant, Setup};

#[tokio::test(flavor = "multi_thread")]
async fn redis_may_forget_everything_and_be_killed() {
    for seed in seeds(1) {
        let mut dice = Dice::new(seed);
        let mut plant = Plant::start(seed, Setup::default()).await;
        let batch = plant.campaign(300, json!({"batch_size": 100})).await;
        plant.dialled(dice.draw(20..60)).await;
        let client = redis::Client::open(plant.services.redis_url.as_str()).expect("url");
        let mut connection = client
            .get_multiplexed_async_connection()
            .await
            .expect("connect");
        let () = redis::cmd("FLUSHALL")
            .query_async(&mut connection)
            .await
            .expect("flush");
        plant.dialled(dice.draw(80..140)).await;
        plant.services.kill_redis().await.expect("kill");
        plant.dialled(dice.draw(160..220)).await;
        plant.services.start_redis().await.expect("start");
        plant.finish(&batch, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_postgresql_costs_nobody_a_call() {
    for seed in seeds(1) {
        let mut dice = Dice::new(seed);
        let mut plant = Plant::start(seed, Setup::default()).await;
        let batch = plant.campaign(300, json!({"batch_size": 100})).await;
        plant.dialled(dice.draw(40..120)).await;
        plant.services.restart_postgres().await.expect("restart");
        plant.dialled(dice.draw(150..200)).await;
        plant.services.restart_postgres().await.expect("restart");
        // A claim whose commit was cut off may have been made: those calls are in nobody's
        // hands, and are given up rather than dialled on a guess.
        plant.finish(&batch, 40).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_the_death_of_the_api() {
    for seed in seeds(1) {
        let mut dice = Dice::new(seed);
        let mut plant = Plant::start(
            seed,
            Setup {
                api_faults: "append.committed=0.01",
                ..Setup::default()
            },
        )
        .await;
        let batch = plant.campaign(600, json!({"batch_size": 100})).await;
        let open = "select count(*) from call_batches where status <> 'completed'";
        for _ in 0..4 {
            let next = plant.carrier.oracle().callbacks.sent + dice.draw(50..150);
            let deadline = Instant::now() + PATIENCE;
            let mut aged = Instant::now();
            while plant.carrier.oracle().callbacks.sent < next
                && !plant.api_has_died()
                && plant.count(open).await != Some(0)
            {
                // Calls that ended while there was no API keep their places until then.
                if aged.elapsed() > Duration::from_millis(100) {
                    plant.age().await;
                    aged = Instant::now();
                }
                if Instant::now() > deadline {
                    plant.complain("callbacks arrive").await;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            plant.kill_api().await;
            plant.start_api().await;
        }
        let mut deadline = Instant::now() + PATIENCE;
        while plant.count(open).await != Some(0) {
            if plant.api_has_died() {
                plant.kill_api().await;
                plant.start_api().await;
                deadline = Instant::now() + PATIENCE;
            }
            plant.age().await;
            if Instant::now() > deadline {
                plant.complain("the batch completes").await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if !plant.carrier.wait_idle(PATIENCE).await {
            plant.complain("the carrier comes to rest").await;
        }
        acknowledged_are_written(&plant).await;
        plant.finish(&batch, 0).await;
    }
}

/// Compares the carrier's log of acknowledged callbacks with the table.
async fn acknowledged_are_written(plant: &Plant) {
    let written: Vec<(String, String)> = sqlx::query_as(
        "select c.carrier_call_id, e.dedup_key from call_events e join calls c on c.id = e.call_id
         where c.carrier_call_id is not null",
    )
    .fetch_all(plant.pool())
    .await
    .expect("events");
    let written: HashSet<(String, String)> = written.into_iter().collect();
    let (mut acknowledged, mut missing) = (0, Vec::new());
    for sid in plant.carrier.creates().into_iter().filter_map(|c| c.sid) {
        for callback in plant.carrier.callbacks(&sid) {
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
    assert!(acknowledged > 300, "seed {}: {acknowledged}", plant.seed);
    assert!(
        missing.is_empty(),
        "seed {}: acknowledged and not written: {missing:?}",
        plant.seed
    );
}
