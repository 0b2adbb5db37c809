//! Invitations: sent by mail, valid for a week, accepted once.
//!
//! The token in the mail is the invitation's id and its HMAC, so no token is stored with the
//! invitation. Users of an external issuer accept with their first valid token of that address,
//! others with this token and a password.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;

use super::find_own;
use crate::access::{Credential, Principal, Role, Scope};
use crate::auth::passwords;
use crate::mail;
use crate::mail::NewEmail;
use crate::platform::error::{Error, Result};
use crate::platform::ids::{InviteId, OrgId, UserId};
use crate::platform::page::{Page, PageSlice};
use crate::platform::queue::EnqueuedJob;

/// Open invitation.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "0198c0de-0000-7000-8000-000000000004", "organization_id": "0198c0de-0000-7000-8000-000000000001",
    "email": "grace@example.com", "role": "user", "invited_by": "0198c0de-0000-7000-8000-000000000002",
    "created_at": "2026-06-01T08:00:00Z", "expires_at": "2026-06-08T08:00:00Z"
}))]
pub struct Invite {
    pub id: InviteId,
    pub organization_id: OrgId,
    pub email: String,
    pub role: Role,
    pub invited_by: UserId,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

/// Invites an address. Revokes an earlier invitation of the same address.
///
/// # Errors
/// [`Error::Conflict`] for a member of the organisation. Membership elsewhere is not revealed.
pub async fn create(
    db: &mut PgConnection,
    scope: &Scope,
    caller: &Principal,
    org: OrgId,
    email: &str,
    role: Role,
    text: impl FnOnce(InviteId, &str) -> String,
) -> Result<(Invite, Option<EnqueuedJob>)> {
    // 1. Lock the organisation and refuse its members.
    let organization = super::lock(db, scope, org).await?;
    let is_member = sqlx::query_scalar!(
        r#"select exists (
               select from users where org_id = $1 and lower(email) = lower($2) and removed_at is null
           ) as "is_member!""#,
        org as OrgId,
        email,
    )
    .fetch_one(&mut *db)
    .await?;
    if is_member {
        return Err(Error::conflict(
            "already_member",
            "this address belongs to a member of the organization",
        ));
    }

    // 2. Replace an earlier invitation.
    sqlx::query!(
        "update invites
         set revoked_at = now()
         where org_id = $1
           and lower(email) = lower($2)
           and accepted_at is null
           and revoked_at is null",
        org as OrgId,
        email,
    )
    .execute(&mut *db)
    .await?;
    let invite = sqlx::query_as!(
        Invite,
        r#"insert into invites (id, org_id, invited_by, email, role, expires_at)
           values ($1, $2, $3, $4, $5, now() + interval '7 days')
           returning id as "id: InviteId", org_id as "organization_id: OrgId", email, role as "role: Role",
                     invited_by as "invited_by: UserId", created_at, expires_at"#,
        InviteId::new() as InviteId,
        org as OrgId,
        caller.user as UserId,
        email,
        role as Role,
    )
    .fetch_one(&mut *db)
    .await?;

    // 3. Store the mail and its job in the same transaction.
    let mail = NewEmail {
        org,
        kind: "invite",
        subject_id: invite.id.0,
        to: email,
        subject: &format!(
            "You are invited to {}",
            strip_control_chars(&organization.name)
        ),
        body: &text(invite.id, &organization.name),
    };
    let job = mail::enqueue(db, mail).await?;
    Ok((invite, job))
}

/// Replaces control characters, which could break a header.
fn strip_control_chars(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Lists an organisation's open invitations, newest first.
///
/// # Errors
/// [`Error::NotFound`] for an organisation outside the scope.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    org: OrgId,
    page: Page,
) -> Result<PageSlice<Invite>> {
    find_own(db, scope, org).await?;

    let invites = sqlx::query_as!(
        Invite,
        r#"select id as "id: InviteId", org_id as "organization_id: OrgId", email, role as "role: Role",
                  invited_by as "invited_by: UserId", created_at, expires_at
           from invites
           where org_id = $1
             and ($2::uuid is null or org_id = $2)
             and accepted_at is null
             and revoked_at is null
             and expires_at > now()
           order by id desc
           limit $3
           offset $4"#,
        org as OrgId,
        scope.org() as Option<OrgId>,
        page.limit(),
        page.offset(),
    )
    .fetch_all(db)
    .await?;
    Ok(page.slice(invites))
}

/// Revokes an invitation.
///
/// # Errors
/// [`Error::NotFound`] when no invitation of this id is open.
pub async fn revoke(
    db: &mut PgConnection,
    scope: &Scope,
    org: OrgId,
    id: InviteId,
) -> Result<Invite> {
    sqlx::query_as!(
        Invite,
        r#"update invites
           set revoked_at = now()
           where id = $1
             and org_id = $2
             and ($3::uuid is null or org_id = $3)
             and accepted_at is null
             and revoked_at is null
           returning id as "id: InviteId", org_id as "organization_id: OrgId", email, role as "role: Role",
                     invited_by as "invited_by: UserId", created_at, expires_at"#,
        id as InviteId,
        org as OrgId,
        scope.org() as Option<OrgId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("Invite"))
}

/// Finds and locks an open invitation. The caller has its token.
///
/// # Errors
/// [`Error::Gone`] when it was accepted, revoked, or has expired.
pub async fn find_open_unscoped(db: &mut PgConnection, id: InviteId) -> Result<Invite> {
    sqlx::query_as!(
        Invite,
        r#"select id as "id: InviteId", org_id as "organization_id: OrgId", email, role as "role: Role",
                  invited_by as "invited_by: UserId", created_at, expires_at
           from invites
           where id = $1
             and accepted_at is null
             and revoked_at is null
             and expires_at > now()
           for update"#,
        id as InviteId,
    )
    .fetch_optional(db)
    .await?
    .ok_or_else(|| {
        Error::Gone("this invitation was used, revoked, or has expired; ask for another".into())
    })
}

/// Creates the principal of the invited person, with a new user id.
#[must_use]
pub fn invited_principal(invite: &Invite) -> Principal {
    Principal {
        user: UserId::new(),
        org: invite.organization_id,
        role: invite.role,
        email: Some(invite.email.clone()),
        credential: Credential::Session,
    }
}

/// Creates the invited person's account, with a password. The caller has the token.
///
/// # Errors
/// As [`find_open_unscoped`], and [`Error::Conflict`] when the address is in use elsewhere.
pub async fn accept_unscoped(
    db: &mut PgConnection,
    guest: &Principal,
    id: InviteId,
    full_name: Option<&str>,
    password_hash: &str,
) -> Result<()> {
    let invite = find_open_unscoped(db, id).await?;

    let created = sqlx::query!(
        "insert into users (id, org_id, email, full_name, role)
         values ($1, $2, $3, $4, $5)
         on conflict do nothing",
        guest.user as UserId,
        invite.organization_id as OrgId,
        invite.email,
        full_name,
        invite.role as Role,
    )
    .execute(&mut *db)
    .await?;
    if created.rows_affected() == 0 {
        return Err(Error::conflict(
            "email_in_use",
            "this address is in use; its user has to leave their organization first",
        ));
    }

    passwords::set_unscoped(db, invite.organization_id, guest.user, password_hash).await?;
    sqlx::query!(
        "update invites set accepted_at = now() where id = $1",
        id as InviteId
    )
    .execute(db)
    .await?;
    Ok(())
}
