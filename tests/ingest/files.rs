//! Files of uploads: checks on their first bytes, and deletion of files that no ingest reads any
//! more.

use std::path::PathBuf;

use super::*;

impl IngestSetup {
    /// A setup whose store is a directory, and the directory.
    async fn with_disk_store() -> (Self, PathBuf) {
        let mut setup = Self::new().await;
        let directory = std::env::temp_dir().join(format!("{}-store", setup.db.name));
        setup.store = FileStore::open(&format!("file://{}", directory.display())).unwrap();
        (setup, directory)
    }

    async fn has_file(&self, key: &str) -> bool {
        let read: Vec<Result<Bytes>> = self.store.read(key, 0).collect().await;
        !matches!(read[..], [Err(Error::NotFound(_))])
    }

    /// Number of files that the database records.
    async fn count_recorded_files(&self) -> i64 {
        sqlx::query_scalar("select count(*) from upload_files")
            .fetch_one(self.pool())
            .await
            .unwrap()
    }

    /// Ages files and ended ingests by an interval.
    async fn age_files(&self, interval: &str) {
        for sql in [
            "update upload_files set created_at = created_at - $1::interval",
            "update ingests set finished_at = finished_at - $1::interval",
        ] {
            sqlx::query(sql)
                .bind(interval)
                .execute(self.pool())
                .await
                .unwrap();
        }
    }

    async fn purge_files(&self) -> usize {
        ingest::purge_files_unscoped(self.pool(), &self.store, &LIMITS)
            .await
            .unwrap()
    }

    fn file_key(&self, id: IngestId) -> String {
        format!("ingests/{}/{id}.csv", self.target.org)
    }
}

fn byte_stream(pieces: Vec<&[u8]>) -> impl stream::Stream<Item = Result<Bytes>> + Send + use<> {
    let pieces: Vec<_> = pieces
        .into_iter()
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    stream::iter(pieces)
}

#[tokio::test]
async fn an_upload_is_checked_by_its_first_bytes_and_stored() {
    let setup = IngestSetup::new().await;
    let body = byte_stream(vec![b"to_phone", b"number,town\n", b"+919876543210,\n"]);
    let upload = setup.receive(body).await.unwrap();
    assert_eq!((upload.bytes, upload.file_name.as_str()), (35, "list.csv"));
    assert_eq!(upload.key, setup.file_key(upload.ingest));
    assert_eq!(upload.warnings.len(), 3, "{:?}", upload.warnings);
    assert_eq!(
        (
            setup.has_file(&upload.key).await,
            setup.count_recorded_files().await
        ),
        (true, 1)
    );
    ingest::discard_upload(setup.pool(), &setup.store, &upload).await;
    assert_eq!(
        (
            setup.has_file(&upload.key).await,
            setup.count_recorded_files().await
        ),
        (false, 0)
    );
}

#[tokio::test]
async fn an_upload_that_is_not_a_csv_list_is_refused() {
    let setup = IngestSetup::new().await;
    let many = format!("to_phonenumber{}\n", ",a".repeat(22));

    for (body, expected) in [
        (vec![b"P".as_slice(), b"K\x03\x04"], "not_csv"),
        (vec![], "empty_file"),
        (vec![b"name,city\n"], "missing_phone_column"),
        (vec![many.as_bytes()], "too_many_columns"),
    ] {
        match setup.receive(byte_stream(body)).await.unwrap_err() {
            Error::Rejected { code, .. } => assert_eq!(code, expected),
            other => panic!("{other:?}"),
        }
    }

    let row = b"+919876543210,\n".repeat(100_000);
    let mut large = vec![b"to_phonenumber,name\n".as_slice()];
    large.extend(std::iter::repeat_n(row.as_slice(), 15));
    let refused = setup.receive(byte_stream(large)).await.unwrap_err();
    assert!(matches!(refused, Error::TooLarge(_)), "{refused}");

    let broken = stream::iter([
        Ok(Bytes::from("to_phonenumber,name\n".repeat(10_000))),
        Err(Error::Busy("the client is gone".into())),
    ]);
    let refused = setup.receive(broken).await.unwrap_err();
    assert!(matches!(refused, Error::Busy(_)), "{refused}");
    assert_eq!(setup.count_recorded_files().await, 0);
}

