//! Lists come into a batch, row by row and once, whatever happens in between: what the job does
//! (job: ingest_csv), and what surrounds it.

mod files;
mod states;

use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use futures::stream::{StreamExt as _, TryStreamExt as _};
use peal_shared::access::{Credential, Principal, Role, Scope};
use peal_shared::campaigns::ingest;
use peal_shared::campaigns::ingest::{
    IngestCounts, IngestResult, IngestState, IngestTarget, RowInput, StoredUpload,
};
use peal_shared::config::uploads::IngestLimits;
use peal_shared::platform::ids::{AgentId, BatchId, IngestId, OrgId, PhoneId, TrunkId, UserId};
use peal_shared::platform::store::FileStore;
use peal_shared::{Error, Result};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::harness::db::{TestDatabase, fresh_database};
use crate::harness::wait_for_blocked_query;

const LIMITS: IngestLimits = IngestLimits {
    max_bytes: 20_000_000,
    max_rows_per_batch: 100_000,
    max_columns: 20,
    max_cell_chars: 100,
    chunk_rows: 100,
};

/// A database with one batch that takes rows, and an empty store.
struct Bench {
    db: TestDatabase,
    store: FileStore,
    target: IngestTarget,
    scope: Scope,
}

impl Bench {
    async fn new() -> Self {
        let db = fresh_database().await;
        let (org, user) = (OrgId::new(), UserId::new());
        let (trunk, phone, agent) = (TrunkId::new(), PhoneId::new(), AgentId::new());
        let run = async |statement: &'static str| {
            sqlx::query(statement)
                .bind(org)
                .bind(user)
                .bind(trunk)
                .bind(phone)
                .bind(agent)
                .execute(&db.pool)
                .await
                .unwrap();
        };
        run("insert into organizations (id, name) select $1, 'Acme' where ($2, $3, $4, $5) is not null").await;
        run("insert into users (id, org_id, email) select $2, $1, 'm@acme.test' where ($3, $4, $5) is not null").await;
        run(
            "insert into trunks (id, org_id, name, kind, account_id, credentials, cps, max_concurrent)
             select $3, $1, 'trunk', 'twilio', 'AC1', '', 1, 1 where ($2, $4, $5) is not null",
        )
        .await;
        run(
            "insert into phone_numbers (id, org_id, user_id, trunk_id, phone_number)
             select $4, $1, $2, $3, '+16502530000' where $5 is not null",
        )
        .await;
        run("insert into agents (id, org_id, user_id, name)
             select $5, $1, $2, 'Agent' where ($3, $4) is not null")
        .await;
        let principal = Principal {
            user,
            org,
            role: Role::User,
            email: None,
            credential: Credential::Session,
        };
        let batch = BatchId::new();
        sqlx::query(
            "insert into call_batches (id, org_id, user_id, agent_id, caller_phone_id, batch_name, variable_names, default_country)
             values ($1, $2, $3, $4, $5, 'Diwali', '{name,city}', 'IN')",
        )
        .bind(batch)
        .bind(org)
        .bind(user)
        .bind(agent)
        .bind(phone)
        .execute(&db.pool)
        .await
        .unwrap();
        Self {
            db,
            store: FileStore::open("memory:///").unwrap(),
            target: IngestTarget {
                org,
                batch,
                user,
                variable_names: vec!["name".to_owned(), "city".to_owned()],
                required_variables: Vec::new(),
                default_country: Some("IN".parse().unwrap()),
                is_private: false,
            },
            scope: principal.scope(),
        }
    }

    fn pool(&self) -> &PgPool {
        &self.db.pool
    }

    async fn upload(&self, file: &str) -> IngestId {
        let body = stream::iter(
            file.as_bytes()
                .chunks(10_000)
                .map(|piece| Ok(Bytes::copy_from_slice(piece)))
                .collect::<Vec<_>>(),
        );
        let upload = self.receive(body).await.unwrap();
        let mut db = self.pool().acquire().await.unwrap();
        ingest::create(&mut db, &self.target, &upload, false)
            .await
            .unwrap()
    }

    async fn receive(
        &self,
        body: impl stream::Stream<Item = Result<Bytes>> + Send,
    ) -> Result<StoredUpload> {
        let name = "list\r\n.csv";
        ingest::receive(self.pool(), &self.store, &self.target, &LIMITS, name, body).await
    }

    async fn run_with(&self, limits: &IngestLimits, id: IngestId) -> Result<IngestResult> {
        ingest::run_unscoped(
            self.pool(),
            &self.store,
            limits,
            id,
            &CancellationToken::new(),
        )
        .await
    }

