//! Ingests: the job `ingest_csv` inserts every row of a file once, through stops, crashes and
//! concurrent runs, and the API's rows follow the same rules.

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

/// A database with one batch that has not started, and an empty store.
struct IngestSetup {
    db: TestDatabase,
    store: FileStore,
    target: IngestTarget,
    scope: Scope,
}

impl IngestSetup {
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

        // 1. An organization with a user, a trunk, a number and an agent.
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

        // 2. The principal, and a batch to upload into.
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

    /// Runs an ingest and asks it to stop while its next chunk waits for a lock.
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

    async fn check_row_count(&self) -> i64 {
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

fn ingest_number(i: usize) -> String {
    format!("+9198{i:08}")
}

/// CSV file of `n` different numbers, beginning with the `first`.
fn csv_list(first: usize, n: usize) -> String {
    let mut file = "to_phonenumber,name,city\n".to_owned();
    for i in first..first + n {
        file += &format!("{},Person {i},Pune\n", ingest_number(i));
    }
    file
}

/// CSV file with awkward quoting, and its expected counts. Every ten lines hold six valid rows, two
/// duplicates, one invalid number and a blank line.
fn awkward_csv(n: usize) -> (String, IngestCounts) {
    let mut file = "\u{feff}City ;PHONE; timezone;name;junk\r\n".to_owned();
    for i in 0..n {
        let line = match i % 10 {
            0..=5 => format!("Pune;{};;\"Rao; \"\"{i}\"\"\n\"", ingest_number(i)),
            6 => format!(";{};;again", ingest_number(i - 3).replace("+91", "0")),
            7 => format!(";{};Asia/Kolkata;", ingest_number(i - 5)),
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
async fn counts_of_an_awkward_file_add_up_and_each_reject_names_its_line() {
    let setup = IngestSetup::new().await;
    let (file, counts) = awkward_csv(1_000);
    let id = setup.upload(&file).await;
    let finished = setup.run(id).await;
    assert_eq!((finished.counts, &finished.failure), (counts, &None));
    assert_eq!(finished.warnings.len(), 2, "{:?}", finished.warnings);
    assert_eq!(setup.check_row_count().await, 600);

    let rejects = ingest::first_rejects(setup.pool(), &setup.scope, id, 100)
        .await
        .unwrap();
    assert_eq!(rejects.len(), 100);
    // Six of the lines before contain a quoted line break.
    assert_eq!((rejects[0].line, rejects[0].column.as_str()), (16, "PHONE"));
    assert_eq!(rejects[0].code, "scientific_notation");
    assert_eq!(rejects[0].value, "9.19E+11");
    let found = setup.find(id).await;
    assert_eq!(
        (found.state, found.counts),
        (IngestState::Completed, counts)
    );

    let (variables, zones): (serde_json::Value, Vec<String>) = sqlx::query_as(
        "select variable_values, zones
         from batch_data join zone_sets z on z.id = zone_set_id
         where batch_id = $1 and to_phonenumber = $2",
    )
    .bind(setup.target.batch)
    .bind(ingest_number(3))
    .fetch_one(setup.pool())
    .await
    .unwrap();
    assert_eq!(
        variables,
        serde_json::json!({"name": "Rao; \"3\"", "city": "Pune"})
    );
    assert_eq!(zones, ["Asia/Calcutta"]);
    let remaining: Vec<Result<Bytes>> = setup
        .store
        .read(&format!("ingests/{}/{id}.csv", setup.target.org), 0)
        .collect()
        .await;
    assert!(
        matches!(remaining[..], [Err(Error::NotFound(_))]),
        "the file outlives its ingest"
    );
}

#[tokio::test]
async fn the_error_file_is_complete_escaped_and_visible_only_to_its_owner() {
    let setup = IngestSetup::new().await;
    let mut file = "to_phonenumber,name\n".to_owned();
    for _ in 0..2_500 {
        file += "=cmd|calc,x\n";
    }
    let id = setup.upload(&file).await;
    setup.run(id).await;
    let csv = ingest::rejects_csv(setup.pool(), &setup.scope, setup.target.batch, id)
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

    let colleague = Principal {
        user: UserId::new(),
        org: setup.target.org,
        role: Role::User,
        email: None,
        credential: Credential::Session,
    };
    let refused =
        ingest::rejects_csv(setup.pool(), &colleague.scope(), setup.target.batch, id).await;
    assert!(matches!(refused.err(), Some(Error::NotFound("Ingest"))));
    let none = ingest::first_rejects(setup.pool(), &colleague.scope(), id, 100).await;
    assert!(none.unwrap().is_empty());
}

#[tokio::test]
async fn the_same_file_again_adds_nothing() {
    let setup = IngestSetup::new().await;
    let file = csv_list(0, 730);
    let first = setup.upload(&file).await;
    assert_eq!(setup.run(first).await.counts.inserted, 730);
    let second = setup.upload(&file).await;
    let counts = setup.run(second).await.counts;
    assert_eq!((counts.inserted, counts.duplicates), (0, 730));
    assert_eq!(setup.check_row_count().await, 730);
    // A job that is delivered twice returns the same counts.
    assert_eq!(setup.run(second).await.counts, counts);
}

#[tokio::test]
async fn a_run_that_is_stopped_between_chunks_resumes_to_the_same_counts() {
    let setup = IngestSetup::new().await;
    let (file, counts) = awkward_csv(1_000);
    let id = setup.upload(&file).await;
    let limits = IngestLimits {
        chunk_rows: 30,
        ..LIMITS
    };
    let mut stops = 0;
    let finished = loop {
        match setup.run_one_chunk(&limits, id).await {
            Ok(finished) => break finished,
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                stops += 1;
            }
        }
        // A field that another version may have added.
        sqlx::query("update ingests set checkpoint = checkpoint || '{\"more\": 1}' where id = $1")
            .bind(id)
            .execute(setup.pool())
            .await
            .unwrap();
    };
    assert!(stops >= 20, "stopped only {stops} times");
    assert_eq!((finished.counts, finished.failure), (counts, None));
    assert_eq!(setup.check_row_count().await, 600);
}

#[tokio::test]
async fn a_run_whose_commit_fails_resumes_to_the_same_counts() {
    let setup = IngestSetup::new().await;
    let (file, counts) = awkward_csv(600);
    let id = setup.upload(&file).await;
    let limits = IngestLimits {
        chunk_rows: 50,
        ..LIMITS
    };

    // The commit of every chunk fails once, after its transaction has done all its work.
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
        sqlx::query(statement).execute(setup.pool()).await.unwrap();
    }

    let mut deaths = 0;
    let finished = loop {
        match setup.run_with(&limits, id).await {
            Ok(finished) => break finished,
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                deaths += 1;
                let inserted = setup.find(id).await.counts.inserted;
                assert_eq!(
                    setup.check_row_count().await,
                    inserted,
                    "a chunk was half committed"
                );
                sqlx::query(
                    "insert into deaths select checkpoint ->> 'place' from ingests where id = $1",
                )
                .bind(id)
                .execute(setup.pool())
                .await
                .unwrap();
            }
        }
    };
    assert_eq!(deaths, 11, "540 rows in chunks of 50");
    assert_eq!((finished.counts, finished.failure), (counts, None));
    assert_eq!(setup.check_row_count().await, 360);
}

#[tokio::test]
async fn a_run_that_is_dropped_anywhere_resumes_to_the_same_counts() {
    let setup = IngestSetup::new().await;
    let (file, counts) = awkward_csv(1_000);
    let id = setup.upload(&file).await;
    let limits = IngestLimits {
        chunk_rows: 20,
        ..LIMITS
    };
    let mut timeout = Duration::from_millis(1);
    let mut drops = 0;
    let finished = loop {
        match tokio::time::timeout(timeout, setup.run_with(&limits, id)).await {
            Ok(finished) => break finished.unwrap(),
            Err(_) => {
                drops += 1;
                timeout += Duration::from_millis(3);
            }
        }
    };
    assert!(drops >= 3, "dropped only {drops} times");
    assert_eq!((finished.counts, finished.failure), (counts, None));
    assert_eq!(setup.check_row_count().await, 600);
}

#[tokio::test]
async fn concurrent_runs_of_one_ingest_count_every_row_once() {
    let setup = IngestSetup::new().await;
    let (file, counts) = awkward_csv(2_000);
    let id = setup.upload(&file).await;
    let limits = IngestLimits {
        chunk_rows: 50,
        ..LIMITS
    };
    let (a, b, c) = tokio::join!(
        setup.run_with(&limits, id),
        setup.run_with(&limits, id),
        setup.run_with(&limits, id)
    );
    for finished in [a.unwrap(), b.unwrap(), c.unwrap()] {
        assert_eq!((finished.counts, finished.failure), (counts, None));
    }
    assert_eq!(setup.check_row_count().await, 1_200);
    let rejects = ingest::first_rejects(setup.pool(), &setup.scope, id, 1_000)
        .await
        .unwrap();
    assert_eq!(rejects.len(), 200);
}

#[tokio::test]
async fn concurrent_ingests_into_one_batch_insert_each_number_once() {
    let setup = IngestSetup::new().await;
    let (a, b) = (
        setup.upload(&csv_list(0, 1_000)).await,
        setup.upload(&csv_list(500, 1_000)).await,
    );
    let (a, b) = tokio::join!(setup.run(a), setup.run(b));
    assert_eq!((a.counts.total_rows, b.counts.total_rows), (1_000, 1_000));
    assert_eq!(a.counts.inserted + b.counts.inserted, 1_500);
    assert_eq!(a.counts.duplicates + b.counts.duplicates, 500);
    assert_eq!(setup.check_row_count().await, 1_500);
}

#[tokio::test]
async fn a_started_batch_accepts_no_rows() {
    let setup = IngestSetup::new().await;
    let id = setup.upload(&csv_list(0, 10)).await;
    sqlx::query("update call_batches set status = 'in_progress' where id = $1")
        .bind(setup.target.batch)
        .execute(setup.pool())
        .await
        .unwrap();
    let finished = setup.run(id).await;
    assert_eq!(finished.failure.unwrap().code, "batch_started");
    assert_eq!(finished.counts, IngestCounts::default());
    assert_eq!(setup.find(id).await.state, IngestState::Failed);
    let mut db = setup.pool().acquire().await.unwrap();
    let refused = ingest::insert_records(&mut db, &setup.target, &LIMITS, &[]).await;
    assert!(matches!(
        refused.unwrap_err(),
        Error::Conflict {
            code: "batch_started",
            ..
        }
    ));
}

#[tokio::test]
async fn a_full_batch_fails_the_ingest_and_keeps_the_inserted_rows() {
    let setup = IngestSetup::new().await;
    let id = setup.upload(&csv_list(0, 500)).await;
    let limits = IngestLimits {
        max_rows_per_batch: 250,
        ..LIMITS
    };
    let finished = setup.run_with(&limits, id).await.unwrap();
    assert_eq!(finished.counts.inserted, 200);
    let failure = finished.failure.unwrap();
    assert_eq!(failure.code, "too_many_rows");
    assert!(failure.message.contains("250"), "{failure:?}");
    assert_eq!(setup.check_row_count().await, 200);
}

#[tokio::test]
async fn a_malformed_file_fails_and_keeps_the_rows_before_the_error() {
    let setup = IngestSetup::new().await;
    for (tail, code) in [
        ("\"never closed,\nPune\n".to_owned(), "unclosed_quote"),
        ("x".repeat(100_000), "record_too_long"),
        (",".repeat(100_000), "record_too_long"),
        ("\"".to_owned() + &csv_list(900, 2_000), "record_too_long"),
    ] {
        let id = setup.upload(&(csv_list(0, 250) + &tail)).await;
        let finished = setup.run(id).await;
        assert_eq!(finished.counts.total_rows, 250, "{code}");
        let failure = finished.failure.unwrap();
        assert_eq!(failure.code, code);
        assert!(failure.message.contains("line 252"), "{failure:?}");
    }
    assert_eq!(setup.check_row_count().await, 250);
}

#[tokio::test]
async fn an_ingest_without_its_file_or_batch_ends() {
    let setup = IngestSetup::new().await;
    let id = setup.upload(&csv_list(0, 10)).await;
    let key = format!("ingests/{}/{id}.csv", setup.target.org);
    setup.store.delete(&key).await.unwrap();
    let finished = setup.run(id).await;
    assert_eq!(finished.failure.unwrap().code, "file_missing");

    let id = setup.upload(&csv_list(0, 10)).await;
    sqlx::query("delete from call_batches where id = $1")
        .bind(setup.target.batch)
        .execute(setup.pool())
        .await
        .unwrap();
    let gone = setup.run_with(&LIMITS, id).await.unwrap_err();
    assert!(matches!(gone, Error::NotFound("Ingest")), "{gone}");
}

#[tokio::test]
async fn the_records_of_a_request_obey_the_rules_of_a_file() {
    let setup = IngestSetup::new().await;
    let records: Vec<RowInput> = serde_json::from_value(serde_json::json!([
        {"to_phonenumber": "98765 43210", "name": "Asha", "extra": 1},
        {"to_phonenumber": "+919876543210", "name": "again"},
        {"to_phonenumber": "nobody"},
        {"to_phonenumber": "+16502530000", "timezone": "America/New_York", "city": 7},
    ]))
    .unwrap();

    for (inserted, duplicates) in [(2, 1), (0, 3)] {
        let mut tx = setup.pool().begin().await.unwrap();
        let inserted_records = ingest::insert_records(&mut tx, &setup.target, &LIMITS, &records)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        assert_eq!(
            inserted_records.counts,
            IngestCounts {
                total_rows: 4,
                inserted,
                duplicates,
                rejected: 1
            }
        );
        assert_eq!(
            i64::try_from(inserted_records.rows.len()).unwrap(),
            inserted
        );
        assert_eq!(
            (
                inserted_records.rejects[0].line,
                &*inserted_records.rejects[0].code
            ),
            (3, "not_a_number")
        );
        assert_eq!(inserted_records.warnings.len(), 1);
    }

    assert_eq!(setup.check_row_count().await, 2);
    let zones: Vec<String> = sqlx::query_scalar(
        "select z.zones[1] from batch_data d join zone_sets z on z.id = d.zone_set_id order by row_no",
    )
    .fetch_all(setup.pool())
    .await
    .unwrap();
    assert_eq!(zones, ["Asia/Calcutta", "America/New_York"]);
}

#[tokio::test]
async fn an_endless_upload_is_refused_without_using_memory() {
    let setup = IngestSetup::new().await;
    let before = resident_bytes();
    // Ten gigabytes each, if read to the end.
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
        let refused = setup.receive(body).await.unwrap_err();
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
