//! Operator commands on queues: show depths, pause, resume, and retry dead jobs.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;

use crate::platform::error::{Error, OnConstraint, Result};
use crate::platform::ids::{JobId, OrgId};

use super::{EnqueuedJob, Queue};

/// Number of jobs in a queue, by state.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueueDepth {
    pub queue: Queue,
    pub paused_at: Option<DateTime<Utc>>,
    /// Jobs that are due.
    pub ready: i64,
    /// Jobs that are due later.
    pub delayed: i64,
    pub running: i64,
    pub dead: i64,
    /// Seconds since the oldest ready job was due.
    pub oldest_secs: Option<f64>,
}

/// A job that runs again only when an operator retries it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeadJob {
    pub id: JobId,
    pub queue: String,
    pub kind: String,
    pub org: Option<OrgId>,
    pub args: serde_json::Value,
    pub attempts: i32,
    pub why: Option<String>,
    pub died_at: DateTime<Utc>,
}

/// Pauses a queue: jobs are still added, none is claimed, running ones continue.
pub async fn pause(db: &mut PgConnection, queue: Queue) -> Result<()> {
    sqlx::query!(
        "insert into queues (name, paused_at)
        values ($1, now())
        on conflict (name) do update
        set paused_at = coalesce(queues.paused_at, now())",
        queue.name(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Resumes a queue. Workers notice within seconds.
pub async fn resume(db: &mut PgConnection, queue: Queue) -> Result<()> {
    sqlx::query!(
        "update queues set paused_at = null where name = $1",
        queue.name(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Reports the depth of every queue.
pub async fn queue_depths(db: &mut PgConnection) -> Result<Vec<QueueDepth>> {
    let names = Queue::ALL.map(|queue| queue.name().to_owned());

    let rows = sqlx::query!(
        r#"
        select
            name as "name!",
            (select paused_at from queues where queues.name = known.name) as paused_at,
            counted.ready as "ready!",
            counted.delayed as "delayed!",
            counted.running as "running!",
            counted.dead as "dead!",
            counted.oldest_secs::float8 as oldest_secs
        from unnest($1::text[]) as known (name)
        cross join lateral (
            select
                count(*) filter (where state = 'ready' and run_at <= now()) as ready,
                count(*) filter (where state = 'ready' and run_at > now()) as delayed,
                count(*) filter (where state = 'running') as running,
                count(*) filter (where state = 'dead') as dead,
                extract(epoch from now() - min(run_at)
                    filter (where state = 'ready' and run_at <= now())) as oldest_secs
            from jobs
            where jobs.queue = known.name
                and state in ('ready', 'running', 'dead')
        ) counted
        "#,
        &names,
    )
    .fetch_all(db)
    .await?;

    let depths = rows.into_iter().filter_map(|row| {
        Some(QueueDepth {
            queue: Queue::from_name(&row.name)?,
            paused_at: row.paused_at,
            ready: row.ready,
            delayed: row.delayed,
            running: row.running,
            dead: row.dead,
            oldest_secs: row.oldest_secs,
        })
    });

    Ok(depths.collect())
}

/// Lists the dead jobs of all queues, the latest first.
pub async fn dead_jobs(db: &mut PgConnection, limit: i64) -> Result<Vec<DeadJob>> {
    let dead = sqlx::query_as!(
        DeadJob,
        r#"
        select
            id as "id: JobId",
            queue,
            kind,
            org_id as "org: OrgId",
            args,
            attempts,
            last_error as why,
            finished_at as "died_at!"
        from jobs
        where state = 'dead'
        order by finished_at desc
        limit $1
        "#,
        limit,
    )
    .fetch_all(db)
    .await?;
    Ok(dead)
}

/// Makes a dead job ready again, with all its attempts.
///
/// # Errors
/// [`Error::NotFound`] when no dead job has this id; [`Error::Conflict`] when a live job
/// already does the same work.
pub async fn retry_dead_job(db: &mut PgConnection, id: JobId) -> Result<EnqueuedJob> {
    let queue = sqlx::query_scalar!(
        "update jobs
        set state = 'ready', attempts = 0, run_at = now(), finished_at = null, worker = null
        where id = $1
            and state = 'dead'
        returning queue",
        id as JobId,
    )
    .fetch_optional(db)
    .await
    .on_constraint("job_is_live", || {
        Error::conflict("job_is_live", "Another job already does the same work")
    })?
    .and_then(|name| Queue::from_name(&name))
    .ok_or(Error::NotFound("Dead job"))?;
    Ok(EnqueuedJob {
        id,
        queue,
        is_new: true,
        is_due: true,
    })
}
