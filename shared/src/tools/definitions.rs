//! Stored HTTP tools.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;
use std::collections::BTreeMap;
use utoipa::ToSchema;

use super::{EndpointAuth, EndpointCredentials, org_of, schema, usage};
use crate::access::owner_filter::OwnerFilter;
use crate::access::{Role, Scope};
use crate::agents::usage::check_idle_unscoped;
use crate::platform::error::{Error, OnConstraint, Result};
use crate::platform::ids::{OrgId, ToolId, UserId};
use crate::platform::page::{Page, PageSlice};
use crate::platform::secret::KeyRing;

/// Table name to which sealed credentials are bound.
const TABLE: &str = "tools";

/// HTTP method of a tool's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
#[sqlx(type_name = "text", rename_all = "UPPERCASE")]
pub enum ToolMethod {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

/// An HTTP tool. Secrets are masked.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "0198c0de-0000-7000-8000-000000000001", "user_id": "0198c0de-0000-7000-8000-000000000002", "name": "find_order", "description": "Finds an order by its number",
    "url": "https://shop.example.com/orders/{{order_id}}", "method": "GET", "headers": {},
    "auth": {"type": "bearer", "token": "********"}, "timeout_seconds": 5,
    "tool_schema": {"type": "object", "properties": {"order_id": {"type": "string"}}, "required": ["order_id"]},
    "required": ["order_id"], "output_schema": ["status"], "is_active": true,
    "created_at": "2026-06-09T08:00:00Z", "updated_at": "2026-06-09T08:00:00Z"
}))]
pub struct Tool {
    pub id: ToolId,
    pub user_id: UserId,
    pub name: String,
    pub description: String,
    /// May contain `{{parameters}}` after the host.
    pub url: String,
    pub method: ToolMethod,
    pub headers: BTreeMap<String, String>,
    pub auth: EndpointAuth,
    pub timeout_seconds: i32,
    /// JSON Schema of the arguments.
    #[schema(value_type = Object)]
    pub tool_schema: Value,
    /// Required arguments.
    pub required: Vec<String>,
    /// Fields of the answer that are kept, such as `order.status`; null keeps all.
    pub output_schema: Option<Vec<String>>,
    pub is_active: bool,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    #[serde(skip)]
    pub org_id: OrgId,
}

/// Fields of a tool that its owner sets.
#[derive(Clone, Debug)]
pub struct NewTool {
    pub name: String,
    pub description: String,
    pub url: String,
    pub method: ToolMethod,
    pub credentials: EndpointCredentials,
    pub timeout_seconds: i32,
    pub tool_schema: Value,
    pub output_schema: Option<Vec<String>>,
    pub is_active: bool,
}

struct ToolRow {
    id: ToolId,
    org_id: OrgId,
    user_id: UserId,
    name: String,
    description: String,
    url: String,
    method: ToolMethod,
    credentials: Vec<u8>,
    timeout_seconds: i32,
    tool_schema: Value,
    output_schema: Option<Vec<String>>,
    is_active: bool,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl ToolRow {
    /// Opens the credentials and masks them in the tool.
    fn open(self, keys: &KeyRing) -> Result<(Tool, EndpointCredentials)> {
        let sealed = &self.credentials;
        let credentials = EndpointCredentials::opened(keys, TABLE, self.org_id, self.id.0, sealed)?;
        let shown = credentials.masked();
        let tool = Tool {
            id: self.id,
            user_id: self.user_id,
            name: self.name,
            description: self.description,
            url: self.url,
            method: self.method,
            headers: shown.headers,
            auth: shown.auth,
            timeout_seconds: self.timeout_seconds,
            required: schema::required(&self.tool_schema),
            tool_schema: self.tool_schema,
            output_schema: self.output_schema,
            is_active: self.is_active,
            created_at: self.created_at,
            updated_at: self.updated_at,
            org_id: self.org_id,
        };
        Ok((tool, credentials))
    }
}

/// Creates a tool for `owner`.
///
/// # Errors
/// [`Error::NotFound`] for an owner outside the scope, [`Error::Conflict`] when the owner has a
/// tool of that name, [`Error::Invalid`] for a masked secret.
pub async fn create(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    owner: UserId,
    new: &NewTool,
) -> Result<Tool> {
    let org = org_of(db, scope, owner).await?;
    let id = ToolId::new();
    let sealed = seal(keys, org, id, &new.credentials)?;

    sqlx::query!(
        "insert into tools (id, org_id, user_id, name, description, url, method, credentials, timeout_seconds,
                            tool_schema, output_schema, is_active)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        id as ToolId,
        org as OrgId,
        owner as UserId,
        new.name,
        new.description,
        new.url,
        new.method as ToolMethod,
        sealed,
        new.timeout_seconds,
        new.tool_schema,
        new.output_schema.as_deref(),
        new.is_active,
    )
    .execute(&mut *db)
    .await
    .on_constraint("tool_name_is_taken", name_taken_error)?;

    find(db, keys, scope, id).await
}

/// Finds a tool in the scope.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    id: ToolId,
) -> Result<Tool> {
    Ok(find_with_credentials(db, keys, scope, id).await?.0)
}

