//! Carriers that drop connections or lose callbacks.

use peal_simulator::{Chance, Faults};
use serde_json::json;

use super::seeds;
use crate::harness::plant::{Plant, Setup};

async fn campaign_with(seed: u64, faults: Faults) {
    let mut setup = Setup::default();
    setup.carrier.faults = faults;
    let cluster = Plant::start(seed, setup).await;
    let batch = cluster.campaign(300, json!({"batch_size": 100})).await;
    cluster.finish(&batch, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_never_comes_is_not_asked_for_again() {
    for seed in seeds(1) {
        let faults = Faults {
            drop_after: Chance::Rate(0.1),
            ..Faults::default()
        };
        campaign_with(seed, faults).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callbacks_that_never_come_keep_no_row_open() {
    for seed in seeds(1) {
        let faults = Faults {
            callbacks_lost: Chance::Rate(0.2),
            ..Faults::default()
        };
        campaign_with(seed, faults).await;
    }
}