    /// Runs an ingest that is asked to stop while its next chunk waits to be committed.
    async fn run_one_chunk(&self, limits: &IngestLimits, id: IngestId) -> Result<IngestResult> {
        let mut held = self.pool().begin().await.unwrap();
        sqlx::query("select from call_batches where id = $1 for no key update")
            .bind(self.target.batch)
            .execute(&mut *held)
            .await
            .unwrap();
        let stop = CancellationToken::new();
        let run = ingest::run_unscoped(self.pool(), &self.store, limits, id, &stop);
        let watch = async {
            wait_for_blocked_query(self.pool()).await;
            stop.cancel();
            held.rollback().await.unwrap();
            std::future::pending::<()>().await;
        };
        tokio::select! { ended = run => ended, () = watch => unreachable!() }
    }

    async fn run(&self, id: IngestId) -> IngestResult {
        self.run_with(&LIMITS, id).await.unwrap()
    }

    async fn rows(&self) -> i64 {
        let counted: i64 =
            sqlx::query_scalar("select count(*) from batch_data where batch_id = $1")
                .bind(self.target.batch)
                .fetch_one(self.pool())
                .await
                .unwrap();
        let (progress, next, highest): (i64, i64, i64) = sqlx::query_as(
            "select p.not_started, b.next_row_no,
                    (select coalesce(max(row_no), 0) from batch_data where batch_id = b.id)
             from call_batches b join batch_progress p on p.batch_id = b.id
             where b.id = $1",
        )
        .bind(self.target.batch)
        .fetch_one(self.pool())
        .await
        .unwrap();
        assert_eq!(counted, progress);
        assert!(next > highest, "row number {highest} would be given twice");
        counted
    }

    async fn find(&self, id: IngestId) -> ingest::Ingest {
        ingest::find(self.pool(), &self.scope, self.target.batch, id)
            .await
            .unwrap()
    }
}

fn number(i: usize) -> String {
    format!("+9198{i:08}")
}

/// `n` different people, from the `first` on.
fn list(first: usize, n: usize) -> String {
    let mut file = "to_phonenumber,name,city\n".to_owned();
    for i in first..first + n {
        file += &format!("{},Person {i},Pune\n", number(i));
    }
    file
}

/// Of every ten lines: six people, two that were there before, one wrong number, one blank.
fn nasty(n: usize) -> (String, IngestCounts) {
    let mut file = "\u{feff}City ;PHONE; timezone;name;junk\r\n".to_owned();
    for i in 0..n {
        let line = match i % 10 {
            0..=5 => format!("Pune;{};;\"Rao; \"\"{i}\"\"\n\"", number(i)),
            6 => format!(";{};;again", number(i - 3).replace("+91", "0")),
            7 => format!(";{};Asia/Kolkata;", number(i - 5)),
            8 => ";9.19E+11;;".to_owned(),
            _ => "; ;;".to_owned(),
        };
        file += &line;
        file += if i % 3 == 0 { "\r\n" } else { "\n" };
    }
    let tenth = i64::try_from(n / 10).unwrap();
    let counts = IngestCounts {
        total_rows: 9 * tenth,
        inserted: 6 * tenth,
        duplicates: 2 * tenth,
        rejected: tenth,
    };
    (file, counts)
}

#[tokio::test]
async fn the_counts_of_a_nasty_file_add_up_and_every_reject_has_its_line() {
    let bench = Bench::new().await;
    let (file, counts) = nasty(1_000);
    let id = bench.upload(&file).await;
    let finished = bench.run(id).await;
    assert_eq!((finished.counts, &finished.failure), (counts, &None));
    assert_eq!(finished.warnings.len(), 2, "{:?}", finished.warnings);
    assert_eq!(bench.rows().await, 600);

    let rejects = ingest::first_rejects(bench.pool(), &bench.scope, id, 100)
        .await
        .unwrap();
    assert_eq!(rejects.len(), 100);
    // Six of the lines before hold a line break in quotes.
    assert_eq!((rejects[0].line, rejects[0].column.as_str()), (16, "PHONE"));
    assert_eq!(rejects[0].code, "scientific_notation");
    assert_eq!(rejects[0].value, "9.19E+11");
    let found = bench.find(id).await;
    assert_eq!(
        (found.state, found.counts),
        (IngestState::Completed, counts)
    );

    let (variables, zones): (serde_json::Value, Vec<String>) = sqlx::query_as(
        "select variable_values, zones
         from batch_data join zone_sets z on z.id = zone_set_id
         where batch_id = $1 and to_phonenumber = $2",
    )
    .bind(bench.target.batch)
    .bind(number(3))
    .fetch_one(bench.pool())
    .await
    .unwrap();
    assert_eq!(
        variables,
        serde_json::json!({"name": "Rao; \"3\"", "city": "Pune"})
    );
    assert_eq!(zones, ["Asia/Calcutta"]);
    let gone: Vec<Result<Bytes>> = bench
        .store
        .read(&format!("ingests/{}/{id}.csv", bench.target.org), 0)
        .collect()
        .await;
    assert!(
        matches!(gone[..], [Err(Error::NotFound(_))]),
        "the file outlives its ingest"
    );
}

