//! Workers that are killed, frozen, added, removed and stopped under load.

use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use serde_json::json;
use uuid::Uuid;

use super::{SeededRng, seeds};
use crate::harness::client::TEST_TIMEOUT;
use crate::harness::cluster::{Cluster, ClusterOptions, MAX_LOST_PER_WORKER};

/// People of the campaign whose workers are killed.
const ROW_COUNT: u32 = 240;
/// Failpoints of the workers, with their probabilities.
const WORKER_FAULTS: &str = "claim.committed=0.02,claim.uncommitted=0.02,place.unsent=0.003,place.answered=0.003,\
                      record.uncommitted=0.02,record.committed=0.02,inbox.uncommitted=0.02,inbox.committed=0.02,\
                      settle.uncommitted=0.02,settle.committed=0.02";

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_ring_nobody_twice_and_forget_nobody_1_of_4() {
    run_every_fourth_seed(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_ring_nobody_twice_and_forget_nobody_2_of_4() {
    run_every_fourth_seed(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_ring_nobody_twice_and_forget_nobody_3_of_4() {
    run_every_fourth_seed(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_ring_nobody_twice_and_forget_nobody_4_of_4() {
    run_every_fourth_seed(4).await;
}

/// Runs every fourth seed, because one test of all seeds would exceed the time limit.
async fn run_every_fourth_seed(from_nth: usize) {
    for seed in seeds(20).skip(from_nth - 1).step_by(4) {
        run_campaign_while_workers_crash(seed).await;
    }
}

async fn run_campaign_while_workers_crash(seed: u64) {
    let mut dice = SeededRng::new(seed);
    let setup = ClusterOptions {
        worker_faults: WORKER_FAULTS,
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::start(seed, setup).await;
    let batch = cluster
        .start_campaign(ROW_COUNT, json!({"batch_size": 100}))
        .await;

    let mut dialled = 0;
    while dialled < 160 {
        dialled += dice.draw(10..40);
        // Calls lost before sending are claimed but never dialled, so claims show progress.
        wait_for_claims(&mut cluster, i64::try_from(dialled).expect("few")).await;
        let victim = dice.draw(0..2);
        cluster
            .replace_worker(usize::try_from(victim).expect("few"))
            .await;
    }

    cluster.restart_workers_without_faults().await;
    // The number of lost calls depends on the number of crashes; `finish` checks in any case that
    // no worker lost more than it can hold.
    cluster.finish(&batch, ROW_COUNT.into()).await;
}

/// Waits until this many rows have become calls, and replaces workers that crash meanwhile.
async fn wait_for_claims(cluster: &mut Cluster, calls: i64) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    let made = "select count(*) from calls";
    while cluster
        .try_query_number(made)
        .await
        .is_none_or(|n| n < calls)
    {
        cluster.replace_crashed_workers();
        if Instant::now() > deadline {
            cluster
                .fail_with_state("rows are claimed between crashes")
                .await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_worker_does_not_dial_calls_that_were_given_up() {
    for seed in seeds(1) {
        let mut dice = SeededRng::new(seed);
        let mut cluster = cluster_with_one_dialer(seed).await;
        let batch = cluster
            .start_campaign(300, json!({"batch_size": 100}))
            .await;
        cluster.wait_for_accepted(dice.draw(40..120)).await;
        cluster.workers[0].signal(Signal::SIGSTOP);
        resume_frozen_worker(&mut cluster, &batch).await;
        cluster.finish(&batch, MAX_LOST_PER_WORKER).await;
    }
}

/// A cluster whose first worker has all roles and whose second does not dial, so that rows are
/// left for the first one when it resumes.
async fn cluster_with_one_dialer(seed: u64) -> Cluster {
    let setup = ClusterOptions {
        workers: 1,
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::start(seed, setup).await;
    cluster.start_worker_for("inbox,misc");
    cluster
}

/// Waits until a frozen worker's calls are given up, resumes it until the batch ends, and fails
/// when it has sent requests for calls that had ended before.
async fn resume_frozen_worker(cluster: &mut Cluster, batch: &str) {
    expire_frozen_calls(cluster).await;
    let ended: Vec<Uuid> = sqlx::query_scalar("select id from calls where status = 'final'")
        .fetch_all(cluster.pool())
        .await
        .expect("ended calls");

    let resumed_at = SystemTime::now();
    cluster.workers[0].signal(Signal::SIGCONT);
    cluster.wait_for_completion(batch).await;

    let accepted = cluster.accepted_calls();
    let last = accepted.values().max().expect("a call");
    assert!(
        *last > resumed_at,
        "seed {}: no rows were left",
        cluster.seed
    );

    let late: Vec<&Uuid> = ended
        .iter()
        .filter(|id| accepted.get(id).is_some_and(|at| *at > resumed_at))
        .collect();
    assert!(
        late.is_empty(),
        "seed {}: dialled by a resumed worker after their end: {late:?}",
        cluster.seed
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_frozen_after_its_claim_does_not_dial_it_later() {
    for seed in seeds(1) {
        let mut dice = SeededRng::new(seed);
        let mut cluster = cluster_with_one_dialer(seed).await;

        // Makes a claim's commit wait for an advisory lock.
        cluster
            .execute(
                "create function hold() returns trigger language plpgsql as
                     $$ begin perform pg_advisory_xact_lock_shared(1); return null; end $$;
                 create constraint trigger hold after insert on calls
                     deferrable initially deferred for each row execute function hold()",
            )
            .await;

        let batch = cluster
            .start_campaign(200, json!({"batch_size": 100}))
            .await;
        cluster.wait_for_accepted(dice.draw(20..80)).await;

        let mut holder = cluster.pool().begin().await.expect("transaction");
        sqlx::query("select pg_advisory_xact_lock(1)")
            .execute(&mut *holder)
            .await
            .expect("lock");
        let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
        cluster
            .wait_until("a claim is being committed", waiting, |n| n == 1)
            .await;

        cluster.workers[0].signal(Signal::SIGSTOP);
        holder.commit().await.expect("release");
        resume_frozen_worker(&mut cluster, &batch).await;
        cluster.finish(&batch, MAX_LOST_PER_WORKER).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_frozen_with_the_pacer_locked_does_not_stop_the_others() {
    for seed in seeds(1) {
        let mut dice = SeededRng::new(seed);
        let setup = ClusterOptions {
            workers: 1,
            ..ClusterOptions::default()
        };
        let mut cluster = Cluster::start(seed, setup).await;

        let batch = cluster
            .start_campaign(200, json!({"batch_size": 100}))
            .await;
        cluster.wait_for_accepted(dice.draw(20..80)).await;

        // A claim locks the pacer, then the organisation.
        let mut holder = cluster.pool().begin().await.expect("transaction");
        sqlx::query("select from organizations for update")
            .execute(&mut *holder)
            .await
            .expect("lock");
        let waiting = "select count(*) from pg_stat_activity where cardinality(pg_blocking_pids(pid)) > 0
                           and application_name = 'peal-worker' and query like '%for no key update%'";
        cluster
            .wait_until("a claim waits for the organisation", waiting, |n| n >= 1)
            .await;

        cluster.workers[0].signal(Signal::SIGSTOP);
        holder.commit().await.expect("release");
        cluster.start_worker();

        let dialled = cluster.carrier.oracle().accepted;
        cluster.wait_for_accepted(dialled + 60).await;

        cluster.workers[0].signal(Signal::SIGCONT);
        cluster.finish(&batch, MAX_LOST_PER_WORKER).await;
    }
}

/// Waits until the hold limit of a frozen worker has passed and its calls are given up.
async fn expire_frozen_calls(cluster: &mut Cluster) {
    let stopped: String = sqlx::query_scalar("select now()::text")
        .fetch_one(cluster.pool())
        .await
        .expect("the time");
    let held = format!("select extract(epoch from now() - '{stopped}'::timestamptz)::bigint");
    cluster
        .wait_until("the hold limit has passed", &held, |secs| secs > 11)
        .await;

    // After the hold limit the frozen worker may send nothing, so the rest of the half minute until
    // its calls are given up makes no difference.
    cluster
        .execute(
            "update calls
             set status = 'unknown', check_at = now(), changed_at = now(), error_message = 'its worker is frozen'
             where live and status = 'submitting' and submitted_at < now() - interval '11 seconds'",
        )
        .await;

    let deadline = Instant::now() + TEST_TIMEOUT;
    let given_up = "select count(*) from calls where status = 'unknown'";
    while cluster.try_query_number(given_up).await != Some(0) {
        cluster.age_calls().await;
        if Instant::now() > deadline {
            cluster
                .fail_with_state("the frozen worker's calls are given up")
                .await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pace_and_concurrency_hold_while_workers_are_added_and_stopped() {
    for seed in seeds(1) {
        let mut dice = SeededRng::new(seed);
        let mut cluster = Cluster::start(
            seed,
            ClusterOptions {
                cps: 60,
                max_concurrent: 45,
                workers: 1,
                ..ClusterOptions::default()
            },
        )
        .await;

        let batch = cluster
            .start_campaign(400, json!({"batch_size": 200}))
            .await;
        cluster.wait_for_accepted(dice.draw(60..120)).await;

        for _ in 0..3 {
            cluster.start_worker();
        }
        cluster.wait_for_accepted(dice.draw(240..300)).await;

        for worker in cluster.workers.split_off(1) {
            worker.stop(Duration::from_secs(30)).await.expect("stop");
        }
        cluster.finish(&batch, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_takes_effect_within_two_seconds() {
    for seed in seeds(1) {
        let mut dice = SeededRng::new(seed);
        let mut cluster = Cluster::start(seed, ClusterOptions::default()).await;
        let batch = cluster
            .start_campaign(300, json!({"batch_size": 100}))
            .await;
        cluster.wait_for_accepted(dice.draw(40..160)).await;

        let path = format!("/api/v1/batch-call/pause/{batch}");
        cluster.client.post(&path, json!({})).await.expect(200);
        let paused = SystemTime::now();
        let live = "select count(*) from calls where live";
        cluster
            .wait_until("no call is live", live, |n| n == 0)
            .await;

        let accepted = cluster.accepted_calls();
        let last = accepted.values().max().expect("a call");
        let late = last.duration_since(paused).unwrap_or_default();
        assert!(late < Duration::from_secs(2), "seed {seed}: {late:?}");
        assert!(accepted.len() < 300, "seed {seed}: nothing was held");

        let path = format!("/api/v1/batch-call/resume/{batch}");
        cluster.client.post(&path, json!({})).await.expect(200);
        cluster.finish(&batch, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_on_sigterm_loses_no_call() {
    for seed in seeds(1) {
        let mut dice = SeededRng::new(seed);
        let mut cluster = Cluster::start(seed, ClusterOptions::default()).await;
        let batch = cluster
            .start_campaign(300, json!({"batch_size": 100}))
            .await;
        cluster.wait_for_accepted(dice.draw(40..160)).await;

        let mut worker = cluster.workers.remove(0);
        worker.signal(Signal::SIGTERM);
        let signalled_at = Instant::now();
        let status = loop {
            if let Some(status) = worker.exit_status().expect("a status") {
                break status;
            }
            assert!(
                signalled_at.elapsed() < Duration::from_secs(30),
                "seed {seed}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        };

        assert!(status.success(), "seed {seed}: {status}");
        cluster.finish(&batch, 0).await;
    }
}
