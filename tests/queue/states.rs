//! The states of a job: what everything that can happen does in each of them, and what the schema
//! refuses whoever asks.

use peal_shared::platform::queue::JobState;
use serde_json::Value;
use sqlx::AssertSqlSafe;

use super::*;

/// Every state, by how a row gets there from `ready`. Ready jobs that wait for their time, running
/// ones whose lease has run out and old ones that are done are places of their own.
const PLACES: [(&str, &str); 8] = [
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

/// What happens to a job.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    AddAgain,
    Work,
    WorkWhilePaused,
    Sweep,
    RetryDead,
}

/// Where each action leads from each of [`PLACES`], with the attempts that are counted then. ""
/// changes nothing, "gone" forgets the job.
type Ends = [(&'static str, i32); 8];

const SAME: (&str, i32) = ("", 0);
const GONE: (&str, i32) = ("gone", 0);
const TABLE: [(Action, Ends); 5] = [
    (Action::AddAgain, [SAME; 8]),
    (
        Action::Work,
        [
            ("done", 1),
            SAME,
            SAME,
            ("done", 2),
            ("dead", 5),
            SAME,
            GONE,
            SAME,
        ],
    ),
    (
        Action::WorkWhilePaused,
        [
            SAME,
            SAME,
            SAME,
            ("ready", 1),
            ("dead", 5),
            SAME,
            GONE,
            SAME,
        ],
    ),
    (
        Action::Sweep,
        [
            SAME,
            SAME,
            SAME,
            ("ready", 1),
            ("dead", 5),
            SAME,
            GONE,
            SAME,
        ],
    ),
    (
        Action::RetryDead,
        [SAME, SAME, SAME, SAME, SAME, SAME, SAME, ("ready", 0)],
    ),
];

impl House {
    async fn row(&self, id: JobId) -> Option<Value> {
        sqlx::query_scalar("select to_jsonb(jobs) from jobs where id = $1")
            .bind(id)
            .fetch_optional(&self.db.pool)
            .await
            .unwrap()
    }

    async fn set(&self, id: JobId, change: &str) -> sqlx::Result<()> {
        let update = format!("update jobs set {change} where id = '{id}'");
        sqlx::query(AssertSqlSafe(update))
            .execute(&self.db.pool)
            .await
            .map(drop)
    }

    /// Whether the job has come to where the action leads.
    async fn is_at(&self, id: JobId, before: &Value, (state, attempts): (&str, i32)) -> bool {
        match (state, self.row(id).await) {
            ("gone", row) => row.is_none(),
            ("", row) => row.as_ref() == Some(before),
            (_, Some(row)) => row["state"] == state && row["attempts"] == attempts,
            (_, None) => false,
        }
    }

    /// Lets a worker work until it has run a job that came after everything else. It sweeps, too;
    /// here it does so before it begins.
    async fn work_past(&self, is_paused: bool) {
        self.sweep().await;
        let workers = self.work(2);
        let last = if is_paused {
            self.add(Other { n: 0 }).await
        } else {
            self.add(Probe { n: 0 }).await
        };
        self.becomes(&last, "done").await;
        workers.stop().await;
    }

    async fn forget_all(&self) {
        sqlx::query("delete from jobs")
            .execute(&self.db.pool)
            .await
            .unwrap();
    }

    async fn sweep(&self) {
        let swept = queue::sweep(&self.db.pool, &self.bells).await;
        assert!(swept.is_ok(), "{swept:?}");
    }

    async fn act(&self, action: Action, job: &EnqueuedJob, place: &str) {
        let mut db = self.db.pool.acquire().await.unwrap();
        match action {
            Action::AddAgain => {
                let again = queue::enqueue(&mut db, &Keyed { n: 1 }, None)
                    .await
                    .unwrap();
                let has_ended = place.starts_with("done") || place == "dead";
                assert_eq!(again.is_new, has_ended, "{place}");
                assert_eq!(again.id == job.id, !has_ended, "{place}");
            }
            Action::Work => self.work_past(false).await,
            Action::WorkWhilePaused => {
                queue::pause(&mut db, Queue::Control).await.unwrap();
                self.work_past(true).await;
                queue::resume(&mut db, Queue::Control).await.unwrap();
            }
            Action::Sweep => self.sweep().await,
            Action::RetryDead => {
                let retried = queue::retry_dead_job(&mut db, job.id).await;
                assert_eq!(retried.is_ok(), place == "dead", "{place}");
            }
        }
    }
}

#[tokio::test]
async fn everything_that_happens_does_in_every_state_what_it_should() {
    let house = House::new().await;
    for (action, ends) in TABLE {
        for ((place, change), end) in PLACES.into_iter().zip(ends) {
            let case = format!("{action:?} when {place}");
            let job = house.add(Keyed { n: 1 }).await;
            house.set(job.id, change).await.unwrap();
            let before = house.row(job.id).await.unwrap();
            house.act(action, &job, place).await;
            assert!(house.is_at(job.id, &before, end).await, "{case}");
            house.forget_all().await;
        }
    }
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum How {
    Done,
    Retry,
    Fail,
    Panic,
}

/// A job that waits for the gate and then ends as it was told.
#[derive(Serialize, Deserialize)]
pub(super) struct Told {
    how: How,
}

impl JobPayload for Told {
    const KIND: &'static str = "told";
    const QUEUE: Queue = Queue::Control;
    const MAX_ATTEMPTS: i32 = 3;

    fn org(&self) -> Option<OrgId> {
        None
    }
}

impl JobHandler<Log> for Told {
    async fn handle(self, log: &Log, job: &RunningJob) -> JobOutcome {
        log.note(0, job);
        log.gate.acquire().await.unwrap().forget();
        let why = "told so".to_owned();
        match self.how {
            How::Done => JobOutcome::Done,
            How::Retry => JobOutcome::Retry {
                after: Some(Duration::from_secs(3600)),
                why,
            },
            How::Fail => JobOutcome::Fail { why },
            How::Panic => panic!("told so"),
        }
    }
}

/// What a run's end makes of its job: on the first attempt, and on the last.
const ENDINGS: [(How, [JobState; 2]); 4] = [
    (How::Done, [JobState::Done, JobState::Done]),
    (How::Retry, [JobState::Ready, JobState::Dead]),
    (How::Fail, [JobState::Dead, JobState::Dead]),
    (How::Panic, [JobState::Ready, JobState::Dead]),
];

/// What may have become of a job meanwhile that its worker has lost.
const TAKEN: [&str; 4] = [
    "state = 'running', worker = 'another', attempts = 2, fence = fence + 1",
    "state = 'ready', lease_until = null, run_at = now() + interval '1 hour', fence = fence + 1",
    "state = 'done', lease_until = null, finished_at = now(), fence = fence + 1",
    "state = 'dead', lease_until = null, finished_at = now(), last_error = 'why', fence = fence + 1",
];

impl House {
    /// Has a worker claim a job after so many attempts, does `meanwhile` to its row, and lets the
    /// run end. Answers the row before and behind its end, and leaves none: what may be run again
    /// would be, in the next one's place.
    async fn end(&self, how: How, attempts: i32, meanwhile: &str) -> (Value, Value) {
        let mut db = self.db.pool.acquire().await.unwrap();
        let job = queue::enqueue(&mut db, &Told { how }, None).await.unwrap();
        let change = format!("attempts = {attempts}");
        self.set(job.id, &change).await.unwrap();
        let runs = self.log.count();
        let workers = self.work(1);
        let begun = || async { self.log.count() > runs };
        eventually("the run begins", PATIENCE, begun).await;
        self.set(job.id, meanwhile).await.unwrap();
        let before = self.row(job.id).await.unwrap();
        self.log.gate.add_permits(1);
        workers.stop().await;
        let after = self.row(job.id).await.unwrap();
        self.forget_all().await;
        (before, after)
    }
}

#[tokio::test]
async fn every_end_of_a_run_does_what_it_should_and_nothing_once_the_job_is_lost() {
    let house = House::new().await;
    for (how, states) in ENDINGS {
        for (attempts, state) in [0, 2].into_iter().zip(states) {
            let (_, after) = house.end(how, attempts, "worker = worker").await;
            let case = format!("{how:?} after {attempts} attempts: {after}");
            assert_eq!(after["state"], state.as_str(), "{case}");
            assert_eq!(after["attempts"], attempts + 1, "{case}");
            assert_eq!(after["last_error"].is_null(), how == How::Done, "{case}");
        }
        for taken in TAKEN {
            let (before, after) = house.end(how, 0, taken).await;
            assert_eq!(after, before, "{how:?} when {taken}");
        }
    }
}

/// What is wrong in each state, and the constraint that says so.
const WRONG: [(&str, &[(&str, &str)]); 4] = [
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
async fn the_schema_refuses_states_without_their_facts() {
    let house = House::with_redis(None).await;
    for (place, changes) in WRONG {
        let (_, there) = PLACES.iter().find(|(name, _)| *name == place).unwrap();
        let job = house.add(Keyed { n: 1 }).await;
        house.set(job.id, there).await.unwrap();
        let always = [
            (
                "state = 'lost', lease_until = null, finished_at = null",
                "jobs_state_check",
            ),
            ("max_attempts = 0", "jobs_max_attempts_check"),
            ("attempts = -1", "jobs_attempts_check"),
        ];
        for (change, constraint) in changes.iter().chain(&always) {
            let refused = house.set(job.id, change).await.expect_err(change);
            let database = refused.as_database_error().expect("the schema refuses");
            let told = database.constraint();
            assert_eq!(told, Some(*constraint), "{change} when {place}");
        }
        house.set(job.id, "dedupe_key = null").await.unwrap();
    }
}