#[tokio::test]
async fn the_error_file_is_complete_safe_and_only_for_its_owner() {
    let bench = Bench::new().await;
    let mut file = "to_phonenumber,name\n".to_owned();
    for _ in 0..2_500 {
        file += "=cmd|calc,x\n";
    }
    let id = bench.upload(&file).await;
    bench.run(id).await;
    let csv = ingest::rejects_csv(bench.pool(), &bench.scope, bench.target.batch, id)
        .await
        .unwrap();
    let slices: Vec<Bytes> = csv.try_collect().await.unwrap();
    let text = String::from_utf8(slices.concat()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2_501);
    assert_eq!(
        lines[0],
        "to_phonenumber,name,line,column,value,code,message"
    );
    assert!(
        lines[2_500].starts_with("'=cmd|calc,x,2501,to_phonenumber,'=cmd|calc,not_a_number,"),
        "{}",
        lines[2_500]
    );

    let stranger = Principal {
        user: UserId::new(),
        org: bench.target.org,
        role: Role::User,
        email: None,
        credential: Credential::Session,
    };
    let refused =
        ingest::rejects_csv(bench.pool(), &stranger.scope(), bench.target.batch, id).await;
    assert!(matches!(refused.err(), Some(Error::NotFound("Ingest"))));
    let none = ingest::first_rejects(bench.pool(), &stranger.scope(), id, 100).await;
    assert!(none.unwrap().is_empty());
}

#[tokio::test]
async fn the_same_file_again_adds_nothing() {
    let bench = Bench::new().await;
    let file = list(0, 730);
    let first = bench.upload(&file).await;
    assert_eq!(bench.run(first).await.counts.inserted, 730);
    let second = bench.upload(&file).await;
    let counts = bench.run(second).await.counts;
    assert_eq!((counts.inserted, counts.duplicates), (0, 730));
    assert_eq!(bench.rows().await, 730);
    // And a job that is delivered twice answers what it answered.
    assert_eq!(bench.run(second).await.counts, counts);
}

#[tokio::test]
async fn a_run_that_is_stopped_between_chunks_resumes_to_the_same_counts() {
    let bench = Bench::new().await;
    let (file, counts) = nasty(1_000);
    let id = bench.upload(&file).await;
    let limits = IngestLimits {
        chunk_rows: 30,
        ..LIMITS
    };
    let mut stops = 0;
    let finished = loop {
        match bench.run_one_chunk(&limits, id).await {
            Ok(finished) => break finished,
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                stops += 1;
            }
        }
        // As another version may have written it.
        sqlx::query("update ingests set checkpoint = checkpoint || '{\"more\": 1}' where id = $1")
            .bind(id)
            .execute(bench.pool())
            .await
            .unwrap();
    };
    assert!(stops >= 20, "stopped only {stops} times");
    assert_eq!((finished.counts, finished.failure), (counts, None));
    assert_eq!(bench.rows().await, 600);
}

