//! States of an ingest: a table of every action in every state, and the database constraints of
//! each state.

use peal_shared::billing::estimate::EstimateBasis;
use peal_shared::campaigns::ingest::IngestCsv;
use peal_shared::campaigns::{batches, lifecycle};
use peal_shared::platform::clock::Clock;
use peal_shared::platform::queue;
use sqlx::AssertSqlSafe;

use super::*;

const STATES: [IngestState; 4] = [
    IngestState::Queued,
    IngestState::Running,
    IngestState::Completed,
    IngestState::Failed,
];

/// An event or a request that concerns an ingest.
#[derive(Clone, Copy, Debug)]
enum IngestAction {
    Run,
    RunAndStop,
    RunWithoutFile,
    RunAfterStart,
    GiveUp,
    SweepWithJob,
    SweepWithDeadJob,
    Start,
    Delete,
}

use IngestAction::{
    Delete, GiveUp, Run, RunAfterStart, RunAndStop, RunWithoutFile, Start, SweepWithDeadJob,
    SweepWithJob,
};

/// IngestState after an action in each of [`STATES`], with the error code of a refusal (empty if none).
/// `None`: the ingest is deleted.
type IngestEndStates = [(Option<IngestState>, &'static str); 4];

fn transition_table() -> [(IngestAction, IngestEndStates); 9] {
    let (queued, running) = (Some(IngestState::Queued), Some(IngestState::Running));
    let (completed, failed) = (Some(IngestState::Completed), Some(IngestState::Failed));

    // Ended ingests keep their state.
    let ends = |queued, running| [(queued, ""), (running, ""), (completed, ""), (failed, "")];

    [
        (Run, ends(completed, completed)),
        (
            RunAndStop,
            [
                (running, "stopped"),
                (running, "stopped"),
                (completed, ""),
                (failed, ""),
            ],
        ),
        (RunWithoutFile, ends(failed, failed)),
        (RunAfterStart, ends(failed, failed)),
        (GiveUp, ends(failed, failed)),
        (SweepWithJob, ends(queued, running)),
        (SweepWithDeadJob, ends(failed, failed)),
        (
            Start,
            [
                (queued, "ingest_running"),
                (running, "ingest_running"),
                (completed, ""),
                (failed, "no_rows"),
            ],
        ),
        (
            Delete,
            [
                (queued, "ingest_running"),
                (running, "ingest_running"),
                (None, ""),
                (None, ""),
            ],
        ),
    ]
}

impl IngestSetup {
    /// Creates a new batch as the target of the next case.
    async fn next_batch(&mut self) {
        let batch = BatchId::new();
        sqlx::query(
            "insert into call_batches (id, org_id, user_id, agent_id, caller_phone_id, batch_name, variable_names)
             select $1, p.org_id, p.user_id, a.id, p.id, 'Diwali', '{name,city}'
             from phone_numbers p join agents a on a.org_id = p.org_id",
        )
        .bind(batch)
        .execute(self.pool())
        .await
        .unwrap();
        self.target.batch = batch;
    }

    /// Creates an ingest of ten rows in this state, in a batch of its own.
    async fn create_ingest_in(&mut self, state: IngestState) -> IngestId {
        self.next_batch().await;
        let id = self.upload(&csv_list(0, 10)).await;
        match state {
            IngestState::Queued => {}
            IngestState::Running => drop(self.run_and_stop(id).await.unwrap_err()),
            IngestState::Completed => drop(self.run(id).await),
            IngestState::Failed => drop(self.give_up(id).await),
        }
        assert_eq!(self.find(id).await.state, state);
        id
    }

    async fn run_and_stop(&self, id: IngestId) -> Result<IngestResult> {
        let stop = CancellationToken::new();
        stop.cancel();
        ingest::run_unscoped(self.pool(), &self.store, &LIMITS, id, &stop).await
    }

    async fn give_up(&self, id: IngestId) -> Option<queue::EnqueuedJob> {
        ingest::give_up_unscoped(self.pool(), &self.store, id, "a test")
            .await
            .unwrap()
    }

    async fn sweep(&self, id: IngestId, job: &'static str) {
        let payload = IngestCsv {
            org_id: self.target.org,
            ingest_id: id,
        };
        let mut db = self.pool().acquire().await.unwrap();
        let _ = queue::enqueue(&mut db, &payload, None).await.unwrap();
        sqlx::query(job).execute(&mut *db).await.unwrap();
        ingest::give_up_jobless_unscoped(self.pool(), &self.store)
            .await
            .unwrap();
        sqlx::query("delete from jobs")
            .execute(&mut *db)
            .await
            .unwrap();
    }

    /// Performs the action and returns the code of its refusal (empty if none).
    async fn perform(&self, action: IngestAction, id: IngestId) -> String {
        let batch = self.target.batch;
        let mut db = self.pool().begin().await.unwrap();

        let refusal = match action {
            Run => self.run_with(&LIMITS, id).await.err(),
            RunAndStop => self.run_and_stop(id).await.err(),
            RunWithoutFile => {
                let key = format!("ingests/{}/{id}.csv", self.target.org);
                self.store.delete(&key).await.unwrap();
                self.run_with(&LIMITS, id).await.err()
            }
            RunAfterStart => {
                sqlx::query("update call_batches set status = 'stopped' where id = $1")
                    .bind(batch)
                    .execute(self.pool())
                    .await
                    .unwrap();
                self.run_with(&LIMITS, id).await.err()
            }
            GiveUp => {
                self.give_up(id).await;
                None
            }
            SweepWithJob => {
                self.sweep(id, "select").await;
                None
            }
            SweepWithDeadJob => {
                let dies =
                    "update jobs set state = 'dead', finished_at = now(), last_error = 'a test'";
                self.sweep(id, dies).await;
                None
            }
            Start => {
                // The user has no credit, so calls must be free.
                sqlx::query("update service_prices set price_usd = 0")
                    .execute(self.pool())
                    .await
                    .unwrap();
                let basis = EstimateBasis {
                    at: Clock::default().now(),
                    hold_max_secs: 600,
                };
                lifecycle::start(&mut db, &self.scope, batch, basis)
                    .await
                    .err()
            }
            Delete => batches::delete(&mut db, &self.scope, batch).await.err(),
        };

        db.commit().await.unwrap();
        match refusal {
            None => String::new(),
            Some(Error::Busy(_)) => "stopped".to_owned(),
            Some(Error::Conflict { code, .. }) => code.to_owned(),
            Some(Error::NotReady(blockers)) => blockers[0].code.to_owned(),
            Some(other) => panic!("{other:?}"),
        }
    }

    async fn state_columns(&self, id: IngestId) -> Option<(IngestState, i64, Option<String>)> {
        sqlx::query_as("select state, inserted, failure_code from ingests where id = $1")
            .bind(id)
            .fetch_optional(self.pool())
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn every_action_in_every_state_has_its_expected_result() {
    let mut setup = IngestSetup::new().await;
    for (action, ends) in transition_table() {
        for (from, (to, refusal)) in STATES.into_iter().zip(ends) {
            let case = format!("{action:?} in {from:?}");
            let id = setup.create_ingest_in(from).await;
            let before = setup.state_columns(id).await;
            assert_eq!(setup.perform(action, id).await, refusal, "{case}");
            let after = setup.state_columns(id).await;
            assert_eq!(after.as_ref().map(|facts| facts.0), to, "{case}");
            if to == Some(from) {
                assert_eq!(after, before, "{case}: other columns changed");
            }
            // The file exists exactly as long as the ingest may read it.
            let key = format!("ingests/{}/{id}.csv", setup.target.org);
            let file: Vec<Result<Bytes>> = setup.store.read(&key, 0).collect().await;
            let open = matches!(to, Some(IngestState::Queued | IngestState::Running));
            assert_eq!(file.iter().all(Result::is_ok), open, "{case}: the file");
        }
    }
}

#[tokio::test]
async fn an_uploader_is_notified_once_when_an_ingest_ends() {
    let mut setup = IngestSetup::new().await;
    for (state, announced) in STATES.into_iter().zip([false, false, true, true]) {
        let id = setup.create_ingest_in(state).await;
        let mut db = setup.pool().acquire().await.unwrap();
        let unasked = ingest::email_result_unscoped(&mut db, id).await.unwrap();
        assert_eq!(unasked, None, "{state:?}");
        sqlx::query("update ingests set notify = true where id = $1")
            .bind(id)
            .execute(&mut *db)
            .await
            .unwrap();
        let first = ingest::email_result_unscoped(&mut db, id).await.unwrap();
        assert_eq!(first.is_some(), announced, "{state:?}");
        let second = ingest::email_result_unscoped(&mut db, id).await.unwrap();
        assert_eq!(second, None, "{state:?}");
    }
}

const END_CONSTRAINT: &str = "ended_ingests_have_an_end";
const REASON_CONSTRAINT: &str = "failed_ingests_have_a_reason";
/// Updates that are invalid in each state, and the constraint that each violates.
const INVALID_UPDATES: [(IngestState, &[(&str, &str)]); 4] = [
    (
        IngestState::Queued,
        &[
            ("started_at = now()", "queued_ingests_have_not_begun"),
            ("checkpoint = '{}'", "queued_ingests_have_not_begun"),
            (
                "total_rows = 1, inserted = 1",
                "queued_ingests_have_not_begun",
            ),
            ("finished_at = now()", END_CONSTRAINT),
            ("state = 'running'", "begun_ingests_have_a_place"),
            (
                "state = 'completed', finished_at = now()",
                "begun_ingests_have_a_place",
            ),
            ("state = 'failed', finished_at = now()", REASON_CONSTRAINT),
        ],
    ),
    (
        IngestState::Running,
        &[
            ("started_at = null", "begun_ingests_have_a_place"),
            ("checkpoint = null", "begun_ingests_have_a_place"),
            ("finished_at = now()", END_CONSTRAINT),
            ("state = 'queued'", "queued_ingests_have_not_begun"),
            ("state = 'completed'", END_CONSTRAINT),
            (
                "state = 'failed', failure_code = 'x', failure_message = 'x'",
                END_CONSTRAINT,
            ),
        ],
    ),
    (
        IngestState::Completed,
        &[
            ("finished_at = null", END_CONSTRAINT),
            ("checkpoint = null", "begun_ingests_have_a_place"),
            (
                "failure_code = 'x', failure_message = 'x'",
                REASON_CONSTRAINT,
            ),
            ("state = 'running'", END_CONSTRAINT),
            (
                "state = 'queued', finished_at = null",
                "queued_ingests_have_not_begun",
            ),
        ],
    ),
    (
        IngestState::Failed,
        &[
            ("finished_at = null", END_CONSTRAINT),
            ("failure_code = null", REASON_CONSTRAINT),
            ("failure_message = null", REASON_CONSTRAINT),
            ("state = 'completed'", "begun_ingests_have_a_place"),
            (
                "state = 'running', finished_at = null",
                "begun_ingests_have_a_place",
            ),
        ],
    ),
];

#[tokio::test]
async fn the_schema_refuses_inconsistent_states() {
    let mut setup = IngestSetup::new().await;
    for (state, updates) in INVALID_UPDATES {
        let id = setup.create_ingest_in(state).await;
        let always = [
            ("total_rows = total_rows + 1", "ingest_counts_add_up"),
            (
                "state = 'lost', finished_at = null, failure_code = null, failure_message = null",
                "ingests_state_check",
            ),
        ];
        for (update, constraint) in updates.iter().chain(&always) {
            let refused = sqlx::query(AssertSqlSafe(format!(
                "update ingests set {update} where id = '{id}'"
            )))
            .execute(setup.pool())
            .await
            .expect_err(update);
            let database = refused.as_database_error().expect("the schema refuses");
            // PostgreSQL reports the first violated constraint by name.
            let violated = database.constraint();
            assert_eq!(violated, Some(*constraint), "{update} in {state:?}");
        }
    }
}
