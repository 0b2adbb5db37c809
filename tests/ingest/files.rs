//! The file of an upload: what is taken, and that nobody's leaving it halfway keeps it in the
//! store.

use std::path::PathBuf;

use super::*;

impl Bench {
    /// A bench whose store is a directory, and the directory.
    async fn on_disk() -> (Self, PathBuf) {
        let mut bench = Self::new().await;
        let directory = std::env::temp_dir().join(format!("{}-store", bench.db.name));
        bench.store = FileStore::open(&format!("file://{}", directory.display())).unwrap();
        (bench, directory)
    }

    async fn holds(&self, key: &str) -> bool {
        let read: Vec<Result<Bytes>> = self.store.read(key, 0).collect().await;
        !matches!(read[..], [Err(Error::NotFound(_))])
    }

    /// Files that the database knows of.
    async fn noted(&self) -> i64 {
        sqlx::query_scalar("select count(*) from upload_files")
            .fetch_one(self.pool())
            .await
            .unwrap()
    }

    /// Lets so much time pass, as far as files are concerned.
    async fn later(&self, interval: &str) {
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

    async fn clear_away(&self) -> usize {
        ingest::purge_files_unscoped(self.pool(), &self.store, &LIMITS)
            .await
            .unwrap()
    }

    fn key(&self, id: IngestId) -> String {
        format!("ingests/{}/{id}.csv", self.target.org)
    }
}

fn pieces(pieces: Vec<&[u8]>) -> impl stream::Stream<Item = Result<Bytes>> + Send + use<> {
    let pieces: Vec<_> = pieces
        .into_iter()
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    stream::iter(pieces)
}

#[tokio::test]
async fn an_upload_is_judged_by_its_first_bytes_and_kept() {
    let bench = Bench::new().await;
    let body = pieces(vec![b"to_phone", b"number,town\n", b"+919876543210,\n"]);
    let upload = bench.receive(body).await.unwrap();
    assert_eq!((upload.bytes, upload.file_name.as_str()), (35, "list.csv"));
    assert_eq!(upload.key, bench.key(upload.ingest));
    assert_eq!(upload.warnings.len(), 3, "{:?}", upload.warnings);
    assert_eq!(
        (bench.holds(&upload.key).await, bench.noted().await),
        (true, 1)
    );
    ingest::discard_upload(bench.pool(), &bench.store, &upload).await;
    assert_eq!(
        (bench.holds(&upload.key).await, bench.noted().await),
        (false, 0)
    );
}

#[tokio::test]
async fn an_upload_that_cannot_be_a_list_is_refused_at_once() {
    let bench = Bench::new().await;
    let many = format!("to_phonenumber{}\n", ",a".repeat(22));
    for (body, expected) in [
        (vec![b"P".as_slice(), b"K\x03\x04"], "not_csv"),
        (vec![], "empty_file"),
        (vec![b"name,city\n"], "missing_phone_column"),
        (vec![many.as_bytes()], "too_many_columns"),
    ] {
        match bench.receive(pieces(body)).await.unwrap_err() {
            Error::Rejected { code, .. } => assert_eq!(code, expected),
            other => panic!("{other:?}"),
        }
    }
    let row = b"+919876543210,\n".repeat(100_000);
    let mut large = vec![b"to_phonenumber,name\n".as_slice()];
    large.extend(std::iter::repeat_n(row.as_slice(), 15));
    let refused = bench.receive(pieces(large)).await.unwrap_err();
    assert!(matches!(refused, Error::TooLarge(_)), "{refused}");
    let broken = stream::iter([
        Ok(Bytes::from("to_phonenumber,name\n".repeat(10_000))),
        Err(Error::Busy("the client is gone".into())),
    ]);
    let refused = bench.receive(broken).await.unwrap_err();
    assert!(matches!(refused, Error::Busy(_)), "{refused}");
    assert_eq!(bench.noted().await, 0);
}

#[tokio::test]
async fn an_ingest_that_is_given_up_keeps_its_rows_and_not_its_file() {
    let bench = Bench::new().await;
    for chunks in [0, 2] {
        let id = bench.upload(&list(chunks * 1_000, 500)).await;
        if chunks > 0 {
            let ended = bench.run_one_chunk(&LIMITS, id).await;
            assert!(ended.is_err(), "it ran to its end");
        }
        let before = bench.find(id).await.counts;
        assert_eq!(before.inserted > 0, chunks > 0);
        let told = ingest::give_up_unscoped(bench.pool(), &bench.store, id, "a test").await;
        assert_eq!(told.unwrap(), None, "nobody asked to be told");
        let after = bench.find(id).await;
        assert_eq!((after.state, after.counts), (IngestState::Failed, before));
        assert_eq!(after.failure.unwrap().code, "gave_up");
        assert!(!bench.holds(&bench.key(id)).await);
        // A job that comes back to life finds it ended.
        assert_eq!(bench.run(id).await.counts, before);
    }
    assert_eq!(bench.noted().await, 0);
}

#[tokio::test]
async fn a_file_that_never_became_an_ingest_is_cleared_away_in_time() {
    let (bench, directory) = Bench::on_disk().await;
    let upload = bench
        .receive(pieces(vec![b"to_phonenumber\n+919876543210\n"]))
        .await
        .unwrap();
    let unfinished = directory.join(format!("{}#1", upload.key));
    std::fs::write(&unfinished, "+919876543210").unwrap();
    let waiting = bench.upload(&list(0, 10)).await;
    // While an upload may still be on its way, its file stays.
    bench.later("1 hour").await;
    assert_eq!((bench.clear_away().await, bench.noted().await), (0, 2));
    bench.later("1 hour").await;
    assert_eq!((bench.clear_away().await, bench.noted().await), (1, 1));
    assert!(!bench.holds(&upload.key).await);
    assert!(!unfinished.exists());
    assert_eq!(bench.clear_away().await, 0);
    // What waits for its job is read however late.
    assert_eq!(bench.run(waiting).await.counts.inserted, 10);
    assert_eq!(bench.noted().await, 0);
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn the_file_of_an_ended_ingest_or_a_deleted_batch_is_cleared_away() {
    let bench = Bench::new().await;
    let (ended, deleted) = (
        bench.upload(&list(0, 10)).await,
        bench.upload(&list(0, 10)).await,
    );
    // Whoever committed the last chunk died before it removed the file.
    sqlx::query(
        "update ingests
         set state = 'completed', started_at = now(), finished_at = now(), checkpoint = '{}'
         where id = $1",
    )
    .bind(ended)
    .execute(bench.pool())
    .await
    .unwrap();
    assert_eq!(bench.clear_away().await, 0, "it may just have ended");
    bench.later("2 minutes").await;
    assert_eq!(bench.clear_away().await, 1);
    assert!(!bench.holds(&bench.key(ended)).await);
    sqlx::query("delete from call_batches where id = $1")
        .bind(bench.target.batch)
        .execute(bench.pool())
        .await
        .unwrap();
    bench.later("2 hours").await;
    assert_eq!((bench.clear_away().await, bench.noted().await), (1, 0));
    assert!(!bench.holds(&bench.key(deleted)).await);
}
