//! Batch rows: read at any time, removed one by one before the start.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::batches::{find, lock_unstarted};
use crate::access::Scope;
use crate::platform::e164::E164;
use crate::platform::error::{Error, Result};
use crate::platform::ids::{BatchId, OrgId, RowId};
use crate::platform::privacy::Variables;

/// Status of a row, in the contract's words.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum RowStatus {
    NotStarted,
    Calling,
    Completed,
    Failed,
    NoAnswer,
}

/// A row: the contract's fields, then Peal's own.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Row)]
pub struct BatchRow {
    pub id: RowId,
    pub batch_id: BatchId,
    pub to_phonenumber: E164,
    /// Empty while the row is private.
    #[schema(value_type = Object)]
    pub variable_values: serde_json::Value,
    /// True when the row is private: its batch's agent or organization has the flag, or a call of
    /// it was made under it. A change without `variable_values` leaves the hidden ones alone.
    pub hipaa_compliance: bool,
    pub status: RowStatus,
    pub error_message: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    /// Outcome of its last call.
    pub outcome: Option<String>,
    /// Reason of that outcome.
    pub reason: Option<String>,
    pub attempts: i32,
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// Position in the batch, from 1.
    pub row_no: i64,
}

/// Selection of rows: those after row number `after`, of one status or any, at most `most`, and
/// fewer when their variables exceed `most_bytes`.
#[derive(Clone, Copy, Debug)]
pub struct RowFilter {
    pub status: Option<RowStatus>,
    pub after_row_no: i64,
    pub max_rows: i64,
    pub max_bytes: i64,
}

/// Lists rows of a batch within the caller's scope in the order they were added; the flag is true
/// when there are more. At least one row is read, however large.
///
/// # Errors
/// [`Error::NotFound`] for a batch outside the scope.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    batch: BatchId,
    filter: RowFilter,
) -> Result<(Vec<BatchRow>, bool)> {
    // 1. Find the end of the page within the scope.
    find(db, scope, batch).await?;
    let (last, more) = end_of_page(db, batch, filter).await?;

    // 2. Read the page.
    let rows = sqlx::query!(
        r#"select d.id as "id: RowId", d.batch_id as "batch_id: BatchId", d.to_phonenumber as "to_phonenumber: E164",
                  d.variable_values as "variable_values: Variables",
                  a.hipaa_compliance or o.hipaa_compliance
                  -- Looked up row by row, as in pick_rows.sql.
                  or exists (select from calls c where c.row_id = d.id and c.hipaa_compliance offset 0)
                      as "hipaa_compliance!",
                  d.status as "status: RowStatus", d.error_message, d.created_at, d.updated_at, d.outcome, d.reason,
                  d.attempts,
                  case when d.status = 'not_started' and d.attempts > 0 then d.due_at end as next_attempt_at,
                  d.row_no
           from batch_data d
           join call_batches b on b.id = d.batch_id
           join agents a on a.id = b.agent_id
           join organizations o on o.id = b.org_id
           where d.batch_id = $1
             and d.row_no > $2
             and ($3::text is null or d.status = $3)
             and d.row_no <= $4
           order by d.row_no"#,
        batch as BatchId,
        filter.after_row_no,
        filter.status as Option<RowStatus>,
        last,
    )
    .fetch_all(db)
    .await?;

    // 3. Hide the variables of private rows.
    let rows = rows.into_iter().map(|row| BatchRow {
        id: row.id,
        batch_id: row.batch_id,
        to_phonenumber: row.to_phonenumber,
        variable_values: row.variable_values.redacted_if(row.hipaa_compliance),
        hipaa_compliance: row.hipaa_compliance,
        status: row.status,
        error_message: row.error_message,
        created_at: row.created_at,
        updated_at: row.updated_at,
        outcome: row.outcome,
        reason: row.reason,
        attempts: row.attempts,
        next_attempt_at: row.next_attempt_at,
        row_no: row.row_no,
    });
    let rows = rows.collect();
    Ok((rows, more))
}

/// Finds the last row of a page; the flag is true when more follow.
async fn end_of_page(
    db: &mut PgConnection,
    batch: BatchId,
    filter: RowFilter,
) -> Result<(i64, bool)> {
    let page = sqlx::query!(
        r#"with behind as (
               select row_no, octet_length(variable_values::text) as bytes
               from batch_data
               where batch_id = $1
                 and row_no > $2
                 and ($3::text is null or status = $3)
               order by row_no
               limit $4::bigint + 1
           ), measured as (
               select row_no, row_number() over rows_so_far as n,
                      sum(bytes) over rows_so_far - bytes as bytes_before
               from behind
               window rows_so_far as (order by row_no)
           )
           select coalesce(max(row_no) filter (where n <= $4 and bytes_before < $5), 0) as "last!",
                  count(*) > count(*) filter (where n <= $4 and bytes_before < $5) as "more!"
           from measured"#,
        batch as BatchId,
        filter.after_row_no,
        filter.status as Option<RowStatus>,
        filter.max_rows,
        filter.max_bytes,
    )
    .fetch_one(db)
    .await?;
    Ok((page.last, page.more))
}

/// Removes one row from a batch that is not started.
///
/// # Errors
/// [`Error::NotFound`] for a row that is not in the batch, [`Error::Conflict`] once the batch
/// has been started.
pub async fn delete(
    db: &mut PgConnection,
    scope: &Scope,
    batch: BatchId,
    row: RowId,
) -> Result<OrgId> {
    let org = lock_unstarted(db, scope, batch).await?.org_id;
    let deleted = sqlx::query!(
        "delete from batch_data where id = $1 and batch_id = $2",
        row as RowId,
        batch as BatchId,
    )
    .execute(db)
    .await?;
    if deleted.rows_affected() == 0 {
        return Err(Error::NotFound("Row"));
    }
    Ok(org)
}
