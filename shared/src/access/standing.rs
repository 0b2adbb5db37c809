//! Whether callers whose answers take long are still who they were when these began.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::known::Feature;
use super::{Credential, Principal, Role};
use crate::error::Result;
use crate::ids::{ApiKeyId, OrgId, SessionId, UserId};

/// What a caller was let in by, and as.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    org: OrgId,
    user: UserId,
    role: Role,
    key: Option<ApiKeyId>,
    session: Option<SessionId>,
}

impl Standing {
    /// A caller's, with the session of ours that their token belongs to.
    #[must_use]
    pub fn of(principal: &Principal, session: Option<SessionId>) -> Self {
        let key = match principal.credential {
            Credential::ApiKey(key) => Some(key),
            Credential::Session => None,
        };
        Self {
            org: principal.org,
            user: principal.user,
            role: principal.role,
            key,
            session,
        }
    }
}

/// Which of these callers, by their places, would be let in again as who they were, to a feature:
/// the key or session is good, its user a member with the same role, and the feature is on. They
/// have proved who they are before, so there is no scope.
///
/// # Errors
/// [`Error::Unexpected`](crate::Error::Unexpected) from the database.
pub async fn stand_unscoped(
    db: &mut PgConnection,
    callers: &[Standing],
    feature: Feature,
    now: DateTime<Utc>,
) -> Result<HashSet<usize>> {
    let orgs: Vec<OrgId> = callers.iter().map(|one| one.org).collect();
    let users: Vec<UserId> = callers.iter().map(|one| one.user).collect();
    // A key's role is not its user's.
    let role = |one: &Standing| one.key.is_none().then_some(one.role.as_str());
    let roles: Vec<Option<&str>> = callers.iter().map(role).collect();
    let keys: Vec<Option<ApiKeyId>> = callers.iter().map(|one| one.key).collect();
    let sessions: Vec<Option<SessionId>> = callers.iter().map(|one| one.session).collect();
    let standing = sqlx::query_scalar!(
        r#"select asked.n as "n!"
           from unnest($1::uuid[], $2::uuid[], $3::text[], $4::uuid[], $5::uuid[]) with ordinality
                as asked (org_id, user_id, role, key_id, session_id, n)
           join users u on u.id = asked.user_id
           where u.org_id = asked.org_id
             and u.removed_at is null
             and (asked.role is null or u.role = asked.role)
             and (asked.key_id is null
                  or exists (select from api_keys k
                             where k.id = asked.key_id
                               and k.revoked_at is null
                               and (k.expires_at is null or k.expires_at > now())))
             and (asked.session_id is null
                  or exists (select from sessions s
                             where s.id = asked.session_id
                               and s.revoked_at is null
                               and s.expires_at > $7))
             and not exists (select from feature_flags f
                             where f.user_id = u.id
                               and f.flag = $6
                               and not f.enabled)"#,
        &orgs as &[OrgId],
        &users as &[UserId],
        &roles as &[Option<&str>],
        &keys as &[Option<ApiKeyId>],
        &sessions as &[Option<SessionId>],
        feature.as_str(),
        now,
    )
    .fetch_all(db)
    .await?;
    let places = standing
        .into_iter()
        .filter_map(|n| usize::try_from(n - 1).ok());
    Ok(places.collect())
}
