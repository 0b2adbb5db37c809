//! Usage exports: a CSV in the store, and a mail with its link.
//!
//! ```text
//! waiting ──► finished ──► deleted
//!    └──────► failed
//! ```
//!
//! A request inserts a row and a job, in one transaction; an equal request while that is waiting
//! returns the same export. The job reads the rows that its user may see at that moment and that
//! were charged before the request, streams them into the store page by page, and then marks the
//! export as finished and writes the mail in one transaction. A second run overwrites the file
//! with the same content, and sends no second mail.
//!
//! The link is valid for a day, for the requesting user only; also with an API key if one made
//! the request, and then the file holds no more than a key may see. Later the file is deleted.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream;
use futures::stream::Stream;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};

use super::usage::sessions::{SessionCursor, UsageSession};
use super::usage::{UsageFilter, UsageType, sessions};
use crate::access::{Credential, Principal, Role, Scope};
use crate::config::Config;
use crate::mail::NewEmail;
use crate::platform::error::{Error, Result};
use crate::platform::ids::{AgentId, ExportId, OrgId, UserId};
use crate::platform::queue::{EnqueuedJob, JobPayload, Queue};
use crate::platform::spreadsheet::{neutralize, write_error};
use crate::platform::store::FileStore;
use crate::platform::{failpoint, queue, spreadsheet};
use crate::{mail, users};

/// Sessions per page of a file.
const PAGE_ROWS: i64 = 1_000;
/// Maximum size of a file.
const MAX_FILE_BYTES: u64 = 4_000_000_000;
/// Files that one round deletes.
const CLEANUP_BATCH_FILES: i64 = 100;
/// Columns of a file. [`SPLIT_COLUMNS`] follow for the platform.
const COLUMNS: [&str; 18] = [
    "session_id",
    "charged_at",
    "started_at",
    "ended_at",
    "organization_id",
    "user_id",
    "agent_id",
    "agent_name",
    "batch_id",
    "call_type",
    "from_number",
    "to_number",
    "outcome",
    "duration_seconds",
    "billed_seconds",
    "cost_usd",
    "currency",
    "services",
];
const SPLIT_COLUMNS: [&str; 3] = ["base_cost_usd", "markup_usd", "commission_usd"];

/// Requested rows. Stored with the export.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ExportRequest {
    pub usage_type: Option<UsageType>,
    /// `outbound`, `inbound`, `web`; `None` means all.
    pub session_types: Option<Vec<String>>,
    pub agents: Option<Vec<AgentId>>,
    pub from: Option<DateTime<Utc>>,
    pub to: Option<DateTime<Utc>>,
    /// Requested with an API key: the file holds the user's own usage, whatever their role.
    #[serde(default)]
    pub by_key: bool,
}

impl ExportRequest {
    /// Returns the filter of sessions that were charged before a moment.
    fn filter(self, before: DateTime<Utc>) -> UsageFilter {
        // All calls are outbound, so other session types match nothing.
        let has_outbound = self
            .session_types
            .is_none_or(|kinds| kinds.iter().any(|kind| kind == "outbound"));
        UsageFilter {
            usage_type: match has_outbound {
                true => self.usage_type,
                false => Some(UsageType::Chat),
            },
            from: self.from,
            to: Some(self.to.map_or(before, |to| to.min(before))),
            agents: self.agents,
            ..UsageFilter::default()
        }
    }
}

/// The job that writes a file.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ExportUsage {
    pub export_id: ExportId,
    pub org_id: OrgId,
}

impl JobPayload for ExportUsage {
    const KIND: &'static str = "export_usage";
    const QUEUE: Queue = Queue::Export;
    const MAX_ATTEMPTS: i32 = 8;

    fn dedupe_key(&self) -> Option<String> {
        Some(self.export_id.to_string())
    }

    fn org(&self) -> Option<OrgId> {
        Some(self.org_id)
    }
}