#[tokio::test]
async fn an_abandoned_ingest_keeps_its_rows_and_deletes_its_file() {
    let setup = IngestSetup::new().await;
    for chunks in [0, 2] {
        let id = setup.upload(&csv_list(chunks * 1_000, 500)).await;
        if chunks > 0 {
            let ended = setup.run_one_chunk(&LIMITS, id).await;
            assert!(ended.is_err(), "it ran to its end");
        }
        let before = setup.find(id).await.counts;
        assert_eq!(before.inserted > 0, chunks > 0);
        let announcement = ingest::give_up_unscoped(setup.pool(), &setup.store, id, "a test").await;
        assert_eq!(announcement.unwrap(), None, "no announcement was requested");
        let after = setup.find(id).await;
        assert_eq!((after.state, after.counts), (IngestState::Failed, before));
        assert_eq!(after.failure.unwrap().code, "gave_up");
        assert!(!setup.has_file(&setup.file_key(id)).await);
        // A job that is delivered again finds the ingest ended.
        assert_eq!(setup.run(id).await.counts, before);
    }
    assert_eq!(setup.count_recorded_files().await, 0);
}

#[tokio::test]
async fn a_file_without_an_ingest_is_purged() {
    let (setup, directory) = IngestSetup::with_disk_store().await;
    let upload = setup
        .receive(byte_stream(vec![b"to_phonenumber\n+919876543210\n"]))
        .await
        .unwrap();

    let unfinished = directory.join(format!("{}#1", upload.key));
    std::fs::write(&unfinished, "+919876543210").unwrap();
    let waiting = setup.upload(&csv_list(0, 10)).await;

    // A recent file may belong to an upload in progress.
    setup.age_files("1 hour").await;
    assert_eq!(
        (
            setup.purge_files().await,
            setup.count_recorded_files().await
        ),
        (0, 2)
    );

    setup.age_files("1 hour").await;
    assert_eq!(
        (
            setup.purge_files().await,
            setup.count_recorded_files().await
        ),
        (1, 1)
    );
    assert!(!setup.has_file(&upload.key).await);
    assert!(!unfinished.exists());
    assert_eq!(setup.purge_files().await, 0);

    // A queued ingest keeps its file, however old.
    assert_eq!(setup.run(waiting).await.counts.inserted, 10);
    assert_eq!(setup.count_recorded_files().await, 0);
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn files_of_ended_ingests_and_deleted_batches_are_purged() {
    let setup = IngestSetup::new().await;
    let (ended, deleted) = (
        setup.upload(&csv_list(0, 10)).await,
        setup.upload(&csv_list(0, 10)).await,
    );

    // A worker crashed after its last commit, before it deleted the file.
    sqlx::query(
        "update ingests
         set state = 'completed', started_at = now(), finished_at = now(), checkpoint = '{}'
         where id = $1",
    )
    .bind(ended)
    .execute(setup.pool())
    .await
    .unwrap();
    assert_eq!(setup.purge_files().await, 0, "it may just have ended");

    setup.age_files("2 minutes").await;
    assert_eq!(setup.purge_files().await, 1);
    assert!(!setup.has_file(&setup.file_key(ended)).await);

    sqlx::query("delete from call_batches where id = $1")
        .bind(setup.target.batch)
        .execute(setup.pool())
        .await
        .unwrap();
    setup.age_files("2 hours").await;
    assert_eq!(
        (
            setup.purge_files().await,
            setup.count_recorded_files().await
        ),
        (1, 0)
    );
    assert!(!setup.has_file(&setup.file_key(deleted)).await);
}
