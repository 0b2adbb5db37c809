//! Mappings of caller numbers to agents. A call of the agent without an explicit caller number uses
//! the mapped one. A mapping is in the scope when its number is.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;

use crate::access::Scope;
use crate::platform::e164::E164;
use crate::platform::error::{Error, OnConstraint as _, Result};
use crate::platform::ids::{AgentId, MappingId, OrgId, PhoneId, UserId};
use crate::platform::page::{Page, PageSlice};
use crate::{agents, caller_numbers};

/// Mapping of a caller number to an agent.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Mapping)]
pub struct AgentMapping {
    pub id: MappingId,
    pub phone_number_id: PhoneId,
    #[schema(value_type = String, example = "+12125550100")]
    pub phone_number: E164,
    pub agent_id: AgentId,
    /// Always null: workflows cannot place calls.
    pub workflow_id: Option<uuid::Uuid>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    #[serde(skip)]
    pub org_id: OrgId,
}

/// Filter of mappings.
#[derive(Clone, Copy, Debug, Default)]
pub struct MappingFilter {
    pub id: Option<MappingId>,
    pub phone: Option<PhoneId>,
    pub agent: Option<AgentId>,
}

/// Maps a number to an agent, both in the caller's scope.
///
/// # Errors
/// [`Error::NotFound`] for either, [`Error::Rejected`] when they belong to different
/// organisations, [`Error::Conflict`] for a number that has a mapping.
pub async fn create(
    db: &mut PgConnection,
    scope: &Scope,
    phone: PhoneId,
    agent: AgentId,
) -> Result<AgentMapping> {
    let org = check_same_org(db, scope, phone, agent).await?;
    let id = MappingId::new();
    sqlx::query!(
        "insert into phone_mappings (id, org_id, phone_id, agent_id) values ($1, $2, $3, $4)",
        id as MappingId,
        org as OrgId,
        phone as PhoneId,
        agent as AgentId,
    )
    .execute(&mut *db)
    .await
    .on_constraint("phone_is_mapped", already_mapped)?;
    find(db, scope, id).await
}

/// Changes the number or the agent of a locked mapping.
///
/// # Errors
/// As [`create`].
pub async fn update(
    db: &mut PgConnection,
    scope: &Scope,
    id: MappingId,
    phone: PhoneId,
    agent: AgentId,
) -> Result<AgentMapping> {
    let org = check_same_org(db, scope, phone, agent).await?;
    sqlx::query!(
        "update phone_mappings set org_id = $2, phone_id = $3, agent_id = $4, updated_at = now() where id = $1",
        id as MappingId,
        org as OrgId,
        phone as PhoneId,
        agent as AgentId,
    )
    .execute(&mut *db)
    .await
    .on_constraint("phone_is_mapped", already_mapped)?;
    find(db, scope, id).await
}

/// Deletes a mapping. Its number and its agent stay.
///
/// # Errors
/// [`Error::NotFound`] for a mapping outside the scope.
pub async fn delete(db: &mut PgConnection, scope: &Scope, id: MappingId) -> Result<AgentMapping> {
    let mapping = find(db, scope, id).await?;
    sqlx::query!("delete from phone_mappings where id = $1", id as MappingId)
        .execute(db)
        .await?;
    Ok(mapping)
}

/// Finds a mapping in the caller's scope.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find(db: &mut PgConnection, scope: &Scope, id: MappingId) -> Result<AgentMapping> {
    let filter = MappingFilter {
        id: Some(id),
        ..MappingFilter::default()
    };
    let found = list(db, scope, filter, Page::WHOLE).await?;
    found
        .rows
        .into_iter()
        .next()
        .ok_or(Error::NotFound("Mapping"))
}

/// Lists the mappings in the caller's scope, newest first.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    filter: MappingFilter,
    page: Page,
) -> Result<PageSlice<AgentMapping>> {
    let mappings = sqlx::query_as!(
        AgentMapping,
        r#"select m.id as "id!: MappingId", p.id as "phone_number_id!: PhoneId",
                  p.phone_number as "phone_number!: E164", m.agent_id as "agent_id!: AgentId",
                  null::uuid as workflow_id, m.created_at as "created_at!", m.updated_at as "updated_at!",
                  m.org_id as "org_id!: OrgId"
           from phone_mappings m
           join phone_numbers p on p.id = m.phone_id
           where ($1::uuid is null or m.org_id = $1)
             and ($2::uuid is null or p.user_id = $2)
             and ($3::uuid is null or m.id = $3)
             and ($4::uuid is null or m.phone_id = $4)
             and ($5::uuid is null or m.agent_id = $5)
           order by m.id desc
           limit $6
           offset $7"#,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        filter.id as Option<MappingId>,
        filter.phone as Option<PhoneId>,
        filter.agent as Option<AgentId>,
        page.limit(),
        page.offset(),
    )
    .fetch_all(db)
    .await?;

    Ok(page.slice(mappings))
}

/// Finds both in the scope, refuses different organisations, and returns theirs.
async fn check_same_org(
    db: &mut PgConnection,
    scope: &Scope,
    phone: PhoneId,
    agent: AgentId,
) -> Result<OrgId> {
    let agent = agents::find(db, scope, agent).await?;
    let phone = caller_numbers::find(db, scope, phone).await?;

    if agent.org_id != phone.org_id {
        return Err(Error::rejected(
            "organizations_differ",
            "agent_id and phone_number_id belong to different organizations",
        ));
    }
    Ok(agent.org_id)
}

fn already_mapped() -> Error {
    Error::conflict(
        "phone_mapped",
        "the phone number has a mapping: change it with PUT /api/v1/phone/mapping/{mapping_id}",
    )
}
