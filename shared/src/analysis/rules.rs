//! Rules of post-call analysis.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use sqlx::types::Json;
use utoipa::ToSchema;

use crate::access::owner_filter::OwnerFilter;
use crate::access::{Role, Scope};
use crate::agents::usage::check_idle_unscoped;
use crate::platform::error::{Error, OnConstraint, Result};
use crate::platform::ids::{OrgId, RuleId, ToolId, UserId};
use crate::platform::page::{Page, PageSlice};
use crate::tools::org_of;

/// Kind of analysis of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum AnalysisType {
    /// A model answers the prompt with text.
    Summary,
    /// A model answers the prompt with fields.
    StructuredOutput,
    /// Calls a tool.
    Integration,
}

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FieldType {
    String,
    Number,
    Boolean,
    Enum,
}

/// A field of a structured output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleField {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: FieldType,
    #[serde(default)]
    pub description: String,
    /// Allowed values of an `enum`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enum_values: Option<Vec<String>>,
}

/// A rule of post-call analysis.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "0198c0de-0000-7000-8000-000000000006", "user_id": "0198c0de-0000-7000-8000-000000000002", "name": "Intent", "description": null, "analysis_type": "structured_output",
    "prompt": "What does the caller want?", "model_name": null,
    "fields": [{"name": "intent", "type": "enum", "description": "the intent", "enum_values": ["buy", "complain"]}],
    "tool_id": null, "webhook_url": null, "is_active": true,
    "created_at": "2026-06-09T08:00:00Z", "updated_at": "2026-06-09T08:00:00Z"
}))]
pub struct Rule {
    pub id: RuleId,
    pub user_id: UserId,
    pub name: String,
    pub description: Option<String>,
    pub analysis_type: AnalysisType,
    pub prompt: Option<String>,
    pub model_name: Option<String>,
    #[schema(value_type = Vec<RuleField>)]
    pub fields: Json<Vec<RuleField>>,
    pub tool_id: Option<ToolId>,
    pub webhook_url: Option<String>,
    pub is_active: bool,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    #[serde(skip)]
    pub org_id: OrgId,
}

/// Settings of a rule.
#[derive(Clone, Debug)]
pub struct NewRule {
    pub name: String,
    pub description: Option<String>,
    pub analysis_type: AnalysisType,
    pub prompt: Option<String>,
    pub model_name: Option<String>,
    pub fields: Vec<RuleField>,
    pub tool: Option<ToolId>,
    pub webhook_url: Option<String>,
    pub is_active: bool,
}

/// Creates a rule for `owner`.
///
/// # Errors
/// [`Error::NotFound`] for an owner out of scope, or a tool that the owner cannot see.
pub async fn create(
    db: &mut PgConnection,
    scope: &Scope,
    owner: UserId,
    new: &NewRule,
) -> Result<Rule> {
    let org = org_of(db, scope, owner).await?;
    check_tool(db, org, owner, new.tool).await?;

    let id = RuleId::new();
    sqlx::query!(
        "insert into analysis_rules (id, org_id, user_id, name, description, analysis_type, prompt, model_name, fields,
                                     tool_id, webhook_url, is_active)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        id as RuleId,
        org as OrgId,
        owner as UserId,
        new.name,
        new.description,
        new.analysis_type as AnalysisType,
        new.prompt,
        new.model_name,
        Json(&new.fields) as Json<&Vec<RuleField>>,
        new.tool as Option<ToolId>,
        new.webhook_url,
        new.is_active,
    )
    .execute(&mut *db)
    .await
    .on_constraint("tool_has_rules", || Error::NotFound("Tool"))?;

    find(db, scope, id).await
}

/// Finds a rule in the caller's scope.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find(db: &mut PgConnection, scope: &Scope, id: RuleId) -> Result<Rule> {
    sqlx::query_as!(
        Rule,
        r#"select id as "id: RuleId", org_id as "org_id: OrgId", user_id as "user_id: UserId", name, description,
                  analysis_type as "analysis_type: AnalysisType", prompt, model_name,
                  fields as "fields: Json<Vec<RuleField>>", tool_id as "tool_id: ToolId", webhook_url, is_active,
                  created_at, updated_at
           from analysis_rules
           where id = $1
             and ($2::uuid is null or org_id = $2)
             and ($3::uuid is null or user_id = $3)"#,
        id as RuleId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("Rule"))
}