/// Requests an export for a user in the caller's scope.
///
/// # Errors
/// [`Error::NotFound`] for a user out of scope.
pub async fn request(
    db: &mut PgConnection,
    scope: &Scope,
    user: UserId,
    to_address: &str,
    wanted: &ExportRequest,
) -> Result<(ExportId, EnqueuedJob)> {
    let org = users::org_of(db, scope, user)
        .await?
        .ok_or(Error::NotFound("User"))?;

    let filters = serde_json::to_value(wanted)?;
    let id = sqlx::query_scalar!(
        r#"insert into usage_exports (id, org_id, user_id, filters, to_address)
           values ($1, $2, $3, $4, $5)
           on conflict (user_id, md5(filters::text)) where finished_at is null and failed_at is null
               do update set to_address = excluded.to_address
           returning id as "id: ExportId""#,
        ExportId::new() as ExportId,
        org as OrgId,
        user as UserId,
        filters,
        to_address,
    )
    .fetch_one(&mut *db)
    .await?;

    let job = ExportUsage {
        export_id: id,
        org_id: org,
    };
    Ok((id, queue::enqueue(db, &job, None).await?))
}

/// A waiting export.
struct WaitingExport {
    org: OrgId,
    user: UserId,
    filters: Value,
    created_at: DateTime<Utc>,
}

/// Writes the file of an export, and its mail. The job has no principal; the file holds the rows
/// in its user's scope. Skips an export that has ended, and fails one whose user was removed.
pub async fn run_unscoped(
    pool: &PgPool,
    store: &FileStore,
    config: &Config,
    id: ExportId,
) -> Result<Option<EnqueuedJob>> {
    // 1. Read the export; a second run finds none that waits.
    let waiting = sqlx::query_as!(
        WaitingExport,
        r#"select org_id as "org: OrgId", user_id as "user: UserId", filters, created_at
           from usage_exports
           where id = $1
             and finished_at is null
             and failed_at is null"#,
        id as ExportId,
    )
    .fetch_optional(pool)
    .await?;
    let Some(waiting) = waiting else {
        return Ok(None);
    };

    // 2. Take the user's scope at this moment.
    let mut db = pool.acquire().await?;
    let principal = users::principal_unscoped(&mut db, waiting.user).await?;
    drop(db);
    let Some(principal) = principal.filter(|known| known.org == waiting.org) else {
        fail_unscoped(pool, id).await?;
        return Ok(None);
    };

    let wanted: ExportRequest = serde_json::from_value(waiting.filters)?;
    let principal = match wanted.by_key {
        true => principal.with_user_role(),
        false => principal,
    };

    let pages = ExportPages {
        pool: pool.clone(),
        scope: principal.scope(),
        filter: wanted.filter(waiting.created_at),
        with_split: principal.role == Role::SuperAdmin,
    };

    // 3. Write the file.
    let rows = Arc::new(AtomicI64::new(0));
    let key = store_key(waiting.org, id);
    let csv = pages.into_csv(Arc::clone(&rows));
    store.put_stream(&key, csv, MAX_FILE_BYTES).await?;
    failpoint::hit("export.stored");

    // 4. Mark it as finished, with the mail.
    let rows = rows.load(Ordering::SeqCst);
    finish(pool, config, id, rows).await
}

