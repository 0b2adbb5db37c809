//! Audit log of changes and denied requests. Every change that a request makes inserts one row,
//! in the change's own transaction: the API cannot commit a change without its row, and a row
//! without its change cannot exist.
//!
//! A row holds the names of the changed fields and digests, never values: more people may read
//! the log than the resources in it.
//!
//! Denied requests ([`Refusal`]) have a table of their own: they change nothing, may be sampled,
//! and are deleted after a retention time.

use std::net::IpAddr;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::access::{Credential, Principal, Scope};
use crate::platform::error::Result;
use crate::platform::ids::{ApiKeyId, AuditId, OrgId, UserId};

/// Retention of denied requests, and of those whose caller is unknown.
const DENIED_RETENTION: TimeDelta = TimeDelta::days(400);
const ANONYMOUS_RETENTION: TimeDelta = TimeDelta::days(30);
/// Denied requests that one statement deletes.
const PURGE_BATCH_ROWS: i64 = 1_000;

/// Caller and origin of a change.
#[derive(Clone, Debug)]
pub struct AuditActor {
    pub principal: Principal,
    pub ip: Option<IpAddr>,
    pub request_id: Option<String>,
}

/// A change to be logged.
#[derive(Clone, Debug)]
pub struct AuditEntry {
    /// Resource and verb: `batch.create`.
    action: &'static str,
    /// The organisation that owns the resource.
    org: OrgId,
    subject: Uuid,
    before: Option<Value>,
    after: Option<Value>,
}

impl AuditEntry {
    /// Describes an action on the resource `subject` of an organisation.
    #[must_use]
    pub fn new(action: &'static str, org: OrgId, subject: Uuid) -> Self {
        Self {
            action,
            org,
            subject,
            before: None,
            after: None,
        }
    }

    /// Adds the resource before the change.
    pub fn before(mut self, resource: &impl Serialize) -> Result<Self> {
        self.before = Some(serde_json::to_value(resource)?);
        Ok(self)
    }

    /// Adds the resource after the change.
    pub fn after(mut self, resource: &impl Serialize) -> Result<Self> {
        self.after = Some(serde_json::to_value(resource)?);
        Ok(self)
    }

    /// Names of the top-level fields whose values differ.
    fn changed_fields(&self) -> Vec<String> {
        let (Some(Value::Object(before)), Some(Value::Object(after))) = (&self.before, &self.after)
        else {
            return Vec::new();
        };

        let mut names: Vec<String> = before
            .keys()
            .chain(after.keys().filter(|name| !before.contains_key(*name)))
            .filter(|name| before.get(*name) != after.get(*name))
            .cloned()
            .collect();
        names.sort_unstable();
        names
    }
}

