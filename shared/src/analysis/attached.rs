//! Rules attached to an agent, in order. Only rules that the agent's owner may see.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{AnalysisType, Rule, RuleField};
use crate::access::Scope;
use crate::agents;
use crate::agents::Agent;
use crate::agents::usage::check_idle_unscoped;
use crate::platform::error::{Error, OnConstraint, Result};
use crate::platform::ids::{AgentId, OrgId, RuleId, ToolId, UserId};

/// Maximum number of rules of an agent, so that a list needs no pages.
pub const MAX_RULES: usize = 50;

/// A rule attached to an agent.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "0198c0de-0000-7000-8000-000000000007", "agent_id": "0198c0de-0000-7000-8000-000000000005", "rule_id": "0198c0de-0000-7000-8000-000000000006", "sort_order": 0, "created_at": "2026-06-09T08:00:00Z"
}))]
pub struct Attachment {
    pub id: Uuid,
    pub agent_id: AgentId,
    pub rule_id: RuleId,
    pub sort_order: i32,
    pub created_at: DateTime<Utc>,
}

/// Lists the attachments of an agent, in order.
///
/// # Errors
/// [`Error::NotFound`] when there is no such agent.
pub async fn list(db: &mut PgConnection, scope: &Scope, agent: AgentId) -> Result<Vec<Attachment>> {
    let agent = agents::find(db, scope, agent).await?;
    let attachments = sqlx::query_as!(
        Attachment,
        r#"select id, agent_id as "agent_id: AgentId", rule_id as "rule_id: RuleId", sort_order, created_at
           from agent_analysis_rules
           where agent_id = $1
             and org_id = $2
           order by sort_order, id"#,
        agent.id as AgentId,
        agent.org_id as OrgId,
    )
    .fetch_all(db)
    .await?;
    Ok(attachments)
}

/// Lists the rules of an agent, in order.
///
/// # Errors
/// As [`list`].
pub async fn rules(db: &mut PgConnection, scope: &Scope, agent: AgentId) -> Result<Vec<Rule>> {
    let agent = agents::find(db, scope, agent).await?;
    let rules = sqlx::query_as!(
        Rule,
        r#"select r.id as "id: RuleId", r.org_id as "org_id: OrgId", r.user_id as "user_id: UserId", name, description,
                  analysis_type as "analysis_type: AnalysisType", prompt, model_name,
                  fields as "fields: Json<Vec<RuleField>>", tool_id as "tool_id: ToolId", webhook_url, is_active,
                  r.created_at, r.updated_at
           from agent_analysis_rules a
           join analysis_rules r on r.id = a.rule_id
           where a.agent_id = $1
             and a.org_id = $2
           order by a.sort_order, a.id"#,
        agent.id as AgentId,
        agent.org_id as OrgId,
    )
    .fetch_all(db)
    .await?;
    Ok(rules)
}

/// Attaches a rule, or moves an attached one. Without `sort_order` a new rule comes last, and an
/// attached one keeps its position.
///
/// # Errors
/// [`Error::NotFound`] for an agent out of scope or a rule that its owner cannot see,
/// [`Error::Conflict`] when the agent would have too many rules, and while it is in use, unless
/// `force`.
pub async fn attach(
    db: &mut PgConnection,
    scope: &Scope,
    agent: AgentId,
    (rule, sort_order): (RuleId, Option<i32>),
    force: bool,
) -> Result<Attachment> {
    let agent = agents::find_locked(db, scope, agent).await?;
    check_visible(db, &agent, &[rule]).await?;
    check_idle_unscoped(db, agent.id.0, force).await?;

    let had = list(db, scope, agent.id).await?.len();

    sqlx::query!(
        "insert into agent_analysis_rules (id, org_id, agent_id, rule_id, sort_order)
         select $1, $2, $3, $4, coalesce($5, (select coalesce(max(sort_order) + 1, 0)
                                              from agent_analysis_rules
                                              where agent_id = $3))
         on conflict on constraint rule_is_attached
         do update set sort_order = coalesce($5, agent_analysis_rules.sort_order)",
        AgentId::new().0,
        agent.org_id as OrgId,
        agent.id as AgentId,
        rule as RuleId,
        sort_order,
    )
    .execute(&mut *db)
    .await?;

    let all = list(db, scope, agent.id).await?;
    // An agent that already has more may keep and move them.
    if all.len() > MAX_RULES.max(had) {
        return Err(Error::conflict(
            "too_many_rules",
            format!("an agent has at most {MAX_RULES} rules: take some away from it first"),
        ));
    }

    all.into_iter()
        .find(|attachment| attachment.rule_id == rule)
        .ok_or(Error::NotFound("Rule"))
}