#[tokio::test]
async fn a_run_that_dies_at_any_chunk_resumes_to_the_same_counts() {
    let bench = Bench::new().await;
    let (file, counts) = nasty(600);
    let id = bench.upload(&file).await;
    let limits = IngestLimits {
        chunk_rows: 50,
        ..LIMITS
    };
    // The commit of every chunk fails once: when its transaction has done all its work.
    for statement in [
        "create table deaths (place text primary key)",
        "create function die_once() returns trigger language plpgsql as $$
         begin
             if not exists (select from deaths where place = old.checkpoint ->> 'place') then
                 raise exception 'died at %', old.checkpoint ->> 'place';
             end if;
             return null;
         end $$",
        "create constraint trigger die_once after update of inserted on ingests
         deferrable initially deferred for each row execute function die_once()",
    ] {
        sqlx::query(statement).execute(bench.pool()).await.unwrap();
    }
    let mut deaths = 0;
    let finished = loop {
        match bench.run_with(&limits, id).await {
            Ok(finished) => break finished,
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                deaths += 1;
                let inserted = bench.find(id).await.counts.inserted;
                assert_eq!(bench.rows().await, inserted, "a chunk was half committed");
                sqlx::query(
                    "insert into deaths select checkpoint ->> 'place' from ingests where id = $1",
                )
                .bind(id)
                .execute(bench.pool())
                .await
                .unwrap();
            }
        }
    };
    assert_eq!(deaths, 11, "540 rows in chunks of 50");
    assert_eq!((finished.counts, finished.failure), (counts, None));
    assert_eq!(bench.rows().await, 360);
}

#[tokio::test]
async fn a_run_that_is_dropped_anywhere_resumes_to_the_same_counts() {
    let bench = Bench::new().await;
    let (file, counts) = nasty(1_000);
    let id = bench.upload(&file).await;
    let limits = IngestLimits {
        chunk_rows: 20,
        ..LIMITS
    };
    let mut patience = Duration::from_millis(1);
    let mut drops = 0;
    let finished = loop {
        match tokio::time::timeout(patience, bench.run_with(&limits, id)).await {
            Ok(finished) => break finished.unwrap(),
            Err(_) => {
                drops += 1;
                patience += Duration::from_millis(3);
            }
        }
    };
    assert!(drops >= 3, "dropped only {drops} times");
    assert_eq!((finished.counts, finished.failure), (counts, None));
    assert_eq!(bench.rows().await, 600);
}

#[tokio::test]
async fn two_runs_of_one_ingest_at_once_count_every_row_once() {
    let bench = Bench::new().await;
    let (file, counts) = nasty(2_000);
    let id = bench.upload(&file).await;
    let limits = IngestLimits {
        chunk_rows: 50,
        ..LIMITS
    };
    let (a, b, c) = tokio::join!(
        bench.run_with(&limits, id),
        bench.run_with(&limits, id),
        bench.run_with(&limits, id)
    );
    for finished in [a.unwrap(), b.unwrap(), c.unwrap()] {
        assert_eq!((finished.counts, finished.failure), (counts, None));
    }
    assert_eq!(bench.rows().await, 1_200);
    let rejects = ingest::first_rejects(bench.pool(), &bench.scope, id, 1_000)
        .await
        .unwrap();
    assert_eq!(rejects.len(), 200);
}

#[tokio::test]
async fn two_lists_into_one_batch_at_once_share_its_numbers() {
    let bench = Bench::new().await;
    let (a, b) = (
        bench.upload(&list(0, 1_000)).await,
        bench.upload(&list(500, 1_000)).await,
    );
    let (a, b) = tokio::join!(bench.run(a), bench.run(b));
    assert_eq!((a.counts.total_rows, b.counts.total_rows), (1_000, 1_000));
    assert_eq!(a.counts.inserted + b.counts.inserted, 1_500);
    assert_eq!(a.counts.duplicates + b.counts.duplicates, 500);
    assert_eq!(bench.rows().await, 1_500);
}

#[tokio::test]
async fn a_batch_that_has_started_takes_no_rows() {
    let bench = Bench::new().await;
    let id = bench.upload(&list(0, 10)).await;
    sqlx::query("update call_batches set status = 'in_progress' where id = $1")
        .bind(bench.target.batch)
        .execute(bench.pool())
        .await
        .unwrap();
    let finished = bench.run(id).await;
    assert_eq!(finished.failure.unwrap().code, "batch_started");
    assert_eq!(finished.counts, IngestCounts::default());
    assert_eq!(bench.find(id).await.state, IngestState::Failed);
    let mut db = bench.pool().acquire().await.unwrap();
    let refused = ingest::insert_records(&mut db, &bench.target, &LIMITS, &[]).await;
    assert!(matches!(
        refused.unwrap_err(),
        Error::Conflict {
            code: "batch_started",
            ..
        }
    ));
}

#[tokio::test]
async fn a_batch_that_is_full_fails_the_list_and_keeps_what_went_in() {
    let bench = Bench::new().await;
    let id = bench.upload(&list(0, 500)).await;
    let limits = IngestLimits {
        max_rows_per_batch: 250,
        ..LIMITS
    };
    let finished = bench.run_with(&limits, id).await.unwrap();
    assert_eq!(finished.counts.inserted, 200);
    let failure = finished.failure.unwrap();
    assert_eq!(failure.code, "too_many_rows");
    assert!(failure.message.contains("250"), "{failure:?}");
    assert_eq!(bench.rows().await, 200);
}

