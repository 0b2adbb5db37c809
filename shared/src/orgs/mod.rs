//! Organisations: the tenants, their settings and their members.
//!
//! An organisation may belong to a reseller's organisation. The reseller sees that it exists and
//! nothing inside it. There is one level: an organisation with a parent has no children.
//!
//! A user belongs to one organisation. People join by **invitation** ([`invites`]) and leave by
//! removal ([`members`]), which ends their access; their resources stay.
//!
//! A reseller's **business model** ([`pricing`]) determines its earnings: a `channel_partner`
//! earns a part of what its customers cost the platform, a `distributor` what it charges beyond
//! that.

pub mod invites;
pub mod members;
pub mod pricing;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;

use crate::access::Scope;
use crate::platform::error::{Error, Result};
use crate::platform::ids::OrgId;

/// Organisation: a tenant.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "0198c0de-0000-7000-8000-000000000001", "name": "Acme", "parent_organization_id": null,
    "timezone": "Asia/Kolkata", "default_country": "IN", "hipaa_compliance": false, "max_concurrent_calls": 100,
    "created_at": "2026-06-01T08:00:00Z", "updated_at": "2026-06-09T08:00:00Z"
}))]
pub struct Organization {
    pub id: OrgId,
    pub name: String,
    /// The reseller's organisation that this one belongs to.
    pub parent_organization_id: Option<OrgId>,
    /// Name of an IANA time zone.
    pub timezone: String,
    /// ISO 3166 code that completes numbers without a country code.
    pub default_country: Option<String>,
    /// True when calls created after the change are under HIPAA, like those of an agent with the
    /// flag.
    pub hipaa_compliance: bool,
    pub max_concurrent_calls: i32,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// Organisation to create.
#[derive(Clone, Debug)]
pub struct NewOrganization {
    pub name: String,
    pub parent: Option<OrgId>,
    pub settings: OrgSettings,
}

/// Settings to change; `None` leaves a setting as it is.
#[derive(Clone, Debug, Default)]
pub struct OrgSettings {
    pub name: Option<String>,
    pub timezone: Option<String>,
    /// `Some(None)` removes the country.
    pub default_country: Option<Option<String>>,
    pub hipaa_compliance: Option<bool>,
    pub max_concurrent_calls: Option<i32>,
}

/// Number of members and of open invitations of an organisation.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct Headcount {
    pub members: i64,
    pub open_invites: i64,
}

/// True for the name of an IANA time zone.
#[must_use]
pub fn is_timezone(name: &str) -> bool {
    name.parse::<chrono_tz::Tz>().is_ok()
}

/// Creates an organisation. Only the platform does, so there is no scope.
///
/// # Errors
/// [`Error::NotFound`] for an unknown parent, [`Error::Rejected`] for one that has a parent
/// itself.
pub async fn create_unscoped(db: &mut PgConnection, new: &NewOrganization) -> Result<Organization> {
    if let Some(parent) = new.parent {
        let parents_parent = sqlx::query_scalar!(
            r#"select parent_org_id as "id: OrgId" from organizations where id = $1 for share"#,
            parent as OrgId,
        )
        .fetch_optional(&mut *db)
        .await?
        .ok_or(Error::NotFound("Organization"))?;
        if parents_parent.is_some() {
            return Err(Error::rejected(
                "parent_has_parent",
                "parent_organization_id belongs to an organization itself: name one that does not",
            ));
        }
    }

    let id = OrgId::new();
    let settings = &new.settings;
    sqlx::query!(
        "insert into organizations (id, name, parent_org_id, timezone, default_country, hipaa_compliance,
                                    max_concurrent_calls)
         values ($1, $2, $3, coalesce($4, 'UTC'), $5, coalesce($6, false), coalesce($7, 100))",
        id as OrgId,
        new.name,
        new.parent as Option<OrgId>,
        settings.timezone,
        settings.default_country.clone().flatten(),
        settings.hipaa_compliance,
        settings.max_concurrent_calls,
    )
    .execute(&mut *db)
    .await?;
    load(db, id).await
}

