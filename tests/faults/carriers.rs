//! Carriers that drop connections or lose callbacks.

use peal_simulator::{FaultChance, Faults};
use serde_json::json;

use super::seeds;
use crate::harness::cluster::{Cluster, ClusterOptions};

async fn run_campaign_with_faults(seed: u64, faults: Faults) {
    let mut setup = ClusterOptions::default();
    setup.carrier.faults = faults;
    let cluster = Cluster::start(seed, setup).await;
    let batch = cluster
        .start_campaign(300, json!({"batch_size": 100}))
        .await;
    cluster.finish(&batch, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_a_response_is_not_placed_again() {
    for seed in seeds(1) {
        let faults = Faults {
            drop_after: FaultChance::Rate(0.1),
            ..Faults::default()
        };
        run_campaign_with_faults(seed, faults).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_callbacks_leave_no_row_open() {
    for seed in seeds(1) {
        let faults = Faults {
            callbacks_lost: FaultChance::Rate(0.2),
            ..Faults::default()
        };
        run_campaign_with_faults(seed, faults).await;
    }
}
