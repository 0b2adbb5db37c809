//! Members of an organisation.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;

use super::lock;
use crate::access::owner_filter::OwnerFilter;
use crate::access::{Principal, Role, Scope};
use crate::auth::sessions;
use crate::platform::error::{Error, Result};
use crate::platform::ids::{OrgId, UserId};
use crate::platform::page::Page;

/// Member of an organisation.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "0198c0de-0000-7000-8000-000000000002", "organization_id": "0198c0de-0000-7000-8000-000000000001",
    "email": "ada@example.com", "full_name": "Ada Lovelace", "role": "org_admin", "created_at": "2026-06-01T08:00:00Z"
}))]
pub struct Member {
    pub id: UserId,
    pub organization_id: OrgId,
    pub email: String,
    pub full_name: Option<String>,
    pub role: Role,
    pub created_at: DateTime<Utc>,
}

/// Lists the members in the caller's scope by e-mail address, with their total.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    owners: &OwnerFilter,
    page: Page,
) -> Result<(Vec<Member>, i64)> {
    let total = sqlx::query_scalar!(
        r#"select count(*) as "n!"
           from users
           where removed_at is null
             and ($1::uuid is null or org_id = $1)
             and ($2::uuid is null or id = $2)
             and ($3::uuid[] is null or org_id = any($3))
             and ($4::uuid[] is null or id = any($4))
             and ($5::text[] is null or role = any($5))"#,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        owners.orgs.as_deref() as Option<&[OrgId]>,
        owners.users.as_deref() as Option<&[UserId]>,
        owners.roles.as_deref() as Option<&[Role]>,
    )
    .fetch_one(&mut *db)
    .await?;

    let members = sqlx::query_as!(
        Member,
        r#"select id as "id: UserId", org_id as "organization_id: OrgId", email, full_name,
                  role as "role: Role", created_at
           from users
           where removed_at is null
             and ($1::uuid is null or org_id = $1)
             and ($2::uuid is null or id = $2)
             and ($3::uuid[] is null or org_id = any($3))
             and ($4::uuid[] is null or id = any($4))
             and ($5::text[] is null or role = any($5))
           order by lower(email), id
           limit $6
           offset $7"#,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        owners.orgs.as_deref() as Option<&[OrgId]>,
        owners.users.as_deref() as Option<&[UserId]>,
        owners.roles.as_deref() as Option<&[Role]>,
        page.size,
        (page.number - 1).saturating_mul(page.size),
    )
    .fetch_all(db)
    .await?;

    Ok((members, total))
}

/// Finds a member of an organisation in the caller's scope.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find(
    db: &mut PgConnection,
    scope: &Scope,
    org: OrgId,
    user: UserId,
) -> Result<Member> {
    sqlx::query_as!(
        Member,
        r#"select id as "id: UserId", org_id as "organization_id: OrgId", email, full_name,
                  role as "role: Role", created_at
           from users
           where id = $1
             and org_id = $2
             and removed_at is null
             and ($3::uuid is null or org_id = $3)
             and ($4::uuid is null or id = $4)"#,
        user as UserId,
        org as OrgId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("User"))
}

/// Changes a member's role, effective with the next request. Returns the member before and after.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Forbidden`] for one's own role and for roles above the caller's;
/// [`Error::Conflict`] when the organisation would be left without an administrator.
pub async fn set_role(
    db: &mut PgConnection,
    scope: &Scope,
    caller: &Principal,
    org: OrgId,
    user: UserId,
    role: Role,
) -> Result<(Member, Member)> {
    let before = lock_other_member(db, scope, caller, org, user).await?;
    if role > caller.role {
        let message = "Forbidden: you cannot give a role above your own";
        return Err(Error::Forbidden(message.into()));
    }
    if before.role != Role::User && role == Role::User {
        require_other_admin(db, org, user).await?;
    }

    sqlx::query!(
        "update users set role = $2 where id = $1",
        user as UserId,
        role as Role
    )
    .execute(&mut *db)
    .await?;

    let after = Member {
        role,
        ..before.clone()
    };
    Ok((before, after))
}

