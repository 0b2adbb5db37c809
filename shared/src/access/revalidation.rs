//! Revalidation of callers while a long response streams.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::permissions::Feature;
use super::{Credential, Principal, Role};
use crate::platform::error::Result;
use crate::platform::ids::{ApiKeyId, OrgId, SessionId, UserId};

/// Identity and credential of a caller when the response began.
#[derive(Clone, Copy, Debug)]
pub struct CallerSnapshot {
    org: OrgId,
    user: UserId,
    role: Role,
    key: Option<ApiKeyId>,
    session: Option<SessionId>,
}

impl CallerSnapshot {
    /// Takes a snapshot of a caller, with the local session that their token belongs to.
    #[must_use]
    pub fn new(principal: &Principal, session: Option<SessionId>) -> Self {
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

/// Returns the indexes of the callers that are still authorized for a feature: the key or session
/// is valid, its user is a member with the same role, and the feature is on. They were
/// authenticated before, so there is no scope.
pub async fn still_authorized_unscoped(
    db: &mut PgConnection,
    callers: &[CallerSnapshot],
    feature: Feature,
    now: DateTime<Utc>,
) -> Result<HashSet<usize>> {
    let orgs: Vec<OrgId> = callers.iter().map(|caller| caller.org).collect();
    let users: Vec<UserId> = callers.iter().map(|caller| caller.user).collect();
    // A key's role is not its user's.
    let role = |caller: &CallerSnapshot| caller.key.is_none().then_some(caller.role.as_str());
    let roles: Vec<Option<&str>> = callers.iter().map(role).collect();
    let keys: Vec<Option<ApiKeyId>> = callers.iter().map(|caller| caller.key).collect();
    let sessions: Vec<Option<SessionId>> = callers.iter().map(|caller| caller.session).collect();

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

    let indexes = standing
        .into_iter()
        .filter_map(|n| usize::try_from(n - 1).ok());
    Ok(indexes.collect())
}
