//! Processes that crash during an upload or a start: rows are inserted once, and no file is left.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use reqwest::multipart::{Form, Part};
use reqwest::{Body, Method};
use serde_json::json;

use super::{SeededRng, seeds};
use crate::harness::client::{TEST_TIMEOUT, phone_number, send_request};
use crate::harness::cluster::{Cluster, ClusterOptions};
use crate::harness::eventually;

const UPLOAD_PATH: &str = "/api/v1/batch-call/upload";
/// Records of the file: twelve chunks.
const RECORD_COUNT: u32 = 60_000;
const COUNT_ROWS_READ: &str = "select total_rows from ingests";

/// Builds a CSV, with the line numbers of its errors. Of every ten records seven are new, two are
/// duplicates, and one has an invalid number.
fn mixed_csv() -> (String, BTreeSet<u64>) {
    let mut csv = String::from("to_phonenumber,name\n");
    let mut wrong = BTreeSet::new();
    for n in 0..RECORD_COUNT {
        let phone = match n % 10 {
            0..7 => phone_number(n),
            7 | 8 => phone_number(n - 7),
            _ => format!("nobody {n}"),
        };
        csv.push_str(&format!("{phone},Person {n}\n"));
        if n % 10 == 9 {
            wrong.insert(u64::from(n) + 2);
        }
    }
    (csv, wrong)
}

async fn cluster_without_workers(seed: u64, api_faults: &'static str) -> Cluster {
    let setup = ClusterOptions {
        workers: 0,
        api_faults,
        ..ClusterOptions::default()
    };
    Cluster::start(seed, setup).await
}

fn upload_request(
    cluster: &Cluster,
    batch: &str,
    file: impl Into<Body>,
) -> reqwest::RequestBuilder {
    let part = Part::stream(file).file_name("people.csv");
    let path = format!("{UPLOAD_PATH}/{batch}");
    let request = cluster.client.request(Method::POST, &path);
    request.multipart(Form::new().part("file", part))
}

/// Kills a worker in the middle of a random later chunk, where a trigger makes it wait for an
/// advisory lock.
async fn kill_worker_in_random_chunk(cluster: &mut Cluster, dice: &mut SeededRng) {
    let before = cluster.query_number(COUNT_ROWS_READ).await;
    let further = i64::try_from(dice.draw(0..12_000)).expect("few");
    let held = (before + further).min(RECORD_COUNT.into());

    cluster
        .execute(&format!(
            "create or replace function hold() returns trigger language plpgsql as $$
                 begin
                     if new.total_rows >= {held} then perform pg_advisory_xact_lock_shared(1); end if;
                     return null;
                 end $$;
             create or replace trigger hold after update on ingests
                 for each row execute function hold()"
        ))
        .await;

    let mut holder = cluster.pool().begin().await.expect("transaction");
    sqlx::query("select pg_advisory_xact_lock(1)")
        .execute(&mut *holder)
        .await
        .expect("lock");

    cluster.start_worker();
    let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
    cluster
        .wait_until("a worker waits in the chunk", waiting, |n| n == 1)
        .await;

    let worker = cluster.workers.pop().expect("it was started");
    worker.kill().await.expect("kill");
    holder.rollback().await.expect("release");
    cluster.expire_dead_workers().await;
}

/// Runs a worker that dies before a commit, after one, or anywhere in a chunk.
async fn crash_a_worker(cluster: &mut Cluster, dice: &mut SeededRng) {
    let failpoint = match dice.draw(0..3) {
        0 => "ingest.committed=1",
        1 => "ingest.uncommitted=1",
        _ => return kill_worker_in_random_chunk(cluster, dice).await,
    };
    cluster.run_worker_until_crash("ingest", failpoint).await;
}

