//! Workers that are killed, frozen, added, removed and stopped under load.

use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use serde_json::json;
use uuid::Uuid;

use super::{Dice, seeds};
use crate::harness::client::PATIENCE;
use crate::harness::plant::{IN_HAND, Plant, Setup};

/// People of the campaign whose workers are killed.
const PEOPLE: u32 = 240;
/// Failpoints of the workers, with their probabilities.
const FAULTS: &str = "claim.committed=0.02,claim.uncommitted=0.02,place.unsent=0.003,place.answered=0.003,\
                      record.uncommitted=0.02,record.committed=0.02,inbox.uncommitted=0.02,inbox.committed=0.02,\
                      settle.uncommitted=0.02,settle.committed=0.02";

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_ring_nobody_twice_and_forget_nobody_1_of_4() {
    ring_everybody_with_every_fourth_seed(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_ring_nobody_twice_and_forget_nobody_2_of_4() {
    ring_everybody_with_every_fourth_seed(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_ring_nobody_twice_and_forget_nobody_3_of_4() {
    ring_everybody_with_every_fourth_seed(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_ring_nobody_twice_and_forget_nobody_4_of_4() {
    ring_everybody_with_every_fourth_seed(4).await;
}

/// Runs every fourth seed, because one test of all seeds would exceed the time limit.
async fn ring_everybody_with_every_fourth_seed(from_nth: usize) {
    for seed in seeds(20).skip(from_nth - 1).step_by(4) {
        ring_everybody_while_workers_die(seed).await;
    }
}

async fn ring_everybody_while_workers_die(seed: u64) {
    let mut dice = Dice::new(seed);
    let setup = Setup {
        worker_faults: FAULTS,
        ..Setup::default()
    };
    let mut cluster = Plant::start(seed, setup).await;
    let batch = cluster.campaign(PEOPLE, json!({"batch_size": 100})).await;

    let mut dialled = 0;
    while dialled < 160 {
        dialled += dice.draw(10..40);
        // Calls lost before sending are claimed but never dialled, so claims show progress.
        claimed(&mut cluster, i64::try_from(dialled).expect("few")).await;
        let victim = dice.draw(0..2);
        cluster
            .replace_worker(usize::try_from(victim).expect("few"))
            .await;
    }

    cluster.mend().await;
    // The number of lost calls depends on the number of crashes; `finish` checks in any case that
    // no worker lost more than it can hold.
    cluster.finish(&batch, PEOPLE.into()).await;
}

/// Waits until this many rows have become calls, and replaces workers that crash meanwhile.
async fn claimed(cluster: &mut Plant, calls: i64) {
    let deadline = Instant::now() + PATIENCE;
    let made = "select count(*) from calls";
    while cluster.count(made).await.is_none_or(|n| n < calls) {
        cluster.revive();
        if Instant::now() > deadline {
            cluster.complain("rows are claimed between crashes").await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_worker_sends_nothing_that_was_given_up() {
    for seed in seeds(1) {
        let mut dice = Dice::new(seed);
        let mut cluster = one_dialler(seed).await;
        let batch = cluster.campaign(300, json!({"batch_size": 100})).await;
        cluster.dialled(dice.draw(40..120)).await;
        cluster.workers[0].signal(Signal::SIGSTOP);
        thaw(&mut cluster, &batch).await;
        cluster.finish(&batch, IN_HAND).await;
    }
}

/// A cluster whose first worker has all roles and whose second does not dial, so that rows are
/// left for the first one when it resumes.
async fn one_dialler(seed: u64) -> Plant {
    let setup = Setup {
        workers: 1,
        ..Setup::default()
    };
    let mut cluster = Plant::start(seed, setup).await;
    cluster.start_worker_for("inbox,misc");
    cluster
}

/// Waits until a frozen worker's calls are given up, resumes it until the batch ends, and fails
/// when it has sent requests for calls that had ended before.
async fn thaw(cluster: &mut Plant, batch: &str) {
    give_up_frozen(cluster).await;
    let ended: Vec<Uuid> = sqlx::query_scalar("select id from calls where status = 'final'")
        .fetch_all(cluster.pool())
        .await
        .expect("ended calls");

    let resumed_at = SystemTime::now();
    cluster.workers[0].signal(Signal::SIGCONT);
    cluster.completes(batch).await;

    let accepted = cluster.accepted();
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
async fn a_worker_frozen_behind_its_claim_does_not_dial_it_later() {
    for seed in seeds(1) {
        let mut dice = Dice::new(seed);
        let mut cluster = one_dialler(seed).await;

        // Makes a claim's commit wait for an advisory lock.
        cluster
            .run(
                "create function hold() returns trigger language plpgsql as
                     $$ begin perform pg_advisory_xact_lock_shared(1); return null; end $$;
                 create constraint trigger hold after insert on calls
                     deferrable initially deferred for each row execute function hold()",
            )
            .await;

        let batch = cluster.campaign(200, json!({"batch_size": 100})).await;
        cluster.dialled(dice.draw(20..80)).await;

        let mut holder = cluster.pool().begin().await.expect("transaction");
        sqlx::query("select pg_advisory_xact_lock(1)")
            .execute(&mut *holder)
            .await
            .expect("lock");
        let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
        cluster
            .until("a claim is being committed", waiting, |n| n == 1)
            .await;

        cluster.workers[0].signal(Signal::SIGSTOP);
        holder.commit().await.expect("release");
        thaw(&mut cluster, &batch).await;
        cluster.finish(&batch, IN_HAND).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_frozen_with_the_pacer_locked_does_not_stop_the_others() {
    for seed in seeds(1) {
        let mut dice = Dice::new(seed);
        let setup = Setup {
            workers: 1,
            ..Setup::default()
        };
        let mut cluster = Plant::start(seed, setup).await;

        let batch = cluster.campaign(200, json!({"batch_size": 100})).await;
        cluster.dialled(dice.draw(20..80)).await;

        // A claim locks the pacer, then the organisation.
        let mut holder = cluster.pool().begin().await.expect("transaction");
        sqlx::query("select from organizations for update")
            .execute(&mut *holder)
            .await
            .expect("lock");
        let waiting = "select count(*) from pg_stat_activity where cardinality(pg_blocking_pids(pid)) > 0
                           and application_name = 'peal-worker' and query like '%for no key update%'";
        cluster
            .until("a claim waits for the organisation", waiting, |n| n >= 1)
            .await;

        cluster.workers[0].signal(Signal::SIGSTOP);
        holder.commit().await.expect("release");
        cluster.start_worker();

        let dialled = cluster.carrier.oracle().accepted;
        cluster.dialled(dialled + 60).await;

        cluster.workers[0].signal(Signal::SIGCONT);
        cluster.finish(&batch, IN_HAND).await;
    }
}

/// Waits until the hold limit of a frozen worker has passed and its calls are given up.
async fn give_up_frozen(cluster: &mut Plant) {
    let stopped: String = sqlx::query_scalar("select now()::text")
        .fetch_one(cluster.pool())
        .await
        .expect("the time");
    let held = format!("select extract(epoch from now() - '{stopped}'::timestamptz)::bigint");
    cluster
        .until("the hold limit has passed", &held, |secs| secs > 11)
        .await;

    // After the hold limit the frozen worker may send nothing, so the rest of the half minute until
    // its calls are given up makes no difference.
    cluster
        .run(
            "update calls
             set status = 'unknown', check_at = now(), changed_at = now(), error_message = 'its worker is frozen'
             where live and status = 'submitting' and submitted_at < now() - interval '11 seconds'",
        )
        .await;

    let deadline = Instant::now() + PATIENCE;
    let given_up = "select count(*) from calls where status = 'unknown'";
    while cluster.count(given_up).await != Some(0) {
        cluster.age().await;
        if Instant::now() > deadline {
            cluster
                .complain("the frozen worker's calls are given up")
                .await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pace_and_the_limit_hold_while_workers_come_and_go() {
    for seed in seeds(1) {
        let mut dice = Dice::new(seed);
        let mut cluster = Plant::start(
            seed,
            Setup {
                cps: 60,
                max_concurrent: 45,
                workers: 1,
                ..Setup::default()
            },
        )
        .await;

        let batch = cluster.campaign(400, json!({"batch_size": 200})).await;
        cluster.dialled(dice.draw(60..120)).await;

        for _ in 0..3 {
            cluster.start_worker();
        }
        cluster.dialled(dice.draw(240..300)).await;

        for worker in cluster.workers.split_off(1) {
            worker.stop(Duration::from_secs(30)).await.expect("stop");
        }
        cluster.finish(&batch, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_heard_within_two_seconds() {
    for seed in seeds(1) {
        let mut dice = Dice::new(seed);
        let mut cluster = Plant::start(seed, Setup::default()).await;
        let batch = cluster.campaign(300, json!({"batch_size": 100})).await;
        cluster.dialled(dice.draw(40..160)).await;

        let path = format!("/api/v1/batch-call/pause/{batch}");
        cluster.client.post(&path, json!({})).await.expect(200);
        let paused = SystemTime::now();
        let live = "select count(*) from calls where live";
        cluster.until("no call is live", live, |n| n == 0).await;

        let accepted = cluster.accepted();
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
async fn a_worker_that_is_told_to_stop_loses_nothing() {
    for seed in seeds(1) {
        let mut dice = Dice::new(seed);
        let mut cluster = Plant::start(seed, Setup::default()).await;
        let batch = cluster.campaign(300, json!({"batch_size": 100})).await;
        cluster.dialled(dice.draw(40..160)).await;

        let mut worker = cluster.workers.remove(0);
        worker.signal(Signal::SIGTERM);
        let signalled_at = Instant::now();
        let status = loop {
            if let Some(status) = worker.ended().expect("a status") {
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