/// Finds an organisation in the caller's scope: their own, and its children.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find(db: &mut PgConnection, scope: &Scope, id: OrgId) -> Result<Organization> {
    sqlx::query_as!(
        Organization,
        r#"select id as "id: OrgId", name, parent_org_id as "parent_organization_id: OrgId", timezone,
                  default_country, hipaa_compliance, max_concurrent_calls, created_at, updated_at
           from organizations
           where id = $1
             and ($2::uuid is null or id = $2 or parent_org_id = $2)"#,
        id as OrgId,
        scope.org() as Option<OrgId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("Organization"))
}

/// Finds an organisation whose members the caller may see: their own, or any for super_admins. A
/// reseller sees its children, but not their members.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find_own(db: &mut PgConnection, scope: &Scope, id: OrgId) -> Result<Organization> {
    match scope.org() {
        Some(own) if own != id => Err(Error::NotFound("Organization")),
        _ => find(db, scope, id).await,
    }
}

/// Lists the organisations in the caller's scope by name, with their total.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    (page, size): (i64, i64),
) -> Result<(Vec<Organization>, i64)> {
    let total = sqlx::query_scalar!(
        r#"select count(*) as "n!" from organizations where $1::uuid is null or id = $1 or parent_org_id = $1"#,
        scope.org() as Option<OrgId>,
    )
    .fetch_one(&mut *db)
    .await?;

    let organizations = sqlx::query_as!(
        Organization,
        r#"select id as "id: OrgId", name, parent_org_id as "parent_organization_id: OrgId", timezone,
                  default_country, hipaa_compliance, max_concurrent_calls, created_at, updated_at
           from organizations
           where $1::uuid is null or id = $1 or parent_org_id = $1
           order by name, id
           limit $2
           offset $3"#,
        scope.org() as Option<OrgId>,
        size,
        (page - 1).saturating_mul(size),
    )
    .fetch_all(db)
    .await?;

    Ok((organizations, total))
}

/// Locks the caller's own organisation, or any for the platform, for a change.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn lock(db: &mut PgConnection, scope: &Scope, id: OrgId) -> Result<Organization> {
    sqlx::query!(
        "select from organizations where id = $1 and ($2::uuid is null or id = $2) for no key update",
        id as OrgId,
        scope.org() as Option<OrgId>,
    )
    .fetch_optional(&mut *db)
    .await?
    .ok_or(Error::NotFound("Organization"))?;
    load(db, id).await
}

/// Changes the given settings, after locking the organisation in the caller's scope.
///
/// # Errors
/// As [`lock`].
pub async fn update(
    db: &mut PgConnection,
    scope: &Scope,
    id: OrgId,
    settings: &OrgSettings,
) -> Result<Organization> {
    lock(db, scope, id).await?;
    sqlx::query!(
        "update organizations
         set name = coalesce($2, name),
             timezone = coalesce($3, timezone),
             default_country = case when $4 then $5 else default_country end,
             hipaa_compliance = coalesce($6, hipaa_compliance),
             max_concurrent_calls = coalesce($7, max_concurrent_calls),
             updated_at = now()
         where id = $1",
        id as OrgId,
        settings.name,
        settings.timezone,
        settings.default_country.is_some(),
        settings.default_country.clone().flatten(),
        settings.hipaa_compliance,
        settings.max_concurrent_calls,
    )
    .execute(&mut *db)
    .await?;
    load(db, id).await
}

/// Counts an organisation's members and open invitations.
pub async fn count_members(db: &mut PgConnection, scope: &Scope, id: OrgId) -> Result<Headcount> {
    let counted = sqlx::query_as!(
        Headcount,
        r#"select (select count(*) from users where org_id = $1 and removed_at is null) as "members!",
                  (select count(*) from invites
                   where org_id = $1 and accepted_at is null and revoked_at is null
                     and expires_at > now()) as "open_invites!"
           where $2::uuid is null or $2 = $1"#,
        id as OrgId,
        scope.org() as Option<OrgId>,
    )
    .fetch_optional(db)
    .await?;
    Ok(counted.unwrap_or(Headcount {
        members: 0,
        open_invites: 0,
    }))
}

async fn load(db: &mut PgConnection, id: OrgId) -> Result<Organization> {
    sqlx::query_as!(
        Organization,
        r#"select id as "id: OrgId", name, parent_org_id as "parent_organization_id: OrgId", timezone,
                  default_country, hipaa_compliance, max_concurrent_calls, created_at, updated_at
           from organizations
           where id = $1"#,
        id as OrgId,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("Organization"))
}