/// Line numbers that an error file names.
fn lines_of_error_file(text: &str) -> Vec<u64> {
    let mut errors = csv::Reader::from_reader(text.as_bytes());
    let header = errors.headers().expect("a header");
    let line_column = header.iter().position(|name| name == "line").expect("line");

    let lines = errors
        .records()
        .map(|record| record.expect("a record")[line_column].parse());
    lines.map(|line| line.expect("a number")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_with_crashed_workers_is_ingested_once_and_completely() {
    let (csv, wrong) = mixed_csv();
    for seed in seeds(1) {
        eprintln!("seed {seed}");

        let mut dice = SeededRng::new(seed);
        let mut cluster = cluster_without_workers(seed, "").await;
        let batch = cluster.client.create_batch(json!({})).await;
        let uploaded = send_request(upload_request(&cluster, &batch, csv.clone()))
            .await
            .expect(202);
        let ingest = uploaded["data"]["ingest_id"].as_str().expect("an id");

        let whole = "select count(*) from ingests i
                     where inserted = (select count(*) from batch_data)
                       and rejected = (select count(*) from ingest_rejects)";

        for _ in 0..6 {
            crash_a_worker(&mut cluster, &mut dice).await;
            let consistent = cluster.query_number(whole).await;
            assert_eq!(consistent, 1, "half a chunk is committed");
        }

        let read = cluster.query_number(COUNT_ROWS_READ).await;
        assert!(
            read < i64::from(RECORD_COUNT),
            "seed {seed}: the file was read too early"
        );

        cluster.start_worker();
        let open = "select count(*) from jobs where state <> 'done'";
        cluster
            .wait_until("the list is read", open, |n| n == 0)
            .await;

        let path = format!("/api/v1/batch-call/{batch}/ingests/{ingest}");
        let report = cluster.client.get(&path).await.expect(200)["data"].clone();
        let tenth = RECORD_COUNT / 10;

        for (count, expected) in [
            ("total_rows", RECORD_COUNT),
            ("inserted", 7 * tenth),
            ("duplicates", 2 * tenth),
            ("failed", tenth),
        ] {
            assert_eq!(report[count], expected, "seed {seed}: {count} of {report}");
        }

        assert_eq!(cluster.query_number(whole).await, 1, "seed {seed}");

        let errors = cluster.client.get(&format!("{path}/errors")).await.text;
        let lines = lines_of_error_file(&errors);
        assert_eq!(
            lines.len(),
            wrong.len(),
            "seed {seed}: lines of the error file"
        );
        assert_eq!(
            lines.into_iter().collect::<BTreeSet<_>>(),
            wrong,
            "seed {seed}"
        );

        let mails = "select count(*) from emails where sent_at is not null";
        assert_eq!(cluster.query_number(mails).await, 1, "seed {seed}");
        assert_eq!(stored_files(&cluster).len(), 0, "seed {seed}");
        cluster.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_crashed_workers_launches_the_batch_once() {
    for seed in seeds(1) {
        let mut cluster = cluster_without_workers(seed, "").await;
        let batch = cluster.start_campaign(40, json!({"batch_size": 100})).await;

        let launched = "select count(*) from call_batches where launched_at is not null";
        cluster
            .run_worker_until_crash("misc", "start.uncommitted=1")
            .await;
        assert_eq!(cluster.query_number(launched).await, 0, "seed {seed}");
        cluster
            .run_worker_until_crash("misc", "start.committed=1")
            .await;
        assert_eq!(cluster.query_number(launched).await, 1, "seed {seed}");

        let when = "select (extract(epoch from launched_at) * 1e6)::bigint from call_batches";
        let first = cluster.query_number(when).await;

        cluster.start_worker();
        cluster.wait_for_completion(&batch).await;
        assert_eq!(
            cluster.query_number(when).await,
            first,
            "seed {seed}: launched again"
        );

        let claims = "select attempts::bigint from jobs where kind = 'start_batch'";
        assert_eq!(cluster.query_number(claims).await, 3, "seed {seed}");
        cluster.finish(&batch, 0).await;
    }
}

/// Files in the cluster's store, unfinished ones included.
fn stored_files(cluster: &Cluster) -> Vec<PathBuf> {
    fn files(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => files(&path, found),
                path => found.push(path),
            }
        }
    }
    let mut found = Vec::new();
    let directory = cluster.services.temporary_dir().expect("a directory");
    files(&directory.join("store"), &mut found);
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_an_upload_with_a_killed_api_are_deleted() {
    let (csv, _) = mixed_csv();
    for seed in seeds(1) {
        let mut cluster = cluster_without_workers(seed, "upload.stored=1").await;
        let batch = cluster.client.create_batch(json!({})).await;

        // 1. Crash after the file is stored and before it is recorded.
        let lost = upload_request(&cluster, &batch, csv.clone()).send().await;
        assert!(lost.is_err(), "seed {seed}: {lost:?}");
        assert_eq!(stored_files(&cluster).len(), 1, "seed {seed}");
        cluster.kill_api().await;
        cluster.api_faults = "";
        cluster.start_api().await;

        // 2. Kill the API while a file is being uploaded.
        let beginning = futures::stream::iter([Ok::<_, std::io::Error>(csv.clone())]);
        let endless = futures::StreamExt::chain(beginning, futures::stream::pending());
        let half = upload_request(&cluster, &batch, Body::wrap_stream(endless));
        let half = tokio::spawn(half.send());
        let begun = || async { stored_files(&cluster).len() == 2 };
        eventually("the second upload has begun", TEST_TIMEOUT, begun).await;
        cluster.kill_api().await;
        let lost = half.await.expect("the upload");
        assert!(lost.is_err(), "seed {seed}: {lost:?}");

        cluster.start_api().await;

        // 3. Age the files, so that a worker deletes them.
        cluster
            .execute("update upload_files set created_at = created_at - interval '1 day'")
            .await;
        cluster.start_worker();
        let cleared = || async { stored_files(&cluster).is_empty() };
        eventually("both files are deleted", TEST_TIMEOUT, cleared).await;

        let known = "select count(*) from upload_files";
        cluster
            .wait_until("their rows are deleted", known, |n| n == 0)
            .await;
        cluster.close().await;
    }
}