/// Inserts a change into the log. Its organisation comes from the entry: the change was checked
/// against the caller's scope before.
pub async fn write_unscoped(
    db: &mut PgConnection,
    actor: &AuditActor,
    note: &AuditEntry,
) -> Result<()> {
    let (kind, key) = actor_kind(&actor.principal.credential);
    sqlx::query!(
        "insert into audit_log (id, org_id, actor_user_id, actor_kind, api_key_id, ip, request_id, action,
                                subject_id, before_digest, after_digest, changed)
         values ($1, $2, $3, $4, $5, $6::text::inet, $7, $8, $9, $10, $11, $12)",
        AuditId::new() as AuditId,
        note.org as OrgId,
        actor.principal.user as UserId,
        kind,
        key as Option<ApiKeyId>,
        actor.ip.map(|ip| ip.to_string()),
        actor.request_id,
        note.action,
        note.subject.to_string(),
        digest(note.before.as_ref())?,
        digest(note.after.as_ref())?,
        &note.changed_fields(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// A denied request.
#[derive(Clone, Debug)]
pub struct DeniedRequest {
    pub caller: DeniedCaller,
    pub ip: Option<IpAddr>,
    pub request_id: Option<String>,
    /// `auth.refused`, `login.failed` or `credential.refused`.
    pub action: &'static str,
    /// Method and pattern of the route.
    pub target: String,
    /// Number of similar requests without rows of their own.
    pub left_out: i64,
}

/// Caller of a denied request.
#[derive(Clone, Debug)]
pub enum DeniedCaller {
    /// An authenticated caller without the permission.
    Authenticated(Principal),
    /// A failed sign-in as this user, or a credential of theirs that is no longer valid: a
    /// session, or this key.
    Expired(OrgId, UserId, Option<ApiKeyId>),
    /// A request whose credential names no user.
    Anonymous,
}

impl DeniedCaller {
    fn kind(&self) -> &'static str {
        match self {
            Self::Authenticated(principal) => actor_kind(&principal.credential).0,
            Self::Expired(..) | Self::Anonymous => "unproven",
        }
    }

    fn key(&self) -> Option<ApiKeyId> {
        match self {
            Self::Authenticated(principal) => actor_kind(&principal.credential).1,
            Self::Expired(_, _, key) => *key,
            Self::Anonymous => None,
        }
    }

    fn owner(&self) -> (Option<OrgId>, Option<UserId>) {
        match self {
            Self::Authenticated(principal) => (Some(principal.org), Some(principal.user)),
            Self::Expired(org, user, _) => (Some(*org), Some(*user)),
            Self::Anonymous => (None, None),
        }
    }
}

fn actor_kind(credential: &Credential) -> (&'static str, Option<ApiKeyId>) {
    match credential {
        Credential::Session => ("session", None),
        Credential::ApiKey(key) => ("api_key", Some(*key)),
    }
}

/// Inserts denied requests of all organisations at once. Some belong to none, so there is no scope.
pub async fn record_denied_unscoped(
    db: &mut PgConnection,
    refusals: &[DeniedRequest],
) -> Result<()> {
    let column =
        |of: fn(&DeniedRequest) -> Option<String>| refusals.iter().map(of).collect::<Vec<_>>();

    let ids: Vec<AuditId> = refusals.iter().map(|_| AuditId::new()).collect();
    let (orgs, users): (Vec<_>, Vec<_>) = refusals
        .iter()
        .map(|refusal| refusal.caller.owner())
        .unzip();
    let kinds: Vec<&str> = refusals
        .iter()
        .map(|refusal| refusal.caller.kind())
        .collect();
    let keys: Vec<Option<ApiKeyId>> = refusals
        .iter()
        .map(|refusal| refusal.caller.key())
        .collect();
    let ips = column(|refusal| refusal.ip.map(|ip| ip.to_string()));
    let request_ids = column(|refusal| refusal.request_id.clone());
    let actions: Vec<&str> = refusals.iter().map(|refusal| refusal.action).collect();
    let targets: Vec<&str> = refusals
        .iter()
        .map(|refusal| refusal.target.as_str())
        .collect();
    let left_out: Vec<i64> = refusals.iter().map(|refusal| refusal.left_out).collect();

    sqlx::query!(
        "insert into refusals (id, org_id, actor_user_id, actor_kind, api_key_id, ip, request_id, action, target,
                               left_out)
         select id, org_id, user_id, kind, key_id, ip::inet, request_id, action, target, left_out
         from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::uuid[], $6::text[], $7::text[], $8::text[],
                     $9::text[], $10::bigint[])
              as refused (id, org_id, user_id, kind, key_id, ip, request_id, action, target, left_out)",
        &ids as &[AuditId],
        &orgs as &[Option<OrgId>],
        &users as &[Option<UserId>],
        &kinds as &[&str],
        &keys as &[Option<ApiKeyId>],
        &ips as &[Option<String>],
        &request_ids as &[Option<String>],
        &actions as &[&str],
        &targets as &[&str],
        &left_out,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Deletes denied requests past their retention, of all organisations.
pub async fn purge_denied_unscoped(db: &mut PgConnection, now: DateTime<Utc>) -> Result<u64> {
    let mut deleted = 0;

    loop {
        let round = sqlx::query!(
            "delete from refusals
             where id = any (array(select id
                                   from refusals
                                   where created_at < $1
                                   order by created_at
                                   limit $3
                                   for update skip locked))
                or id = any (array(select id
                                   from refusals
                                   where org_id is null
                                     and created_at < $2
                                   order by created_at
                                   limit $3
                                   for update skip locked))",
            now - DENIED_RETENTION,
            now - ANONYMOUS_RETENTION,
            PURGE_BATCH_ROWS,
        )
        .execute(&mut *db)
        .await?
        .rows_affected();

        deleted += round;
        if i64::try_from(round).is_ok_and(|rows| rows < PURGE_BATCH_ROWS) {
            return Ok(deleted);
        }
    }
}

/// A row of the audit log.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Entry, example = json!({
    "id": "0198c0de-0000-7000-8000-000000000007", "organization_id": "0198c0de-0000-7000-8000-000000000001",
    "actor_user_id": "0198c0de-0000-7000-8000-000000000002", "actor_kind": "session", "api_key_id": null,
    "ip": "203.0.113.7", "request_id": "0198c0de-0000-7000-8000-000000000008", "action": "batch.create",
    "subject_id": "0198c0de-0000-7000-8000-000000000009", "changed": [], "before_digest": null,
    "after_digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "left_out": 0,
    "created_at": "2026-06-09T08:00:00Z"
}))]
pub struct AuditRecord {
    pub id: AuditId,
    /// Null when the credential names no user.
    pub organization_id: Option<OrgId>,
    /// For `unproven`: the user of the failed sign-in, or of the key or session that is no longer
    /// valid.
    pub actor_user_id: Option<UserId>,
    /// `session`, `api_key`, `system`, or `unproven` for an unauthenticated caller.
    pub actor_kind: String,
    pub api_key_id: Option<ApiKeyId>,
    pub ip: Option<String>,
    pub request_id: Option<String>,
    /// Resource and verb: `batch.create`. For denied requests `auth.refused` (not allowed),
    /// `login.failed` and `credential.refused` (an invalid key or token).
    pub action: String,
    /// Id of the resource; for a denied request the route.
    pub subject_id: String,
    /// Names of the changed fields.
    pub changed: Vec<String>,
    /// SHA-256 of the resource before and after the change.
    pub before_digest: Option<String>,
    pub after_digest: Option<String>,
    /// Number of denied requests of the same caller or address that have no rows of their own.
    pub left_out: i64,
    pub created_at: DateTime<Utc>,
}