/// Removes a member: their sessions and keys end with the transaction, their resources stay.
///
/// # Errors
/// As [`set_role`], and [`Error::Conflict`] while batches of theirs run or would resume by
/// themselves, and while calls of theirs wait.
pub async fn remove(
    db: &mut PgConnection,
    scope: &Scope,
    caller: &Principal,
    org: OrgId,
    user: UserId,
) -> Result<Member> {
    // 1. Lock the organisation, then the member, and check.
    let member = lock_other_member(db, scope, caller, org, user).await?;
    if member.role != Role::User {
        require_other_admin(db, org, user).await?;
    }
    check_idle(db, org, user).await?;

    // 2. Remove the member, and end their keys and sessions.
    sqlx::query!(
        "update users set removed_at = now() where id = $1",
        user as UserId
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!(
        "update api_keys set revoked_at = now() where user_id = $1 and revoked_at is null",
        user as UserId
    )
    .execute(&mut *db)
    .await?;
    sessions::end_all_unscoped(db, user, None).await?;
    Ok(member)
}

/// Locks the organisation, so that its last two administrators cannot remove each other, and
/// reads a member who is not the caller and not of a higher role.
async fn lock_other_member(
    db: &mut PgConnection,
    scope: &Scope,
    caller: &Principal,
    org: OrgId,
    user: UserId,
) -> Result<Member> {
    lock(db, scope, org).await?;
    let member = find(db, scope, org, user).await?;
    if user == caller.user {
        let message = "Forbidden: you cannot change your own membership; ask another administrator";
        return Err(Error::Forbidden(message.into()));
    }
    caller.require_at_least_role_of(member.role)?;
    Ok(member)
}

/// Refuses while calls of a member run or would still be dialled. Code that starts dialling for a
/// member [locks](crate::users::keep_unscoped) the member first: dialling that has begun is seen
/// here, and dialling that begins later finds the member removed.
async fn check_idle(db: &mut PgConnection, org: OrgId, user: UserId) -> Result<()> {
    // 1. Lock the member.
    sqlx::query!(
        "select from users where id = $1 for no key update",
        user as UserId,
    )
    .fetch_optional(&mut *db)
    .await?;

    // 2. Look for batches that run or resume by themselves, and for waiting calls.
    let busy = sqlx::query!(
        r#"select exists (
                      select from call_batches
                      where org_id = $1
                        and user_id = $2
                        and status in ('in_progress', 'scheduled')
                  ) as "running!",
                  exists (
                      select from call_batches
                      where org_id = $1
                        and user_id = $2
                        and status = 'paused'
                        and starved_since is not null
                        and auto_resume
                  ) as "starved!",
                  exists (
                      select from calls
                      where org_id = $1
                        and user_id = $2
                        and batch_id is null
                        and queued
                  ) or exists (
                      select from calls
                      where org_id = $1
                        and user_id = $2
                        and batch_id is null
                        and deferred
                  ) as "calling!""#,
        org as OrgId,
        user as UserId,
    )
    .fetch_one(db)
    .await?;

    // 3. Refuse with the reason.
    let (code, message) = if busy.running {
        (
            "member_has_running_batches",
            "batches of this user are running: stop them or let them end before you remove the user",
        )
    } else if busy.starved {
        (
            "member_has_running_batches",
            "batches of this user wait for credit and resume by themselves: pause or stop them before you remove the user",
        )
    } else if busy.calling {
        (
            "member_has_queued_calls",
            "calls of this user wait to be dialled: let them end before you remove the user",
        )
    } else {
        return Ok(());
    };
    Err(Error::conflict(code, message))
}

/// Refuses when the organisation has no administrator besides this user.
async fn require_other_admin(db: &mut PgConnection, org: OrgId, but: UserId) -> Result<()> {
    let another = sqlx::query_scalar!(
        r#"select exists (
               select from users
               where org_id = $1 and id <> $2 and role <> 'user' and removed_at is null
           ) as "another!""#,
        org as OrgId,
        but as UserId,
    )
    .fetch_one(db)
    .await?;
    if another {
        return Ok(());
    }
    Err(Error::conflict(
        "last_admin",
        "this is the organization's last administrator: make another member one first",
    ))
}
