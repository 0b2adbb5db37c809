//! Sessions of the local login: opened with a password, ended by their user, by a changed
//! password, by removal from the organisation, or by age.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;

use crate::access::permissions::Permissions;
use crate::access::{Credential, Principal, Role};
use crate::platform::error::Result;
use crate::platform::ids::{OrgId, SessionId, UserId};

/// An open session.
#[derive(Clone, Copy, Debug)]
pub struct LoginSession {
    pub id: SessionId,
    pub user: UserId,
    pub opened_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

/// Opens a session for a principal whose password was just verified.
pub async fn open_unscoped(
    db: &mut PgConnection,
    principal: &Principal,
    now: DateTime<Utc>,
    ttl: Duration,
) -> Result<LoginSession> {
    let session = LoginSession {
        id: SessionId::new(),
        user: principal.user,
        opened_at: now,
        expires_at: now + TimeDelta::from_std(ttl).unwrap_or(TimeDelta::hours(1)),
    };
    sqlx::query!(
        "insert into sessions (id, org_id, user_id, created_at, expires_at) values ($1, $2, $3, $4, $5)",
        session.id as SessionId,
        principal.org as OrgId,
        principal.user as UserId,
        session.opened_at,
        session.expires_at,
    )
    .execute(db)
    .await?;
    Ok(session)
}

/// Returns the caller of a session, unless it has ended or its user is no longer a member.
pub async fn principal_unscoped(
    db: &mut PgConnection,
    session: SessionId,
    user: UserId,
    now: DateTime<Utc>,
) -> Result<Option<Permissions>> {
    let row = sqlx::query!(
        r#"select u.org_id as "org_id: OrgId", u.email, u.role as "role: Role",
                  array(select flag from feature_flags f where f.user_id = u.id and not f.enabled) as "off!"
           from sessions s
           join users u on u.id = s.user_id
           where s.id = $1
             and s.user_id = $2
             and s.revoked_at is null
             and s.expires_at > $3
             and u.removed_at is null"#,
        session as SessionId,
        user as UserId,
        now,
    )
    .fetch_optional(db)
    .await?;

    Ok(row.map(|row| Permissions {
        principal: Principal {
            user,
            org: row.org_id,
            role: row.role,
            email: Some(row.email),
            credential: Credential::Session,
        },
        disabled_features: row.off,
        scopes: Vec::new(),
    }))
}

/// Organisation of a session, ended or not.
pub async fn org_of_unscoped(
    db: &mut PgConnection,
    session: SessionId,
    user: UserId,
) -> Result<Option<OrgId>> {
    let org = sqlx::query_scalar!(
        r#"select org_id as "org_id: OrgId" from sessions where id = $1 and user_id = $2"#,
        session as SessionId,
        user as UserId,
    )
    .fetch_optional(db)
    .await?;
    Ok(org)
}

/// Ends one session of a user.
pub async fn end_unscoped(db: &mut PgConnection, user: UserId, session: SessionId) -> Result<()> {
    sqlx::query!(
        "update sessions set revoked_at = now() where id = $1 and user_id = $2 and revoked_at is null",
        session as SessionId,
        user as UserId,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Ends every session of a user except one. Returns their number.
pub async fn end_all_unscoped(
    db: &mut PgConnection,
    user: UserId,
    but: Option<SessionId>,
) -> Result<u64> {
    let ended = sqlx::query!(
        "update sessions
         set revoked_at = now()
         where user_id = $1
           and revoked_at is null
           and ($2::uuid is null or id <> $2)",
        user as UserId,
        but as Option<SessionId>,
    )
    .execute(db)
    .await?;
    Ok(ended.rows_affected())
}

/// Deletes sessions that expired a day ago, of all organisations.
pub async fn purge_expired_unscoped(db: &mut PgConnection, now: DateTime<Utc>) -> Result<u64> {
    let forgotten = sqlx::query!(
        "delete from sessions where expires_at < $1",
        now - TimeDelta::days(1)
    )
    .execute(db)
    .await?;
    Ok(forgotten.rows_affected())
}
