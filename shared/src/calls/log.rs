//! Call log: a call and its result, as its owner sees it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;

use crate::access::Scope;
use crate::platform::e164::E164;
use crate::platform::error::{Error, Result};
use crate::platform::ids::{AgentId, BatchId, CallId, OrgId, RowId, UserId};
use crate::platform::privacy::Variables;
use crate::telephony::{AnsweredBy, CallStatus, Outcome, Reason};

/// A call as its owner sees it. Vendor names and prices stay inside.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Call {
    pub id: CallId,
    pub user_id: UserId,
    pub agent_id: AgentId,
    pub batch_id: Option<BatchId>,
    pub batch_row_id: Option<RowId>,
    pub attempt_number: i32,
    pub from_number: E164,
    pub to_number: E164,
    /// Empty on a call under HIPAA.
    #[schema(value_type = Object)]
    pub variable_values: serde_json::Value,
    /// True when the call was made under HIPAA: its private values are hidden, and it was not
    /// recorded.
    pub hipaa_compliance: bool,
    pub status: CallStatus,
    pub outcome: Option<Outcome>,
    pub reason: Option<Reason>,
    pub error_message: Option<String>,
    pub answered_by: Option<AnsweredBy>,
    pub submitted_at: Option<DateTime<Utc>>,
    pub answered_at: Option<DateTime<Utc>>,
    pub ended_at: Option<DateTime<Utc>>,
    pub duration_seconds: Option<i32>,
    pub created_at: DateTime<Utc>,
}

/// Finds a call within the caller's scope.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find(db: &mut PgConnection, scope: &Scope, id: CallId) -> Result<Call> {
    let row = sqlx::query!(
        r#"select id as "id: CallId", user_id as "user_id: UserId", agent_id as "agent_id: AgentId",
                  batch_id as "batch_id: BatchId", row_id as "batch_row_id: RowId", attempt_no as attempt_number,
                  from_number as "from_number: E164", to_number as "to_number: E164",
                  variable_values as "variable_values: Variables", hipaa_compliance, status as "status: CallStatus", outcome as "outcome: Outcome", reason as "reason: Reason", error_message,
                  answered_by as "answered_by: AnsweredBy", submitted_at, answered_at, ended_at,
                  duration_seconds, created_at
           from calls
           where id = $1
             and ($2::uuid is null or org_id = $2)
             and ($3::uuid is null or user_id = $3)"#,
        id as CallId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("Call"))?;

    Ok(Call {
        id: row.id,
        user_id: row.user_id,
        agent_id: row.agent_id,
        batch_id: row.batch_id,
        batch_row_id: row.batch_row_id,
        attempt_number: row.attempt_number,
        from_number: row.from_number,
        to_number: row.to_number,
        variable_values: row.variable_values.redacted_if(row.hipaa_compliance),
        hipaa_compliance: row.hipaa_compliance,
        status: row.status,
        outcome: row.outcome,
        reason: row.reason,
        error_message: row.error_message,
        answered_by: row.answered_by,
        submitted_at: row.submitted_at,
        answered_at: row.answered_at,
        ended_at: row.ended_at,
        duration_seconds: row.duration_seconds,
        created_at: row.created_at,
    })
}
