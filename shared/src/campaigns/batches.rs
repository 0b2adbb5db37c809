//! Batches: created, listed, changed and deleted by their owner.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use crate::access::owner_filter::OwnerFilter;
use crate::access::{Role, Scope};
use crate::platform::error::{Error, Result};
use crate::platform::ids::{AgentId, BatchId, OrgId, PhoneId, UserId};
use crate::platform::page::Page;
use crate::wallets::holds::Refusal;
use crate::{agents, caller_numbers};

/// Status of a batch.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum BatchStatus {
    NotStarted,
    Scheduled,
    InProgress,
    Paused,
    Stopped,
    Completed,
}

impl BatchStatus {
    /// The value on the wire and in tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotStarted => "not_started",
            Self::Scheduled => "scheduled",
            Self::InProgress => "in_progress",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Completed => "completed",
        }
    }
}

/// A batch: the contract's fields, then Peal's own.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(example = json!({
    "id": "0197d7a5-3c1e-7a10-8f00-0c5d1f2e3a4b", "user_id": "0197d7a5-3c1e-7a10-8f00-00000000000a",
    "agent_id": "0197d7a5-3c1e-7a10-8f00-00000000000b", "workflow_id": null, "call_flow_id": null,
    "caller_phone_id": "0197d7a5-3c1e-7a10-8f00-00000000000c", "batch_name": "March reminders",
    "description": null, "status": "not_started", "status_reason": null, "status_reason_code": null, "variable_names": ["name"],
    "batch_size": 20, "max_retries": 1, "retry_delay_seconds": 60, "retry_lost": false,
    "auto_resume": false, "default_country": null, "started_at": null, "completed_at": null,
    "created_at": "2026-03-01T09:00:00Z", "updated_at": "2026-03-01T09:00:00Z"
}))]
pub struct Batch {
    pub id: BatchId,
    pub user_id: UserId,
    pub agent_id: AgentId,
    /// Always null: workflows cannot place calls.
    pub workflow_id: Option<uuid::Uuid>,
    /// Always null: call flows cannot place calls.
    pub call_flow_id: Option<uuid::Uuid>,
    pub caller_phone_id: PhoneId,
    pub batch_name: String,
    pub description: Option<String>,
    pub status: BatchStatus,
    /// Reason of a pause or stop.
    pub status_reason: Option<String>,
    /// Set while the owner's credit does not cover its calls.
    pub status_reason_code: Option<Refusal>,
    pub variable_names: Vec<String>,
    /// Most calls at once.
    pub batch_size: i32,
    /// Most further attempts for a number that was not reached.
    pub max_retries: i32,
    pub retry_delay_seconds: i32,
    /// Dial again when a call has no known result.
    pub retry_lost: bool,
    /// Resume automatically when the credit arrives that it was paused for.
    pub auto_resume: bool,
    /// The country of numbers without a country code.
    pub default_country: Option<String>,
    pub started_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    #[serde(skip)]
    pub org_id: OrgId,
}

/// A query of [`Batch`]es: all their columns, then the caller's clauses after `from`.
macro_rules! batches {
    ($rest:tt, $($argument:tt)*) => {
        sqlx::query_as!(
            $crate::campaigns::batches::Batch,
            r#"select id as "id: BatchId", user_id as "user_id: UserId", agent_id as "agent_id: AgentId",
                         null::uuid as workflow_id, null::uuid as call_flow_id,
                         caller_phone_id as "caller_phone_id: PhoneId", batch_name, description, status as "status: BatchStatus", status_reason,
                         starved_reason as "status_reason_code: crate::wallets::holds::Refusal", variable_names, batch_size, max_retries,
                         retry_delay_seconds, retry_lost, auto_resume, default_country, started_at, completed_at,
                         created_at, updated_at, org_id as "org_id: OrgId"
                  from call_batches "# + $rest,
            $($argument)*
        )
    };
}
pub(super) use batches;