/// Marks an export as finished, and writes its mail.
async fn finish(
    pool: &PgPool,
    config: &Config,
    id: ExportId,
    rows: i64,
) -> Result<Option<EnqueuedJob>> {
    let mut db = pool.begin().await?;
    let finished = sqlx::query!(
        r#"update usage_exports
           set finished_at = now(), expires_at = now() + interval '24 hours', rows = $2
           where id = $1
             and finished_at is null
             and failed_at is null
           returning org_id as "org: OrgId", user_id as "user: UserId", to_address,
                     coalesce(filters ->> 'by_key' = 'true', false) as "by_key!""#,
        id as ExportId,
        rows,
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(finished) = finished else {
        return Ok(None);
    };

    let (org, user) = (finished.org, finished.user);
    let token = config.keys.export_token(id, org, user);
    let base = config.public_url.as_str().trim_end_matches('/');
    let link = format!("{base}/api/v1/billing/exports/{id}/download?token={token}");
    let (credential_hint, header) = match finished.by_key {
        true => (
            "open it signed in, or with your API key",
            "x-api-key: $PEAL_API_KEY",
        ),
        false => (
            "open it signed in, with the token of your session",
            "Authorization: Bearer $PEAL_TOKEN",
        ),
    };

    let body = format!(
        "The usage you asked for is ready: {rows} sessions as CSV.\n\n{link}\n\n\
         The link is good for 24 hours, and for you alone: {credential_hint}:\n\n    \
         curl -H \"{header}\" -o usage.csv '{link}'\n"
    );

    let email = NewEmail {
        org,
        kind: "usage_export",
        subject_id: id.0,
        to: &finished.to_address,
        subject: "Your usage is ready to be downloaded",
        body: &body,
    };
    let mail = mail::enqueue(&mut db, email).await?;

    failpoint::hit("export.uncommitted");
    db.commit().await?;
    Ok(mail)
}

/// Marks an export as failed. For the job, which has no scope.
pub async fn fail_unscoped(pool: &PgPool, id: ExportId) -> Result<()> {
    sqlx::query!(
        "update usage_exports set failed_at = now() where id = $1 and finished_at is null and failed_at is null",
        id as ExportId,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// A finished file.
#[derive(Debug)]
pub struct FinishedExport {
    pub key: String,
    pub created_at: DateTime<Utc>,
}

/// Finds the file of a user's own export. An API key opens only exports that were requested with
/// one: others may hold more than a key may see.
///
/// # Errors
/// [`Error::NotFound`] when the user has no such export; [`Error::Conflict`] while it is being
/// written; [`Error::Gone`] when it has expired or failed.
pub async fn open(
    db: &mut PgConnection,
    scope: &Scope,
    caller: &Principal,
    id: ExportId,
    now: DateTime<Utc>,
) -> Result<FinishedExport> {
    let found = sqlx::query!(
        r#"select org_id as "org: OrgId", created_at, expires_at, failed_at, cleared_at
           from usage_exports
           where id = $1
             and user_id = $2
             and ($3::uuid is null or org_id = $3)
             and (not $4::boolean or filters ->> 'by_key' = 'true')"#,
        id as ExportId,
        caller.user as UserId,
        scope.org() as Option<OrgId>,
        matches!(caller.credential, Credential::ApiKey(_)),
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("Export"))?;

    if found.failed_at.is_some() {
        return Err(Error::Gone(
            "this export could not be written; ask for it again".into(),
        ));
    }

    match found.expires_at {
        None => Err(Error::conflict(
            "export_not_ready",
            "the file is being written; you get a mail when it is there",
        )),
        Some(until) if until <= now || found.cleared_at.is_some() => Err(Error::Gone(
            "this link was good for 24 hours; ask for the export again".into(),
        )),
        Some(_) => Ok(FinishedExport {
            key: store_key(found.org, id),
            created_at: found.created_at,
        }),
    }
}

/// Deletes expired files, and parts of failed ones, of all tenants. The next round retries after an
/// error.
pub async fn delete_expired_unscoped(pool: &PgPool, store: &FileStore) -> Result<usize> {
    let expired = sqlx::query!(
        r#"select id as "id: ExportId", org_id as "org: OrgId"
           from usage_exports
           where cleared_at is null
             and (expires_at < now() - interval '10 minutes' or failed_at < now() - interval '10 minutes')
           order by created_at
           limit $1"#,
        CLEANUP_BATCH_FILES,
    )
    .fetch_all(pool)
    .await?;

    for export in &expired {
        let key = store_key(export.org, export.id);
        store.delete_parts(&key).await?;
        store.delete(&key).await?;
        sqlx::query!(
            "update usage_exports set cleared_at = now() where id = $1",
            export.id as ExportId,
        )
        .execute(pool)
        .await?;
    }
    Ok(expired.len())
}

fn store_key(org: OrgId, export: ExportId) -> String {
    format!("exports/{org}/{export}.csv")
}

/// Rows of a file, read page by page.
struct ExportPages {
    pool: PgPool,
    scope: Scope,
    filter: UsageFilter,
    with_split: bool,
}

/// Start of the next page.
enum PageStart {
    First,
    After(SessionCursor),
}

impl ExportPages {
    /// Streams the CSV page by page, and adds to the count of its sessions.
    fn into_csv(self, rows: Arc<AtomicI64>) -> impl Stream<Item = Result<Bytes>> + Send {
        stream::try_unfold((self, Some(PageStart::First)), move |(pages, at)| {
            let rows = Arc::clone(&rows);
            async move {
                let Some(at) = at else { return Ok(None) };
                let (mark, is_first) = match at {
                    PageStart::First => (None, true),
                    PageStart::After(mark) => (Some(mark), false),
                };

                let (page, next) = pages.page(mark).await?;
                let count = i64::try_from(page.len()).unwrap_or(i64::MAX);
                rows.fetch_add(count, Ordering::SeqCst);
                let text = render_page(&page, is_first, pages.with_split)?;
                Ok(Some((text, (pages, next.map(PageStart::After)))))
            }
        })
    }

    async fn page(
        &self,
        after: Option<SessionCursor>,
    ) -> Result<(Vec<UsageSession>, Option<SessionCursor>)> {
        let mut db = self.pool.begin().await?;
        // The best index depends on the filters that are set.
        sqlx::query("set local plan_cache_mode = auto")
            .execute(&mut *db)
            .await?;
        let (scope, filter) = (&self.scope, &self.filter);
        sessions::list_after(&mut db, scope, filter, after, PAGE_ROWS, self.with_split).await
    }
}

fn render_page(page: &[UsageSession], with_header: bool, with_split: bool) -> Result<Bytes> {
    let split = SPLIT_COLUMNS.iter().filter(|_| with_split);
    let mut csv = spreadsheet::writer();
    if with_header {
        csv.write_record(COLUMNS.iter().chain(split))
            .map_err(write_error)?;
    }
    for session in page {
        csv.write_record(session_cells(session))
            .map_err(write_error)?;
    }
    spreadsheet::finish(csv)
}

/// Cells of a session. Texts from users are neutralised against spreadsheet formulas.
fn session_cells(session: &UsageSession) -> Vec<String> {
    let moment = |at: Option<DateTime<Utc>>| at.map(|at| at.to_rfc3339()).unwrap_or_default();
    let services: Vec<String> = session
        .services
        .iter()
        .map(|used| {
            let (service, unit) = (json_word(&used.service), json_word(&used.unit));
            format!("{service} {} {unit} = {}", used.quantity, used.cost_usd)
        })
        .collect();

    let mut cells = vec![
        session.session_id.to_string(),
        moment(session.charged_at),
        moment(Some(session.started_at)),
        moment(session.ended_at),
        session.organization_id.to_string(),
        session.user_id.to_string(),
        session.agent_id.to_string(),
        neutralize(&session.agent_name),
        session
            .batch_id
            .map(|id| id.to_string())
            .unwrap_or_default(),
        session.call_type.to_owned(),
        neutralize(&session.from_number),
        neutralize(&session.to_number),
        session.outcome.clone().unwrap_or_default(),
        session.duration_seconds.to_string(),
        session.billed_seconds.to_string(),
        session.cost_usd.to_string(),
        "USD".to_owned(),
        neutralize(&services.join("; ")),
    ];

    if let Some(split) = session.split {
        cells.extend([
            split.base_cost_usd.to_string(),
            split.markup_usd.to_string(),
            split.commission_usd.to_string(),
        ]);
    }
    cells
}

/// JSON string of a value.
fn json_word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}
