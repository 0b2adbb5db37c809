//! Uploads to a bucket. These tests need `PEAL_TEST_BUCKET=s3://bucket/prefix` and the `AWS_*`
//! variables of the store; for an emulator `AWS_ENDPOINT=http://127.0.0.1:5000` and
//! `AWS_ALLOW_HTTP=true`. Without a bucket they print that they were skipped.

use bytes::Bytes;
use futures::{TryStreamExt as _, stream};
use peal_shared::Error;
use peal_shared::platform::store::FileStore;
use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::json;

use crate::harness::app::{App, AppOptions, TEST_TIMEOUT, people_csv, send_request};
use crate::harness::eventually;

const BUCKET: &str = "PEAL_TEST_BUCKET";

fn bucket_url() -> Option<String> {
    let url = std::env::var(BUCKET).ok();
    if url.is_none() {
        eprintln!("skipped: {BUCKET} is not set");
    }
    url
}

async fn read_file(store: &FileStore, key: &str, from: u64) -> Result<Vec<u8>, Error> {
    let pieces: Vec<Bytes> = store.read(key, from).try_collect().await?;
    Ok(pieces.concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_stores_files_of_any_size_and_nothing_of_failed_uploads() {
    let Some(url) = bucket_url() else { return };
    let store = FileStore::open(&url).unwrap();

    // An empty file, one part, and several parts of five megabytes.
    for (name, pieces) in [("empty", 0), ("small", 1), ("large", 120)] {
        let key = format!("tests/{name}");
        let piece = Bytes::from("0123456789".repeat(10_000));
        let body = stream::iter((0..pieces).map(|_| Ok(piece.clone())));
        let stored = store.put_stream(&key, body, 12_000_000).await.unwrap();
        assert_eq!(stored.bytes, 100_000 * pieces, "{name}");
        let read = read_file(&store, &key, 0).await.unwrap();
        assert_eq!(
            read,
            piece.repeat(usize::try_from(pieces).unwrap()),
            "{name}"
        );
        if pieces > 0 {
            let tail = read_file(&store, &key, stored.bytes - 3).await.unwrap();
            assert_eq!(tail, b"789", "{name}");
        }

        store.delete(&key).await.unwrap();
        store.delete(&key).await.unwrap();
        let gone = read_file(&store, &key, 0).await.unwrap_err();
        assert!(matches!(gone, Error::NotFound("file")), "{name}: {gone}");
    }

    let piece = Bytes::from(vec![b'x'; 1_000_000]);
    let too_large = stream::iter((0..20).map(|_| Ok(piece.clone())));
    let error = store.put_stream("tests/over", too_large, 15_000_000).await;
    assert!(matches!(error, Err(Error::TooLarge(_))), "{error:?}");

    let gone = read_file(&store, "tests/over", 0).await.unwrap_err();
    assert!(matches!(gone, Error::NotFound("file")), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_is_ingested_through_a_bucket() {
    let Some(url) = bucket_url() else { return };
    let app = App::start_with(AppOptions {
        settings: |settings| {
            settings.store_url = std::env::var(BUCKET).unwrap();
            settings.batch_max_rows = "1000000".to_owned();
        },
        ..AppOptions::default()
    })
    .await;

    let batch = app.create_batch(json!({})).await;
    let csv = people_csv(250_000) + "nobody,X\n";
    assert!(csv.len() > 5 * 1024 * 1024);

    let form = Form::new().part("file", Part::text(csv).file_name("people.csv"));
    let path = format!("/api/v1/batch-call/upload/{batch}");
    let accepted = send_request(app.request(Method::POST, &path).multipart(form)).await;
    let accepted = accepted.expect(202);
    let ingest = accepted["data"]["ingest_id"].as_str().unwrap();
    let path = format!("/api/v1/batch-call/{batch}/ingests/{ingest}");

    let open = "select count(*) from jobs where state in ('ready', 'running')";
    let is_ingested = || async { app.count(open).await == 0 };
    eventually("the list is ingested", TEST_TIMEOUT, is_ingested).await;

    let report = app.get(&path).await.expect(200)["data"].clone();
    assert_eq!(report["inserted"], 250_000, "{report}");

    let errors = app.get(&format!("{path}/errors")).await.text;
    assert!(errors.contains("nobody"), "{errors}");

    let key = format!("ingests/{}/{ingest}.csv", app.tenant.org);
    let gone = read_file(&FileStore::open(&url).unwrap(), &key, 0)
        .await
        .unwrap_err();
    assert!(matches!(gone, Error::NotFound("file")), "{gone}");
    app.finish().await;
}
