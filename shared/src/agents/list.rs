//! Lists and counts of agents.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;

use crate::access::owner_filter::OwnerFilter;
use crate::access::{Role, Scope};
use crate::platform::error::Result;
use crate::platform::ids::{AgentId, OrgId, UserId};
use crate::platform::page::Page;

/// An agent in a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "0198c0de-0000-7000-8000-00000000000a", "name": "Ada", "user_id": "0198c0de-0000-7000-8000-000000000002",
    "is_active": true, "description": null, "language": "en-US", "voice_name": "Polly.Joanna",
    "created_at": "2026-06-01T08:00:00Z", "updated_at": "2026-06-09T08:00:00Z"
}))]
pub struct AgentSummary {
    pub id: AgentId,
    pub name: String,
    pub user_id: UserId,
    pub is_active: bool,
    pub description: Option<String>,
    pub language: String,
    pub voice_name: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// Numbers of agents and their calls in the caller's scope.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({"total": 3, "active": 2, "inactive": 1, "in_batches": 1, "calls_under_way": 12}))]
pub struct AgentStats {
    pub total: i64,
    pub active: i64,
    pub inactive: i64,
    /// Agents with a batch that is scheduled, in progress or paused.
    pub in_batches: i64,
    /// Calls of these agents that are in progress or wait for a slot.
    pub calls_under_way: i64,
}

/// Lists the newest agents in the caller's scope whose names contain `q`, with the total of all
/// pages. The total is `None` for a page past the last.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    owners: &OwnerFilter,
    q: Option<&str>,
    page: Page,
) -> Result<(Vec<AgentSummary>, Option<i64>)> {
    let rows = sqlx::query!(
        r#"select id as "id: AgentId", name, user_id as "user_id: UserId", is_active, description, language,
                  coalesce(voice, tts_config ->> 'voice_name') as voice, created_at, updated_at, count(*) over () as "total!"
           from agents
           where deleted_at is null
             and ($1::uuid is null or org_id = $1)
             and ($2::uuid is null or user_id = $2)
             and ($3::uuid[] is null or org_id = any($3))
             and ($4::uuid[] is null or user_id = any($4))
             and ($5::text[] is null
                  or exists (select from users u where u.id = agents.user_id and u.role = any($5)))
             and ($6::text is null or position(lower($6) in lower(name)) > 0)
           order by id desc
           limit $7
           offset $8"#,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        owners.orgs.as_deref() as Option<&[OrgId]>,
        owners.users.as_deref() as Option<&[UserId]>,
        owners.roles.as_deref() as Option<&[Role]>,
        q,
        page.size,
        page.offset(),
    )
    .fetch_all(db)
    .await?;

    let none = (page.number == 1).then_some(0);
    let total = rows.first().map(|row| row.total).or(none);
    let agents = rows.into_iter().map(|row| AgentSummary {
        id: row.id,
        name: row.name,
        user_id: row.user_id,
        is_active: row.is_active,
        description: row.description,
        language: row.language,
        voice_name: row.voice,
        created_at: row.created_at,
        updated_at: row.updated_at,
    });

    Ok((agents.collect(), total))
}

/// Counts the agents in the caller's scope, and their calls.
pub async fn stats(db: &mut PgConnection, scope: &Scope) -> Result<AgentStats> {
    let stats = sqlx::query_as!(
        AgentStats,
        r#"with seen as (
               select id, is_active
               from agents
               where deleted_at is null
                 and ($1::uuid is null or org_id = $1)
                 and ($2::uuid is null or user_id = $2)
           )
           select count(*) as "total!", count(*) filter (where is_active) as "active!",
                  count(*) filter (where not is_active) as "inactive!",
                  (select count(distinct b.agent_id)
                   from call_batches b
                   where b.status in ('scheduled', 'in_progress', 'paused')
                     and b.agent_id in (select id from seen)) as "in_batches!",
                  (select count(*) from calls c where c.live and c.agent_id in (select id from seen))
                  + (select count(*) from calls c where c.queued and c.agent_id in (select id from seen))
                      as "calls_under_way!"
           from seen"#,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_one(db)
    .await?;
    Ok(stats)
}