/// A batch to create.
#[derive(Clone, Debug)]
pub struct NewBatch {
    pub user: UserId,
    pub agent: AgentId,
    pub caller_phone: PhoneId,
    pub batch_name: String,
    pub description: Option<String>,
    pub variable_names: Vec<String>,
    pub batch_size: i32,
    pub max_retries: i32,
    pub retry_delay_seconds: i32,
    pub retry_lost: bool,
    pub auto_resume: bool,
    pub default_country: Option<String>,
}

/// Creates a batch for an agent and a caller number within the caller's scope.
///
/// # Errors
/// [`Error::NotFound`] for an agent or number the caller cannot see, [`Error::Rejected`] when
/// they and the owner do not all belong to one organisation.
pub async fn create(db: &mut PgConnection, scope: &Scope, new: &NewBatch) -> Result<Batch> {
    // 1. Find agent and number within the scope.
    let agent = agents::find(db, scope, new.agent).await?;
    let phone = caller_numbers::find(db, scope, new.caller_phone).await?;
    if agent.org_id != phone.org_id {
        return Err(Error::rejected(
            "organizations_differ",
            "agent_id and caller_phone_id belong to different organizations",
        ));
    }

    // 2. Insert the batch, unless its owner is outside that organisation or removed.
    let id = BatchId::new();
    let inserted = sqlx::query!(
        "insert into call_batches (id, org_id, user_id, agent_id, caller_phone_id, batch_name, description,
                                   variable_names, batch_size, max_retries, retry_delay_seconds, retry_lost,
                                   default_country, auto_resume)
         select $1, u.org_id, u.id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $14
         from users u
         where u.id = $2
           and u.org_id = $13
           and u.removed_at is null",
        id as BatchId,
        new.user as UserId,
        new.agent as AgentId,
        new.caller_phone as PhoneId,
        new.batch_name,
        new.description,
        &new.variable_names,
        new.batch_size,
        new.max_retries,
        new.retry_delay_seconds,
        new.retry_lost,
        new.default_country,
        agent.org_id as OrgId,
        new.auto_resume,
    )
    .execute(&mut *db)
    .await?;
    if inserted.rows_affected() == 0 {
        return Err(Error::rejected(
            "owner_elsewhere",
            "the agent belongs to another organization than the batch's owner: send user_id of a member of that organization",
        ));
    }

    find(db, scope, id).await
}

/// Finds a batch within the caller's scope.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find(db: &mut PgConnection, scope: &Scope, id: BatchId) -> Result<Batch> {
    batches!(
        "where id = $1
           and ($2::uuid is null or org_id = $2)
           and ($3::uuid is null or user_id = $3)",
        id as BatchId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("Batch"))
}

/// Lists the newest batches within the caller's scope, with their total number.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    owners: &OwnerFilter,
    page: Page,
) -> Result<(Vec<Batch>, i64)> {
    let total = sqlx::query_scalar!(
        r#"select count(*) as "n!"
           from call_batches b
           where ($1::uuid is null or b.org_id = $1)
             and ($2::uuid is null or b.user_id = $2)
             and ($3::uuid[] is null or b.org_id = any($3))
             and ($4::uuid[] is null or b.user_id = any($4))
             and ($5::text[] is null or exists (select from users u where u.id = b.user_id and u.role = any($5)))"#,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        owners.orgs.as_deref() as Option<&[OrgId]>,
        owners.users.as_deref() as Option<&[UserId]>,
        owners.roles.as_deref() as Option<&[Role]>,
    )
    .fetch_one(&mut *db)
    .await?;

    let batches = batches!(
        "where ($1::uuid is null or org_id = $1)
           and ($2::uuid is null or user_id = $2)
           and ($5::uuid[] is null or org_id = any($5))
           and ($6::uuid[] is null or user_id = any($6))
           and ($7::text[] is null
                or exists (select from users u where u.id = call_batches.user_id and u.role = any($7)))
         order by created_at desc, id desc
         limit $3
         offset $4",
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        page.size,
        page.offset(),
        owners.orgs.as_deref() as Option<&[OrgId]>,
        owners.users.as_deref() as Option<&[UserId]>,
        owners.roles.as_deref() as Option<&[Role]>,
    )
    .fetch_all(db)
    .await?;

    Ok((batches, total))
}