/// Replaces the rules of an agent, in this order. Changes nothing on an error.
///
/// # Errors
/// [`Error::NotFound`] for an agent out of scope or any rule that its owner cannot see,
/// [`Error::Invalid`] for a duplicate rule, [`Error::Conflict`] while the agent is in use, unless
/// `force`.
pub async fn replace_all(
    db: &mut PgConnection,
    scope: &Scope,
    agent: AgentId,
    rules: &[RuleId],
    force: bool,
) -> Result<Vec<Rule>> {
    let agent = agents::find_locked(db, scope, agent).await?;
    check_visible(db, &agent, rules).await?;
    check_idle_unscoped(db, agent.id.0, force).await?;

    sqlx::query!(
        "delete from agent_analysis_rules where agent_id = $1 and org_id = $2",
        agent.id as AgentId,
        agent.org_id as OrgId,
    )
    .execute(&mut *db)
    .await?;

    let ids: Vec<Uuid> = rules.iter().map(|_| RuleId::new().0).collect();
    sqlx::query!(
        "insert into agent_analysis_rules (id, org_id, agent_id, rule_id, sort_order)
         select r.id, $1, $2, r.rule_id, r.place::integer - 1
         from unnest($3::uuid[], $4::uuid[]) with ordinality as r (id, rule_id, place)",
        agent.org_id as OrgId,
        agent.id as AgentId,
        &ids,
        rules as &[RuleId],
    )
    .execute(&mut *db)
    .await
    .on_constraint("rule_is_attached", || {
        Error::field("rule_ids", "duplicate", "has a rule twice; remove one")
    })?;

    self::rules(db, scope, agent.id).await
}

/// Copies the rules of an agent to another one of its organisation, in order, as far as the other
/// agent's owner sees them.
///
/// # Errors
/// [`Error::NotFound`] when one of the two is out of scope.
pub async fn copy(
    db: &mut PgConnection,
    scope: &Scope,
    from: AgentId,
    to: AgentId,
) -> Result<Vec<Rule>> {
    let from = agents::find(db, scope, from).await?;
    let owner = agents::find(db, scope, to).await?;
    let seen = sqlx::query_scalar!(
        r#"select a.rule_id as "rule_id: RuleId"
           from agent_analysis_rules a
           join analysis_rules r on r.id = a.rule_id
           join users u on u.id = $3
           where a.agent_id = $1
             and a.org_id = $2
             and (u.role <> 'user' or r.user_id = u.id)
           order by a.sort_order, a.id"#,
        from.id as AgentId,
        owner.org_id as OrgId,
        owner.user_id as UserId,
    )
    .fetch_all(&mut *db)
    .await?;

    replace_all(db, scope, to, &seen, false).await
}

async fn check_visible(db: &mut PgConnection, agent: &Agent, rules: &[RuleId]) -> Result<()> {
    let hidden = sqlx::query_scalar!(
        r#"select exists (
               select
               from unnest($1::uuid[]) as wanted (id)
               where not exists (
                   select
                   from analysis_rules r, users u
                   where r.id = wanted.id
                     and r.org_id = $2
                     and u.id = $3
                     and (u.role <> 'user' or r.user_id = u.id)
               )
           ) as "hidden!""#,
        rules as &[RuleId],
        agent.org_id as OrgId,
        agent.user_id as UserId,
    )
    .fetch_one(db)
    .await?;

    if hidden {
        Err(Error::NotFound("Rule"))
    } else {
        Ok(())
    }
}