/// Lists the rules in the caller's scope, newest first.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    owners: &OwnerFilter,
    page: Page,
) -> Result<PageSlice<Rule>> {
    let rules = sqlx::query_as!(
        Rule,
        r#"select id as "id: RuleId", org_id as "org_id: OrgId", user_id as "user_id: UserId", name, description,
                  analysis_type as "analysis_type: AnalysisType", prompt, model_name,
                  fields as "fields: Json<Vec<RuleField>>", tool_id as "tool_id: ToolId", webhook_url, is_active,
                  created_at, updated_at
           from analysis_rules
           where ($1::uuid is null or org_id = $1)
             and ($2::uuid is null or user_id = $2)
             and ($3::uuid[] is null or org_id = any($3))
             and ($4::uuid[] is null or user_id = any($4))
             and ($5::text[] is null
                  or exists (select from users u where u.id = analysis_rules.user_id and u.role = any($5)))
           order by id desc
           limit $6
           offset $7"#,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        owners.orgs.as_deref() as Option<&[OrgId]>,
        owners.users.as_deref() as Option<&[UserId]>,
        owners.roles.as_deref() as Option<&[Role]>,
        page.limit(),
        page.offset(),
    )
    .fetch_all(db)
    .await?;

    Ok(page.slice(rules))
}

/// Replaces the settings of a rule.
///
/// # Errors
/// As [`create`], and [`Error::NotFound`] for a rule out of scope; [`Error::Conflict`] while a
/// running batch or a call uses it, unless `force`.
pub async fn replace(
    db: &mut PgConnection,
    scope: &Scope,
    id: RuleId,
    new: &NewRule,
    force: bool,
) -> Result<Rule> {
    let before = find(db, scope, id).await?;
    check_idle_unscoped(db, id.0, force).await?;
    check_tool(db, before.org_id, before.user_id, new.tool).await?;

    sqlx::query!(
        "update analysis_rules
         set name = $2, description = $3, analysis_type = $4, prompt = $5, model_name = $6, fields = $7, tool_id = $8,
             webhook_url = $9, is_active = $10, updated_at = now()
         where id = $1
           and org_id = $11",
        id as RuleId,
        new.name,
        new.description,
        new.analysis_type as AnalysisType,
        new.prompt,
        new.model_name,
        Json(&new.fields) as Json<&Vec<RuleField>>,
        new.tool as Option<ToolId>,
        new.webhook_url,
        new.is_active,
        before.org_id as OrgId,
    )
    .execute(&mut *db)
    .await
    .on_constraint("tool_has_rules", || Error::NotFound("Tool"))?;

    find(db, scope, id).await
}

/// Copies a rule for the same owner, attached to no agent.
///
/// # Errors
/// [`Error::NotFound`] for a rule out of scope.
pub async fn duplicate(db: &mut PgConnection, scope: &Scope, id: RuleId) -> Result<Rule> {
    let rule = find(db, scope, id).await?;
    let copy = RuleId::new();
    sqlx::query!(
        "insert into analysis_rules (id, org_id, user_id, name, description, analysis_type, prompt, model_name, fields,
                                     tool_id, webhook_url, is_active)
         select $2, org_id, user_id, left(name, 193) || ' (copy)', description, analysis_type, prompt, model_name,
                fields, tool_id, webhook_url, is_active
         from analysis_rules
         where id = $1
           and org_id = $3",
        id as RuleId,
        copy as RuleId,
        rule.org_id as OrgId,
    )
    .execute(&mut *db)
    .await?;

    find(db, scope, copy).await
}

/// Deletes a rule and detaches it from agents.
///
/// # Errors
/// [`Error::NotFound`] for a rule out of scope, [`Error::Conflict`] while a running batch or a
/// call uses it, unless `force`.
pub async fn delete(db: &mut PgConnection, scope: &Scope, id: RuleId, force: bool) -> Result<Rule> {
    let rule = find(db, scope, id).await?;
    check_idle_unscoped(db, id.0, force).await?;
    sqlx::query!(
        "delete from analysis_rules where id = $1 and org_id = $2",
        id as RuleId,
        rule.org_id as OrgId,
    )
    .execute(db)
    .await?;
    Ok(rule)
}

/// Checks that the rule's owner may see the tool.
async fn check_tool(
    db: &mut PgConnection,
    org: OrgId,
    owner: UserId,
    tool: Option<ToolId>,
) -> Result<()> {
    let Some(tool) = tool else { return Ok(()) };
    let visible = sqlx::query_scalar!(
        r#"select exists (
               select
               from tools t, users u
               where t.id = $1
                 and t.org_id = $2
                 and u.id = $3
                 and (u.role <> 'user' or t.user_id = u.id)
           ) as "visible!""#,
        tool as ToolId,
        org as OrgId,
        owner as UserId,
    )
    .fetch_one(db)
    .await?;

    if visible {
        Ok(())
    } else {
        Err(Error::NotFound("Tool"))
    }
}