/// Locks a batch within the caller's scope and reads it.
///
/// # Errors
/// [`Error::NotFound`] for a batch outside the scope, which is not locked.
pub async fn lock(db: &mut PgConnection, scope: &Scope, id: BatchId) -> Result<Batch> {
    sqlx::query!(
        "select
         from call_batches
         where id = $1
           and ($2::uuid is null or org_id = $2)
           and ($3::uuid is null or user_id = $3)
         for no key update",
        id as BatchId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(&mut *db)
    .await?
    .ok_or(Error::NotFound("Batch"))?;

    // A statement of its own: its snapshot must be taken after the lock is held.
    find(db, scope, id).await
}

/// Locks a batch within the caller's scope for a change that is only allowed before its start.
///
/// # Errors
/// [`Error::NotFound`], or [`Error::Conflict`] once it has been started.
pub async fn lock_unstarted(db: &mut PgConnection, scope: &Scope, id: BatchId) -> Result<Batch> {
    let batch = lock(db, scope, id).await?;
    if batch.status != BatchStatus::NotStarted {
        return Err(batch_started_error());
    }
    Ok(batch)
}

/// The conflict of a change after the start.
pub(super) fn batch_started_error() -> Error {
    Error::conflict("batch_started", "batch already started")
}

/// Replaces the variable names of a batch before its start.
///
/// # Errors
/// As [`lock_unstarted`], and [`Error::Conflict`] while an ingest runs: its columns were mapped to
/// the variables when it opened the file.
pub async fn set_variables(
    db: &mut PgConnection,
    scope: &Scope,
    id: BatchId,
    names: &[String],
) -> Result<Batch> {
    lock_unstarted(db, scope, id).await?;

    let ingesting = sqlx::query_scalar!(
        r#"select exists (select from ingests where batch_id = $1 and state in ('queued', 'running')) as "is!""#,
        id as BatchId,
    )
    .fetch_one(&mut *db)
    .await?;
    if ingesting {
        return Err(Error::conflict(
            "ingest_running",
            "an upload is still being read: change the variables when it has finished",
        ));
    }

    sqlx::query!(
        "update call_batches set variable_names = $2, updated_at = now() where id = $1",
        id as BatchId,
        names,
    )
    .execute(&mut *db)
    .await?;
    find(db, scope, id).await
}

/// Deletes a batch with its rows. Calls that were made stay in the log.
///
/// # Errors
/// [`Error::NotFound`], or [`Error::Conflict`] while it runs, has live calls or an ingest: without
/// the ingest's row its file would stay in the store.
pub async fn delete(db: &mut PgConnection, scope: &Scope, id: BatchId) -> Result<Batch> {
    // 1. Lock the batch, and refuse while anything works on it.
    let batch = lock(db, scope, id).await?;
    let busy = sqlx::query!(
        r#"select exists (select from calls where batch_id = $1 and live) as "live!",
                  exists (select from ingests where batch_id = $1 and state in ('queued', 'running')) as "ingesting!""#,
        id as BatchId,
    )
    .fetch_one(&mut *db)
    .await?;
    if busy.live
        || matches!(
            batch.status,
            BatchStatus::InProgress | BatchStatus::Scheduled
        )
    {
        return Err(Error::conflict(
            "batch_running",
            "the batch is running: stop it and let its calls end before you delete it",
        ));
    }
    if busy.ingesting {
        return Err(Error::conflict(
            "ingest_running",
            "an upload is still being read: delete the batch when it has finished",
        ));
    }

    // 2. Delete it. Millions of rows take longer than the statement timeout of a request.
    sqlx::query("set local statement_timeout = '25s'")
        .execute(&mut *db)
        .await?;
    sqlx::query!("delete from call_batches where id = $1", id as BatchId)
        .execute(db)
        .await?;
    Ok(batch)
}