/// Finds a tool in the scope, with the credentials of its requests.
///
/// # Errors
/// As [`find`].
pub async fn find_with_credentials(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    id: ToolId,
) -> Result<(Tool, EndpointCredentials)> {
    sqlx::query_as!(
        ToolRow,
        r#"select id as "id: ToolId", org_id as "org_id: OrgId", user_id as "user_id: UserId", name, description, url,
                  method as "method: ToolMethod", credentials, timeout_seconds, tool_schema, output_schema, is_active,
                  created_at, updated_at
           from tools
           where id = $1
             and ($2::uuid is null or org_id = $2)
             and ($3::uuid is null or user_id = $3)"#,
        id as ToolId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("Tool"))?
    .open(keys)
}

/// Lists the tools in the scope, the newest first.
pub async fn list(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    owners: &OwnerFilter,
    only_active: bool,
    page: Page,
) -> Result<PageSlice<Tool>> {
    let rows = sqlx::query_as!(
        ToolRow,
        r#"select id as "id: ToolId", org_id as "org_id: OrgId", user_id as "user_id: UserId", name, description, url,
                  method as "method: ToolMethod", credentials, timeout_seconds, tool_schema, output_schema, is_active,
                  created_at, updated_at
           from tools
           where ($1::uuid is null or org_id = $1)
             and ($2::uuid is null or user_id = $2)
             and (is_active or not $3)
             and ($4::uuid[] is null or org_id = any($4))
             and ($5::uuid[] is null or user_id = any($5))
             and ($6::text[] is null
                  or exists (select from users u where u.id = tools.user_id and u.role = any($6)))
           order by id desc
           limit $7
           offset $8"#,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        only_active,
        owners.orgs.as_deref() as Option<&[OrgId]>,
        owners.users.as_deref() as Option<&[UserId]>,
        owners.roles.as_deref() as Option<&[Role]>,
        page.limit(),
        page.offset(),
    )
    .fetch_all(db)
    .await?;

    page.slice(rows).try_map(|row| Ok(row.open(keys)?.0))
}

/// Replaces the fields that a tool's owner sets. A masked secret keeps the stored one.
///
/// # Errors
/// As [`create`], and [`Error::NotFound`] for a tool outside the scope; [`Error::Invalid`] also
/// for a mask when the tool moves to another server; [`Error::Conflict`] also while a running
/// batch or a call uses it, unless `force`.
pub async fn replace(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    id: ToolId,
    new: &NewTool,
    force: bool,
) -> Result<Tool> {
    lock(db, scope, id).await?;
    check_idle_unscoped(db, id.0, force).await?;

    let (before, stored) = find_with_credentials(db, keys, scope, id).await?;
    let credentials = new
        .credentials
        .clone()
        .unmasked(&new.url, &stored, &before.url)?;
    let sealed = seal(keys, before.org_id, id, &credentials)?;

    sqlx::query!(
        "update tools
         set name = $2, description = $3, url = $4, method = $5, credentials = $6, timeout_seconds = $7,
             tool_schema = $8, output_schema = $9, is_active = $10, updated_at = now()
         where id = $1",
        id as ToolId,
        new.name,
        new.description,
        new.url,
        new.method as ToolMethod,
        sealed,
        new.timeout_seconds,
        new.tool_schema,
        new.output_schema.as_deref(),
        new.is_active,
    )
    .execute(&mut *db)
    .await
    .on_constraint("tool_name_is_taken", name_taken_error)?;

    find(db, keys, scope, id).await
}

/// Deletes a tool.
///
/// # Errors
/// [`Error::NotFound`] for a tool outside the scope, [`Error::Conflict`] for one that agents or
/// rules use, unless `force`.
pub async fn delete(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    id: ToolId,
    force: bool,
) -> Result<Tool> {
    lock(db, scope, id).await?;
    let tool = find(db, keys, scope, id).await?;
    usage::remove_uses(db, scope, id.0, force).await?;
    sqlx::query!("delete from tools where id = $1", id as ToolId)
        .execute(db)
        .await?;
    Ok(tool)
}

async fn lock(db: &mut PgConnection, scope: &Scope, id: ToolId) -> Result<()> {
    sqlx::query!(
        "select
         from tools
         where id = $1
           and ($2::uuid is null or org_id = $2)
           and ($3::uuid is null or user_id = $3)
         for update",
        id as ToolId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("Tool"))?;
    Ok(())
}

/// Reseals all credentials that are under an earlier master key under the current one, of all
/// organisations: the platform's operator rotates. Returns their number.
///
/// # Errors
/// [`Error::Unexpected`] when some open under no configured key.
pub async fn reseal_unscoped(db: &mut PgConnection, keys: &KeyRing) -> Result<u64> {
    let tools = sqlx::query!(
        r#"select id as "id: ToolId", org_id as "org_id: OrgId", credentials
           from tools
           order by id
           for no key update"#
    )
    .fetch_all(&mut *db)
    .await?;

    let mut resealed = 0;
    for tool in tools {
        let (org, id) = (tool.org_id, tool.id);
        if let Some(sealed) =
            EndpointCredentials::resealed(keys, TABLE, org, id.0, &tool.credentials)?
        {
            sqlx::query!(
                "update tools set credentials = $2 where id = $1",
                id as ToolId,
                sealed,
            )
            .execute(&mut *db)
            .await?;
            resealed += 1;
        }
    }
    Ok(resealed)
}

fn seal(
    keys: &KeyRing,
    org: OrgId,
    id: ToolId,
    credentials: &EndpointCredentials,
) -> Result<Vec<u8>> {
    let whole = credentials.clone().without_masks()?;
    whole.sealed(keys, TABLE, org, id.0)
}

fn name_taken_error() -> Error {
    Error::conflict(
        "tool_name_taken",
        "a tool of this name exists; choose another, because the model selects tools by name",
    )
}
