//! Processes that die over an upload or a start: its rows come in once, nothing stays behind.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use reqwest::multipart::{Form, Part};
use reqwest::{Body, Method};
use serde_json::json;

use super::{Dice, seeds};
use crate::harness::client::{PATIENCE, answer, number};
use crate::harness::eventually;
use crate::harness::plant::{Plant, Setup};

const UPLOAD: &str = "/api/v1/batch-call/upload";
/// Twelve chunks.
const RECORDS: u32 = 60_000;
const ROWS_READ: &str = "select total_rows from ingests";

/// Of every ten records seven are new, two were there before, and one is nobody's number.
fn list() -> (String, BTreeSet<u64>) {
    let mut csv = String::from("to_phonenumber,name\n");
    let mut wrong = BTreeSet::new();
    for n in 0..RECORDS {
        let who = match n % 10 {
            0..7 => number(n),
            7 | 8 => number(n - 7),
            _ => format!("nobody {n}"),
        };
        csv.push_str(&format!("{who},Person {n}\n"));
        if n % 10 == 9 {
            wrong.insert(u64::from(n) + 2);
        }
    }
    (csv, wrong)
}

async fn no_workers(seed: u64, api_faults: &'static str) -> Plant {
    let setup = Setup {
        workers: 0,
        api_faults,
        ..Setup::default()
    };
    Plant::start(seed, setup).await
}

fn upload(plant: &Plant, batch: &str, file: impl Into<Body>) -> reqwest::RequestBuilder {
    let part = Part::stream(file).file_name("people.csv");
    let path = format!("{UPLOAD}/{batch}");
    let request = plant.client.request(Method::POST, &path);
    request.multipart(Form::new().part("file", part))
}

