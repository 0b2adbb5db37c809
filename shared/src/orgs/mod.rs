//! Organisations: the tenants, what their administrators settle, and the people in them.
//!
//! An organisation may stand below another one, a reseller's. The reseller sees that it is
//! there and nothing inside it. There is one level: who is below somebody has nobody below.
//!
//! A user belongs to one organisation. People come in by **invitation** ([`invites`]) and leave
//! by removal ([`members`]), which ends everything they could do; what they made stays.
//!
//! How a reseller earns is its **business model** ([`pricing`]): a `channel_partner` a part of
//! what its customers cost the platform, a `distributor` what it asks them beyond that.

pub mod invites;
pub mod members;
pub mod pricing;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;

use crate::access::Scope;
use crate::error::{Error, Result};
use crate::ids::OrgId;

/// An organisation.
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
    /// Whether calls that are made from here on are under HIPAA, as those of an agent with the
    /// flag are.
    pub hipaa_compliance: bool,
    pub max_concurrent_calls: i32,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// An organisation to found.
#[derive(Clone, Debug)]
pub struct NewOrganization {
    pub name: String,
    pub parent: Option<OrgId>,
    pub settings: Settings,
}

/// What can be settled; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub name: Option<String>,
    pub timezone: Option<String>,
    /// `Some(None)` takes the country away.
    pub default_country: Option<Option<String>>,
    pub hipaa_compliance: Option<bool>,
    pub max_concurrent_calls: Option<i32>,
}

/// How many people are in an organisation and on their way into it.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct Headcount {
    pub members: i64,
    pub open_invites: i64,
}

/// Whether this is the name of a time zone.
#[must_use]
pub fn is_timezone(name: &str) -> bool {
    name.parse::<chrono_tz::Tz>().is_ok()
}

/// Founds an organisation. Only the platform does, so there is no scope.
///
/// # Errors
/// [`Error::NotFound`] for an unknown parent, [`Error::Rejected`] for one that is itself below
/// another organisation.
pub async fn found_unscoped(db: &mut PgConnection, new: &NewOrganization) -> Result<Organization> {
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
    of_id(db, id).await
}

/// An organisation in the caller's sight: their own, and those below it.
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

/// An organisation whose people the caller may see: the own one, or any for super_admins. A
/// reseller sees those below its own, but not who works there.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find_own(db: &mut PgConnection, scope: &Scope, id: OrgId) -> Result<Organization> {
    match scope.org() {
        Some(own) if own != id => Err(Error::NotFound("Organization")),
        _ => find(db, scope, id).await,
    }
}

/// The organisations in the caller's sight by name, and how many there are.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
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
    let found = sqlx::query_as!(
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
    Ok((found, total))
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
    of_id(db, id).await
}

/// Settles what is given. The organisation has been locked in the caller's scope.
///
/// # Errors
/// As [`lock`].
pub async fn settle(
    db: &mut PgConnection,
    scope: &Scope,
    id: OrgId,
    settings: &Settings,
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
    of_id(db, id).await
}

/// Counts an organisation's people.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
pub async fn headcount(db: &mut PgConnection, scope: &Scope, id: OrgId) -> Result<Headcount> {
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

async fn of_id(db: &mut PgConnection, id: OrgId) -> Result<Organization> {
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