/// Filter of log rows; `None` does not restrict.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    pub action: Option<String>,
    pub subject: Option<String>,
    pub actor: Option<UserId>,
    pub org: Option<OrgId>,
    pub from: Option<DateTime<Utc>>,
    pub to: Option<DateTime<Utc>>,
    /// Rows older than this one.
    pub before: Option<AuditId>,
}

/// Lists the newest changes and denied requests in the caller's scope, at most `limit`.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    filter: &AuditFilter,
    limit: i64,
) -> Result<Vec<AuditRecord>> {
    let entries = sqlx::query_as!(
        AuditRecord,
        r#"select id as "id!: AuditId", org_id as "organization_id: OrgId", actor_user_id as "actor_user_id: UserId",
                  actor_kind as "actor_kind!", api_key_id as "api_key_id: ApiKeyId", host(ip) as ip, request_id,
                  action as "action!", subject_id as "subject_id!", changed as "changed!",
                  encode(before_digest, 'hex') as before_digest, encode(after_digest, 'hex') as after_digest,
                  left_out as "left_out!", created_at as "created_at!"
           from (
               (select id, org_id, actor_user_id, actor_kind, api_key_id, ip, request_id, action, subject_id, changed,
                       before_digest, after_digest, 0::bigint as left_out, created_at
                from audit_log
                where ($1::uuid is null or org_id = $1)
                  and ($2::uuid is null or actor_user_id = $2)
                  and ($3::text is null or action = $3)
                  and ($4::text is null or subject_id = $4)
                  and ($5::uuid is null or actor_user_id = $5)
                  and ($6::uuid is null or org_id = $6)
                  and ($7::timestamptz is null or created_at >= $7)
                  and ($8::timestamptz is null or created_at < $8)
                  and ($9::uuid is null or id < $9)
                order by id desc
                limit $10)
               union all
               (select id, org_id, actor_user_id, actor_kind, api_key_id, ip, request_id, action, target, '{}'::text[],
                       null, null, left_out, created_at
                from refusals
                -- What no refusal can be is not looked for among them.
                where ($3::text is null or $3 in ('auth.refused', 'login.failed', 'credential.refused'))
                  and ($4::text is null or $4 like '% /%' or $4 = '*')
                  and ($1::uuid is null or org_id = $1)
                  and ($2::uuid is null or actor_user_id = $2)
                  and ($3::text is null or action = $3)
                  and ($4::text is null or target = $4)
                  and ($5::uuid is null or actor_user_id = $5)
                  and ($6::uuid is null or org_id = $6)
                  and ($7::timestamptz is null or created_at >= $7)
                  and ($8::timestamptz is null or created_at < $8)
                  and ($9::uuid is null or id < $9)
                order by id desc
                limit $10)
           ) entries
           order by id desc
           limit $10"#,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        filter.action,
        filter.subject,
        filter.actor as Option<UserId>,
        filter.org as Option<OrgId>,
        filter.from,
        filter.to,
        filter.before as Option<AuditId>,
        limit,
    )
    .fetch_all(db)
    .await?;

    Ok(entries)
}

/// SHA-256 of a resource as JSON. Keys are sorted, so equal resources have equal digests.
fn digest(resource: Option<&Value>) -> Result<Option<Vec<u8>>> {
    resource
        .map(|resource| Ok(Sha256::digest(serde_json::to_vec(resource)?).to_vec()))
        .transpose()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_note_names_the_fields_that_differ() {
        let note = AuditEntry::new("batch.update", OrgId::new(), Uuid::nil())
            .before(&json!({"a": 1, "b": [1], "gone": true}))
            .unwrap()
            .after(&json!({"a": 1, "b": [2], "came": null}))
            .unwrap();
        assert_eq!(note.changed_fields(), ["b", "came", "gone"]);
        let created = AuditEntry::new("batch.create", OrgId::new(), Uuid::nil())
            .after(&json!({"a": 1}))
            .unwrap();
        assert!(created.changed_fields().is_empty());
    }

    #[test]
    fn the_order_of_fields_does_not_change_a_digest() {
        let one = serde_json::from_str(r#"{"a": 1, "b": {"x": 1, "y": 2}}"#).unwrap();
        let other = serde_json::from_str(r#"{"b": {"y": 2, "x": 1}, "a": 1}"#).unwrap();
        assert_eq!(digest(Some(&one)).unwrap(), digest(Some(&other)).unwrap());
        assert!(digest(None).unwrap().is_none());
    }
}