/// Kills a worker some chunks on, in the middle of one that it cannot end before: it waits for
/// whoever holds the advisory lock.
async fn kill_at_random(plant: &mut Plant, dice: &mut Dice) {
    let before = plant.number(ROWS_READ).await;
    let further = i64::try_from(dice.draw(0..12_000)).expect("few");
    let held = (before + further).min(RECORDS.into());
    plant
        .run(&format!(
            "create or replace function hold() returns trigger language plpgsql as $$
                 begin
                     if new.total_rows >= {held} then perform pg_advisory_xact_lock_shared(1); end if;
                     return null;
                 end $$;
             create or replace trigger hold after update on ingests
                 for each row execute function hold()"
        ))
        .await;
    let mut holder = plant.pool().begin().await.expect("transaction");
    sqlx::query("select pg_advisory_xact_lock(1)")
        .execute(&mut *holder)
        .await
        .expect("lock");
    plant.start_worker();
    let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
    plant
        .until("a worker has read so far", waiting, |n| n == 1)
        .await;
    let worker = plant.workers.pop().expect("it was started");
    worker.kill().await.expect("kill");
    holder.rollback().await.expect("release");
    plant.miss_the_dead().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_whose_readers_are_killed_comes_in_once_and_whole() {
    let (csv, wrong) = list();
    for seed in seeds(1) {
        eprintln!("seed {seed}");
        let mut dice = Dice::new(seed);
        let mut plant = no_workers(seed, "").await;
        let batch = plant.client.create_batch(json!({})).await;
        let taken = answer(upload(&plant, &batch, csv.clone()))
            .await
            .expect(202);
        let ingest = taken["data"]["ingest_id"].as_str().expect("an id");
        let whole = "select count(*) from ingests i
                     where inserted = (select count(*) from batch_data)
                       and rejected = (select count(*) from ingest_rejects)";
        for _ in 0..6 {
            match dice.draw(0..3) {
                0 => plant.sacrifice("ingest", "ingest.committed=1").await,
                1 => plant.sacrifice("ingest", "ingest.uncommitted=1").await,
                _ => kill_at_random(&mut plant, &mut dice).await,
            }
            assert_eq!(plant.number(whole).await, 1, "half a chunk is in");
        }
        let read = plant.number(ROWS_READ).await;
        assert!(read < i64::from(RECORDS), "seed {seed}: it was read before");
        plant.start_worker();
        let open = "select count(*) from jobs where state <> 'done'";
        plant.until("the list is read", open, |n| n == 0).await;
        let path = format!("/api/v1/batch-call/{batch}/ingests/{ingest}");
        let report = plant.client.get(&path).await.expect(200)["data"].clone();
        let tenth = RECORDS / 10;
        for (count, expected) in [
            ("total_rows", RECORDS),
            ("inserted", 7 * tenth),
            ("duplicates", 2 * tenth),
            ("failed", tenth),
        ] {
            assert_eq!(report[count], expected, "seed {seed}: {count} of {report}");
        }
        assert_eq!(plant.number(whole).await, 1, "seed {seed}");
        let errors = plant.client.get(&format!("{path}/errors")).await.text;
        let mut errors = csv::Reader::from_reader(errors.as_bytes());
        let header = errors.headers().expect("a header");
        let at = header.iter().position(|name| name == "line").expect("line");
        let lines: Vec<u64> = errors
            .records()
            .map(|record| record.expect("a record")[at].parse().expect("a number"))
            .collect();
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
        let told = "select count(*) from emails where sent_at is not null";
        assert_eq!(plant.number(told).await, 1, "seed {seed}");
        assert_eq!(stored(&plant).len(), 0, "seed {seed}");
        plant.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_whose_workers_are_killed_starts_the_batch_once() {
    for seed in seeds(1) {
        let mut plant = no_workers(seed, "").await;
        let batch = plant.campaign(40, json!({"batch_size": 100})).await;
        let launched = "select count(*) from call_batches where launched_at is not null";
        plant.sacrifice("misc", "start.uncommitted=1").await;
        assert_eq!(plant.number(launched).await, 0, "seed {seed}");
        plant.sacrifice("misc", "start.committed=1").await;
        assert_eq!(plant.number(launched).await, 1, "seed {seed}");
        let when = "select (extract(epoch from launched_at) * 1e6)::bigint from call_batches";
        let first = plant.number(when).await;
        plant.start_worker();
        plant.completes(&batch).await;
        assert_eq!(
            plant.number(when).await,
            first,
            "seed {seed}: launched again"
        );
        let claims = "select attempts::bigint from jobs where kind = 'start_batch'";
        assert_eq!(plant.number(claims).await, 3, "seed {seed}");
        plant.finish(&batch, 0).await;
    }
}

/// The files in the plant's store, unfinished ones included.
fn stored(plant: &Plant) -> Vec<PathBuf> {
    fn files(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => files(&path, found),
                path => found.push(path),
            }
        }
    }
    let mut found = Vec::new();
    let directory = plant.services.temporary_dir().expect("a directory");
    files(&directory.join("store"), &mut found);
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_api_is_killed_leaves_no_file_for_long() {
    let (csv, _) = list();
    for seed in seeds(1) {
        let mut plant = no_workers(seed, "upload.stored=1").await;
        let batch = plant.client.create_batch(json!({})).await;
        // It dies when the file is stored and nobody knows of it.
        let lost = upload(&plant, &batch, csv.clone()).send().await;
        assert!(lost.is_err(), "seed {seed}: {lost:?}");
        assert_eq!(stored(&plant).len(), 1, "seed {seed}");
        plant.kill_api().await;
        plant.api_faults = "";
        plant.start_api().await;
        // And while a file comes in.
        let beginning = futures::stream::iter([Ok::<_, std::io::Error>(csv.clone())]);
        let endless = futures::StreamExt::chain(beginning, futures::stream::pending());
        let half = upload(&plant, &batch, Body::wrap_stream(endless));
        let half = tokio::spawn(half.send());
        let begun = || async { stored(&plant).len() == 2 };
        eventually("the second file comes in", PATIENCE, begun).await;
        plant.kill_api().await;
        let lost = half.await.expect("the upload");
        assert!(lost.is_err(), "seed {seed}: {lost:?}");
        plant.start_api().await;
        plant
            .run("update upload_files set created_at = created_at - interval '1 day'")
            .await;
        plant.start_worker();
        let cleared = || async { stored(&plant).is_empty() };
        eventually("both files are cleared away", PATIENCE, cleared).await;
        let known = "select count(*) from upload_files";
        plant.until("nobody knows of them", known, |n| n == 0).await;
        plant.close().await;
    }
}
