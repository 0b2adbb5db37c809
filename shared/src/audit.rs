//! Who changed what. Every change that a request makes leaves one row here, in the change's own
//! transaction: a change without its row cannot be committed by the API, and a row without its
//! change cannot exist.
//!
//! A row says what became different (names of fields and digests), never what it was: the log
//! is read by more people than the things it speaks of.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::access::{Credential, Principal, Scope};
use crate::error::Result;
use crate::ids::{ApiKeyId, AuditId, OrgId, UserId};

/// Who makes a change, and from where.
#[derive(Clone, Debug)]
pub struct Actor {
    pub principal: Principal,
    pub ip: Option<IpAddr>,
    pub request_id: Option<String>,
}

/// A change to write down.
#[derive(Clone, Debug)]
pub struct Note {
    /// The thing and the verb: `batch.create`.
    action: &'static str,
    /// The organisation whose thing was changed.
    org: OrgId,
    subject: Uuid,
    before: Option<Value>,
    after: Option<Value>,
}

impl Note {
    /// Something was done to the thing `subject` of an organisation.
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

    /// What the thing was.
    ///
    /// # Errors
    /// [`Error::Unexpected`](crate::Error::Unexpected) when it cannot be written as JSON.
    pub fn before(mut self, thing: &impl Serialize) -> Result<Self> {
        self.before = Some(serde_json::to_value(thing)?);
        Ok(self)
    }

    /// What the thing is.
    ///
    /// # Errors
    /// As [`Self::before`].
    pub fn after(mut self, thing: &impl Serialize) -> Result<Self> {
        self.after = Some(serde_json::to_value(thing)?);
        Ok(self)
    }

    /// The names of the outermost fields whose values differ.
    fn changed(&self) -> Vec<String> {
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

/// Writes a change down, for the organisation that the note names: whoever made the change saw
/// the thing.
///
/// # Errors
/// [`Error::Unexpected`](crate::Error::Unexpected) from the database.
pub async fn write_unscoped(db: &mut PgConnection, actor: &Actor, note: &Note) -> Result<()> {
    let (kind, key) = match actor.principal.credential {
        Credential::Session => ("session", None),
        Credential::ApiKey(key) => ("api_key", Some(key)),
    };
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
        &note.changed(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// A row of the log.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "0198c0de-0000-7000-8000-000000000007", "organization_id": "0198c0de-0000-7000-8000-000000000001",
    "actor_user_id": "0198c0de-0000-7000-8000-000000000002", "actor_kind": "session", "api_key_id": null,
    "ip": "203.0.113.7", "request_id": "0198c0de-0000-7000-8000-000000000008", "action": "batch.create",
    "subject_id": "0198c0de-0000-7000-8000-000000000009", "changed": [], "created_at": "2026-06-09T08:00:00Z"
}))]
pub struct Entry {
    pub id: AuditId,
    pub organization_id: OrgId,
    pub actor_user_id: Option<UserId>,
    /// `session`, `api_key` or `system`.
    pub actor_kind: String,
    pub api_key_id: Option<ApiKeyId>,
    pub ip: Option<String>,
    pub request_id: Option<String>,
    /// The thing and the verb: `batch.create`.
    pub action: String,
    pub subject_id: String,
    /// Names of the fields that were changed.
    pub changed: Vec<String>,
    pub created_at: DateTime<Utc>,
}

/// Which rows to read; what is `None` narrows nothing.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub action: Option<String>,
    pub subject: Option<String>,
    pub actor: Option<UserId>,
    pub org: Option<OrgId>,
    pub from: Option<DateTime<Utc>>,
    pub to: Option<DateTime<Utc>>,
    /// Rows older than this one.
    pub before: Option<AuditId>,
}

/// The newest rows in the caller's sight, at most `limit`.
///
/// # Errors
/// [`Error::Unexpected`](crate::Error::Unexpected) from the database.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<Entry>> {
    let entries = sqlx::query_as!(
        Entry,
        r#"select id as "id: AuditId", org_id as "organization_id: OrgId",
                  actor_user_id as "actor_user_id: UserId", actor_kind, api_key_id as "api_key_id: ApiKeyId",
                  host(ip) as ip, request_id, action, subject_id, changed, created_at
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

/// Keys of JSON objects are sorted, so the same thing has the same digest.
fn digest(thing: Option<&Value>) -> Result<Option<Vec<u8>>> {
    thing
        .map(|thing| Ok(Sha256::digest(serde_json::to_vec(thing)?).to_vec()))
        .transpose()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_note_names_the_fields_that_differ() {
        let note = Note::new("batch.update", OrgId::new(), Uuid::nil())
            .before(&json!({"a": 1, "b": [1], "gone": true}))
            .unwrap()
            .after(&json!({"a": 1, "b": [2], "came": null}))
            .unwrap();
        assert_eq!(note.changed(), ["b", "came", "gone"]);
        let created = Note::new("batch.create", OrgId::new(), Uuid::nil())
            .after(&json!({"a": 1}))
            .unwrap();
        assert!(created.changed().is_empty());
    }

    #[test]
    fn the_order_of_fields_does_not_change_a_digest() {
        let one = serde_json::from_str(r#"{"a": 1, "b": {"x": 1, "y": 2}}"#).unwrap();
        let other = serde_json::from_str(r#"{"b": {"y": 2, "x": 1}, "a": 1}"#).unwrap();
        assert_eq!(digest(Some(&one)).unwrap(), digest(Some(&other)).unwrap());
        assert!(digest(None).unwrap().is_none());
    }
}
