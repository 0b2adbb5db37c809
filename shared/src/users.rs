//! Users and organisations, as far as sign-in and dialling need them.

use sqlx::PgConnection;

use crate::access::{Credential, Principal, Role, Scope};
use crate::platform::e164::Country;
use crate::platform::error::{Error, Result};
use crate::platform::ids::{OrgId, UserId};

/// Finds the organisation of that name, or creates it.
pub async fn ensure_org_unscoped(db: &mut PgConnection, name: &str) -> Result<OrgId> {
    let found = sqlx::query_scalar!(
        r#"select id as "id: OrgId" from organizations where name = $1 order by created_at limit 1"#,
        name
    )
    .fetch_optional(&mut *db)
    .await?;
    if let Some(org) = found {
        return Ok(org);
    }
    let id = OrgId::new();
    sqlx::query!(
        "insert into organizations (id, name, max_concurrent_calls) values ($1, $2, 1000)",
        id as OrgId,
        name
    )
    .execute(db)
    .await?;
    Ok(id)
}

/// Sets the country of an organisation's numbers without a country code. A batch may override
/// it.
pub async fn set_default_country_unscoped(
    db: &mut PgConnection,
    org: OrgId,
    country: Country,
) -> Result<()> {
    sqlx::query!(
        "update organizations set default_country = $2 where id = $1",
        org as OrgId,
        country as Country,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Finds the user of that e-mail address, or adds one to the organisation.
pub async fn ensure_user_unscoped(
    db: &mut PgConnection,
    org: OrgId,
    email: &str,
    role: Role,
) -> Result<UserId> {
    let id = sqlx::query_scalar!(
        r#"insert into users (id, org_id, email, role)
           values ($1, $2, $3, $4)
           on conflict (lower(email)) where removed_at is null do update set email = excluded.email
           returning id as "id: UserId""#,
        UserId::new() as UserId,
        org as OrgId,
        email,
        role as Role,
    )
    .fetch_one(db)
    .await?;
    Ok(id)
}

/// Sets a user's role, on behalf of an operator.
pub async fn set_role_unscoped(db: &mut PgConnection, user: UserId, role: Role) -> Result<()> {
    sqlx::query!(
        "update users set role = $2 where id = $1",
        user as UserId,
        role as Role
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Returns a user as the principal of a session.
pub async fn principal_unscoped(db: &mut PgConnection, user: UserId) -> Result<Option<Principal>> {
    let row = sqlx::query!(
        r#"select org_id as "org_id: OrgId", email, role as "role: Role" from users where id = $1 and removed_at is null"#,
        user as UserId,
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| Principal {
        user,
        org: row.org_id,
        role: row.role,
        email: Some(row.email),
        credential: Credential::Session,
    }))
}

/// Profile of a user, from the claims of their tokens.
#[derive(Clone, Debug)]
pub struct UserProfile {
    pub phone: Option<String>,
    pub profile_image_url: Option<String>,
    pub user_metadata: serde_json::Value,
}

/// Profile of a user in the caller's scope.
///
/// # Errors
/// [`Error::NotFound`] for a user outside the scope.
pub async fn profile(db: &mut PgConnection, scope: &Scope, user: UserId) -> Result<UserProfile> {
    sqlx::query_as!(
        UserProfile,
        "select phone, profile_image_url, user_metadata
         from users
         where id = $1
           and ($2::uuid is null or org_id = $2)
           and ($3::uuid is null or id = $3)",
        user as UserId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("User"))
}

/// Locks a member against removal until the transaction ends, so that a removal waits and then
/// sees the calls that this transaction starts. The caller has already found a resource of the
/// user within its scope. False when the user was removed.
pub async fn lock_member_unscoped(db: &mut PgConnection, user: UserId) -> Result<bool> {
    let kept = sqlx::query!(
        "select from users where id = $1 and removed_at is null for share",
        user as UserId,
    )
    .fetch_optional(db)
    .await?;
    Ok(kept.is_some())
}

/// True when a user exists in the caller's scope.
pub async fn is_in_scope(db: &mut PgConnection, scope: &Scope, user: UserId) -> Result<bool> {
    let seen = sqlx::query_scalar!(
        r#"select exists (
               select from users
               where id = $1
                 and ($2::uuid is null or org_id = $2)
                 and ($3::uuid is null or id = $3)
           ) as "seen!""#,
        user as UserId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_one(db)
    .await?;
    Ok(seen)
}

/// Refuses to act on a user whose role is above the caller's: acting for a user means acting with
/// their role.
///
/// # Errors
/// [`Error::Forbidden`]; [`Error::NotFound`] for a user outside the scope.
pub async fn check_rank(
    db: &mut PgConnection,
    scope: &Scope,
    caller: &Principal,
    user: UserId,
) -> Result<()> {
    let role = sqlx::query_scalar!(
        r#"select role as "role: Role"
           from users
           where id = $1
             and ($2::uuid is null or org_id = $2)
             and ($3::uuid is null or id = $3)"#,
        user as UserId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("User"))?;
    caller.require_at_least_role_of(role)
}

/// Organisation of a member in the caller's scope.
pub async fn org_of(db: &mut PgConnection, scope: &Scope, user: UserId) -> Result<Option<OrgId>> {
    let org = sqlx::query_scalar!(
        r#"select org_id as "org_id: OrgId"
           from users
           where id = $1
             and removed_at is null
             and ($2::uuid is null or org_id = $2)
             and ($3::uuid is null or id = $3)"#,
        user as UserId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(db)
    .await?;
    Ok(org)
}
