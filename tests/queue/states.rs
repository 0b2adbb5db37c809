//! States of a job: a table of every action in every state, the outcomes of a run, and the database
//! constraints of each state.

use peal_shared::platform::queue::JobState;
use serde_json::Value;
use sqlx::AssertSqlSafe;

use super::*;

/// Every state, with the update that leads to it from `ready`. Delayed jobs, running jobs with an
/// expired lease and old finished jobs are listed separately.
const START_STATES: [(&str, &str); 8] = [
    ("due", "attempts = 0"),
    ("delayed", "run_at = now() + interval '1 hour'"),
    (
        "running",
        "state = 'running', worker = 'w', attempts = 1, fence = 1, lease_until = now() + interval '1 minute'",
    ),
    (
        "overdue",
        "state = 'running', worker = 'w', attempts = 1, fence = 1, lease_until = now() - interval '1 second'",
    ),
    (
        "overdue for the last time",
        "state = 'running', worker = 'w', attempts = max_attempts, fence = 5, lease_until = now() - interval '1 second'",
    ),
    (
        "done",
        "state = 'done', worker = 'w', attempts = 1, fence = 1, finished_at = now()",
    ),
    (
        "done a week ago",
        "state = 'done', worker = 'w', attempts = 1, fence = 1, finished_at = now() - interval '8 days'",
    ),
    (
        "dead",
        "state = 'dead', attempts = 5, fence = 5, finished_at = now() - interval '8 days', last_error = 'why'",
    ),
];

/// An event or a request that concerns a job.
#[derive(Clone, Copy, Debug, PartialEq)]
enum JobAction {
    AddAgain,
    Work,
    WorkWhilePaused,
    Sweep,
    RetryDead,
}