#[tokio::test]
async fn a_file_that_breaks_off_fails_and_keeps_the_rows_before() {
    let bench = Bench::new().await;
    for (tail, code) in [
        ("\"never closed,\nPune\n".to_owned(), "unclosed_quote"),
        ("x".repeat(100_000), "record_too_long"),
        (",".repeat(100_000), "record_too_long"),
        ("\"".to_owned() + &list(900, 2_000), "record_too_long"),
    ] {
        let id = bench.upload(&(list(0, 250) + &tail)).await;
        let finished = bench.run(id).await;
        assert_eq!(finished.counts.total_rows, 250, "{code}");
        let failure = finished.failure.unwrap();
        assert_eq!(failure.code, code);
        assert!(failure.message.contains("line 252"), "{failure:?}");
    }
    assert_eq!(bench.rows().await, 250);
}

#[tokio::test]
async fn an_ingest_whose_file_or_batch_has_vanished_ends() {
    let bench = Bench::new().await;
    let id = bench.upload(&list(0, 10)).await;
    let key = format!("ingests/{}/{id}.csv", bench.target.org);
    bench.store.delete(&key).await.unwrap();
    let finished = bench.run(id).await;
    assert_eq!(finished.failure.unwrap().code, "file_missing");

    let id = bench.upload(&list(0, 10)).await;
    sqlx::query("delete from call_batches where id = $1")
        .bind(bench.target.batch)
        .execute(bench.pool())
        .await
        .unwrap();
    let gone = bench.run_with(&LIMITS, id).await.unwrap_err();
    assert!(matches!(gone, Error::NotFound("Ingest")), "{gone}");
}

#[tokio::test]
async fn the_records_of_a_request_obey_the_rules_of_a_file() {
    let bench = Bench::new().await;
    let records: Vec<RowInput> = serde_json::from_value(serde_json::json!([
        {"to_phonenumber": "98765 43210", "name": "Asha", "extra": 1},
        {"to_phonenumber": "+919876543210", "name": "again"},
        {"to_phonenumber": "nobody"},
        {"to_phonenumber": "+16502530000", "timezone": "America/New_York", "city": 7},
    ]))
    .unwrap();
    for (inserted, duplicates) in [(2, 1), (0, 3)] {
        let mut tx = bench.pool().begin().await.unwrap();
        let done = ingest::insert_records(&mut tx, &bench.target, &LIMITS, &records)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        assert_eq!(
            done.counts,
            IngestCounts {
                total_rows: 4,
                inserted,
                duplicates,
                rejected: 1
            }
        );
        assert_eq!(i64::try_from(done.rows.len()).unwrap(), inserted);
        assert_eq!(
            (done.rejects[0].line, &*done.rejects[0].code),
            (3, "not_a_number")
        );
        assert_eq!(done.warnings.len(), 1);
    }
    assert_eq!(bench.rows().await, 2);
    let zones: Vec<String> = sqlx::query_scalar(
        "select z.zones[1] from batch_data d join zone_sets z on z.id = d.zone_set_id order by row_no",
    )
    .fetch_all(bench.pool())
    .await
    .unwrap();
    assert_eq!(zones, ["Asia/Calcutta", "America/New_York"]);
}

#[tokio::test]
async fn a_bomb_costs_no_memory_and_no_time() {
    let bench = Bench::new().await;
    let before = resident_bytes();
    // Ten gigabytes each, if anybody read them all.
    let bombs: [(&'static [u8], &'static [u8]); 5] = [
        (b"to_phonenumber\n\"", &[b'x'; 10_000]),
        (b"to_phonenumber\n", &[b','; 10_000]),
        (b"to_phonenumber\n", &[0; 10_000]),
        (b"\"", &[b'\n'; 10_000]),
        (b"\x1f\x8b", &[0; 10_000]),
    ];
    for (head, endless) in bombs {
        let body = stream::iter([Ok(Bytes::from_static(head))])
            .chain(stream::repeat_with(|| Ok(Bytes::from_static(endless))).take(1_000_000));
        let refused = bench.receive(body).await.unwrap_err();
        assert!(
            matches!(refused, Error::TooLarge(_) | Error::Rejected { .. }),
            "{refused}"
        );
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 64_000_000, "grew by {grown} bytes");
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes * 1_024
}