/// State and attempts after an action in each of [`PLACES`]. "" changes nothing, "gone" deletes the
/// job.
type JobEndStates = [(&'static str, i32); 8];

const UNCHANGED: (&str, i32) = ("", 0);
const DELETED: (&str, i32) = ("gone", 0);
const TRANSITIONS: [(JobAction, JobEndStates); 5] = [
    (JobAction::AddAgain, [UNCHANGED; 8]),
    (
        JobAction::Work,
        [
            ("done", 1),
            UNCHANGED,
            UNCHANGED,
            ("done", 2),
            ("dead", 5),
            UNCHANGED,
            DELETED,
            UNCHANGED,
        ],
    ),
    (
        JobAction::WorkWhilePaused,
        [
            UNCHANGED,
            UNCHANGED,
            UNCHANGED,
            ("ready", 1),
            ("dead", 5),
            UNCHANGED,
            DELETED,
            UNCHANGED,
        ],
    ),
    (
        JobAction::Sweep,
        [
            UNCHANGED,
            UNCHANGED,
            UNCHANGED,
            ("ready", 1),
            ("dead", 5),
            UNCHANGED,
            DELETED,
            UNCHANGED,
        ],
    ),
    (
        JobAction::RetryDead,
        [
            UNCHANGED,
            UNCHANGED,
            UNCHANGED,
            UNCHANGED,
            UNCHANGED,
            UNCHANGED,
            UNCHANGED,
            ("ready", 0),
        ],
    ),
];

impl QueueSetup {
    async fn job_row(&self, id: JobId) -> Option<Value> {
        sqlx::query_scalar("select to_jsonb(jobs) from jobs where id = $1")
            .bind(id)
            .fetch_optional(&self.db.pool)
            .await
            .unwrap()
    }

    async fn update_job(&self, id: JobId, change: &str) -> sqlx::Result<()> {
        let update = format!("update jobs set {change} where id = '{id}'");
        sqlx::query(AssertSqlSafe(update))
            .execute(&self.db.pool)
            .await
            .map(drop)
    }

    /// True when the job is in the expected state.
    async fn is_in_state(&self, id: JobId, before: &Value, (state, attempts): (&str, i32)) -> bool {
        match (state, self.job_row(id).await) {
            ("gone", row) => row.is_none(),
            ("", row) => row.as_ref() == Some(before),
            (_, Some(row)) => row["state"] == state && row["attempts"] == attempts,
            (_, None) => false,
        }
    }

    /// Sweeps, then runs a worker until it has finished a job that was added last.
    async fn run_until_last_job(&self, is_paused: bool) {
        self.sweep().await;
        let workers = self.start_workers(2);
        let last = if is_paused {
            self.add(Other { n: 0 }).await
        } else {
            self.add(Probe { n: 0 }).await
        };
        self.wait_for_state(&last, "done").await;
        workers.stop().await;
    }

    async fn delete_all_jobs(&self) {
        sqlx::query("delete from jobs")
            .execute(&self.db.pool)
            .await
            .unwrap();
    }

    async fn sweep(&self) {
        let swept = queue::sweep(&self.db.pool, &self.wakeups).await;
        assert!(swept.is_ok(), "{swept:?}");
    }

    async fn perform(&self, action: JobAction, job: &EnqueuedJob, place: &str) {
        let mut db = self.db.pool.acquire().await.unwrap();
        match action {
            JobAction::AddAgain => {
                let again = queue::enqueue(&mut db, &KeyedJob { n: 1 }, None)
                    .await
                    .unwrap();
                let has_ended = place.starts_with("done") || place == "dead";
                assert_eq!(again.is_new, has_ended, "{place}");
                assert_eq!(again.id == job.id, !has_ended, "{place}");
            }
            JobAction::Work => self.run_until_last_job(false).await,
            JobAction::WorkWhilePaused => {
                queue::pause(&mut db, Queue::Control).await.unwrap();
                self.run_until_last_job(true).await;
                queue::resume(&mut db, Queue::Control).await.unwrap();
            }
            JobAction::Sweep => self.sweep().await,
            JobAction::RetryDead => {
                let revived = queue::retry_dead_job(&mut db, job.id).await;
                assert_eq!(revived.is_ok(), place == "dead", "{place}");
            }
        }
    }
}

#[tokio::test]
async fn every_action_in_every_state_has_its_expected_result() {
    let setup = QueueSetup::new().await;
    for (action, ends) in TRANSITIONS {
        for ((place, change), end) in START_STATES.into_iter().zip(ends) {
            let case = format!("{action:?} when {place}");
            let job = setup.add(KeyedJob { n: 1 }).await;
            setup.update_job(job.id, change).await.unwrap();
            let before = setup.job_row(job.id).await.unwrap();
            setup.perform(action, &job, place).await;
            assert!(setup.is_in_state(job.id, &before, end).await, "{case}");
            setup.delete_all_jobs().await;
        }
    }
}

/// End of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum RunEnd {
    Done,
    Retry,
    Fail,
    Panic,
}

/// A job that waits for the gate and then ends as its payload says.
#[derive(Serialize, Deserialize)]
pub(super) struct ScriptedJob {
    how: RunEnd,
}

impl JobPayload for ScriptedJob {
    const KIND: &'static str = "scripted";
    const QUEUE: Queue = Queue::Control;
    const MAX_ATTEMPTS: i32 = 3;

    fn org(&self) -> Option<OrgId> {
        None
    }
}

impl JobHandler<RunLog> for ScriptedJob {
    async fn handle(self, log: &RunLog, job: &RunningJob) -> JobOutcome {
        log.record_run(0, job);
        log.gate.acquire().await.unwrap().forget();
        let why = "as scripted".to_owned();
        match self.how {
            RunEnd::Done => JobOutcome::Done,
            RunEnd::Retry => JobOutcome::Retry {
                after: Some(Duration::from_secs(3600)),
                why,
            },
            RunEnd::Fail => JobOutcome::Fail { why },
            RunEnd::Panic => panic!("as scripted"),
        }
    }
}

/// JobState of a job after each end of a run: on the first attempt, and on the last.
const ENDINGS: [(RunEnd, [JobState; 2]); 4] = [
    (RunEnd::Done, [JobState::Done, JobState::Done]),
    (RunEnd::Retry, [JobState::Ready, JobState::Dead]),
    (RunEnd::Fail, [JobState::Dead, JobState::Dead]),
    (RunEnd::Panic, [JobState::Ready, JobState::Dead]),
];

/// Updates by which a worker loses its running job.
const LOSING_UPDATES: [&str; 4] = [
    "state = 'running', worker = 'another', attempts = 2, fence = fence + 1",
    "state = 'ready', lease_until = null, run_at = now() + interval '1 hour', fence = fence + 1",
    "state = 'done', lease_until = null, finished_at = now(), fence = fence + 1",
    "state = 'dead', lease_until = null, finished_at = now(), last_error = 'why', fence = fence + 1",
];

impl QueueSetup {
    /// Lets a worker claim a job after some attempts, updates its row by `meanwhile`, and ends the
    /// run. Returns the row before and after the end, and deletes the job so that it does not run in
    /// the next case.
    async fn run_to_end(&self, how: RunEnd, attempts: i32, meanwhile: &str) -> (Value, Value) {
        let mut db = self.db.pool.acquire().await.unwrap();
        let job = queue::enqueue(&mut db, &ScriptedJob { how }, None)
            .await
            .unwrap();
        let change = format!("attempts = {attempts}");
        self.update_job(job.id, &change).await.unwrap();
        let runs = self.log.run_count();
        let workers = self.start_workers(1);
        let has_begun = || async { self.log.run_count() > runs };
        eventually("the run begins", TEST_TIMEOUT, has_begun).await;
        self.update_job(job.id, meanwhile).await.unwrap();
        let before = self.job_row(job.id).await.unwrap();
        self.log.gate.add_permits(1);
        workers.stop().await;
        let after = self.job_row(job.id).await.unwrap();
        self.delete_all_jobs().await;
        (before, after)
    }
}

#[tokio::test]
async fn every_run_end_has_its_state_and_a_lost_run_changes_nothing() {
    let setup = QueueSetup::new().await;
    for (how, states) in ENDINGS {
        for (attempts, state) in [0, 2].into_iter().zip(states) {
            let (_, after) = setup.run_to_end(how, attempts, "worker = worker").await;
            let case = format!("{how:?} after {attempts} attempts: {after}");
            assert_eq!(after["state"], state.as_str(), "{case}");
            assert_eq!(after["attempts"], attempts + 1, "{case}");
            assert_eq!(after["last_error"].is_null(), how == RunEnd::Done, "{case}");
        }
        for taken in LOSING_UPDATES {
            let (before, after) = setup.run_to_end(how, 0, taken).await;
            assert_eq!(after, before, "{how:?} when {taken}");
        }
    }
}

/// Updates that are invalid in each state, and the constraint that each violates.
const INVALID_UPDATES: [(&str, &[(&str, &str)]); 4] = [
    (
        "due",
        &[
            ("lease_until = now()", "running_jobs_have_a_lease"),
            ("finished_at = now()", "ended_jobs_have_an_end"),
            ("state = 'running'", "running_jobs_have_a_lease"),
            (
                "state = 'running', lease_until = now()",
                "running_jobs_were_claimed",
            ),
            ("state = 'done'", "ended_jobs_have_an_end"),
            (
                "state = 'dead', finished_at = now()",
                "dead_jobs_have_a_reason",
            ),
        ],
    ),
    (
        "running",
        &[
            ("lease_until = null", "running_jobs_have_a_lease"),
            ("worker = null", "running_jobs_were_claimed"),
            ("attempts = 0", "running_jobs_were_claimed"),
            ("fence = 0", "running_jobs_were_claimed"),
            ("finished_at = now()", "ended_jobs_have_an_end"),
            ("state = 'ready'", "running_jobs_have_a_lease"),
        ],
    ),
    (
        "done",
        &[
            ("finished_at = null", "ended_jobs_have_an_end"),
            ("lease_until = now()", "running_jobs_have_a_lease"),
            ("state = 'ready'", "ended_jobs_have_an_end"),
            ("state = 'dead'", "dead_jobs_have_a_reason"),
        ],
    ),
    (
        "dead",
        &[
            ("finished_at = null", "ended_jobs_have_an_end"),
            ("lease_until = now()", "running_jobs_have_a_lease"),
            ("last_error = null", "dead_jobs_have_a_reason"),
        ],
    ),
];

#[tokio::test]
async fn the_schema_refuses_inconsistent_states() {
    let setup = QueueSetup::with_redis(None).await;
    for (place, changes) in INVALID_UPDATES {
        let (_, there) = START_STATES
            .iter()
            .find(|(name, _)| *name == place)
            .unwrap();
        let job = setup.add(KeyedJob { n: 1 }).await;
        setup.update_job(job.id, there).await.unwrap();
        let always = [
            (
                "state = 'lost', lease_until = null, finished_at = null",
                "jobs_state_check",
            ),
            ("max_attempts = 0", "jobs_max_attempts_check"),
            ("attempts = -1", "jobs_attempts_check"),
        ];
        for (change, constraint) in changes.iter().chain(&always) {
            let refused = setup.update_job(job.id, change).await.expect_err(change);
            let database = refused.as_database_error().expect("the schema refuses");
            let violated = database.constraint();
            assert_eq!(violated, Some(*constraint), "{change} when {place}");
        }
        setup.update_job(job.id, "dedupe_key = null").await.unwrap();
    }
}
