//! Who changed what, and who was turned away. Every change that a request makes leaves one row
//! here, in the change's own transaction: a change without its row cannot be committed by the API,
//! and a row without its change cannot exist.
//!
//! A row says what became different (names of fields and digests), never what it was: the log
//! is read by more people than the things it speaks of.
//!
//! Whom the API turned away is written down as well ([`Refusal`]), in a table of its own: nothing
//! was changed, so nothing hangs on it, whoever writes it may leave some out, and it is forgotten
//! after a time.

use std::net::IpAddr;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::access::{Credential, Principal, Scope};
use crate::error::Result;
use crate::ids::{ApiKeyId, AuditId, OrgId, UserId};

/// How long a refusal is kept, and one of whom nobody knows.
const KEPT: TimeDelta = TimeDelta::days(400);
const NOBODYS_KEPT: TimeDelta = TimeDelta::days(30);
/// Refusals that one round forgets.
const ROUND: i64 = 1_000;

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
    let (kind, key) = kind_of(&actor.principal.credential);
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

/// Somebody who was turned away.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub who: Turned,
    pub ip: Option<IpAddr>,
    pub request_id: Option<String>,
    /// `auth.refused`, `login.failed` or `credential.refused`.
    pub action: &'static str,
    /// Method and pattern of the route.
    pub target: String,
    /// Further ones like it, which have no rows of their own.
    pub left_out: i64,
}

/// Whom a refusal is about.
#[derive(Clone, Debug)]
pub enum Turned {
    /// A caller who may not do this.
    Known(Principal),
    /// Somebody who tried to sign in as this user, or showed what was theirs: a session that has
    /// ended, or this key.
    As(OrgId, UserId, Option<ApiKeyId>),
    /// Nobody is known by what they showed.
    Nobody,
}

impl Turned {
    fn kind(&self) -> &'static str {
        match self {
            Self::Known(principal) => kind_of(&principal.credential).0,
            Self::As(..) | Self::Nobody => "unproven",
        }
    }

    fn key(&self) -> Option<ApiKeyId> {
        match self {
            Self::Known(principal) => kind_of(&principal.credential).1,
            Self::As(_, _, key) => *key,
            Self::Nobody => None,
        }
    }

    fn whose(&self) -> (Option<OrgId>, Option<UserId>) {
        match self {
            Self::Known(principal) => (Some(principal.org), Some(principal.user)),
            Self::As(org, user, _) => (Some(*org), Some(*user)),
            Self::Nobody => (None, None),
        }
    }
}

fn kind_of(credential: &Credential) -> (&'static str, Option<ApiKeyId>) {
    match credential {
        Credential::Session => ("session", None),
        Credential::ApiKey(key) => ("api_key", Some(*key)),
    }
}

/// Writes refusals down, of all organisations at once: nobody asks for it, and some belong to none.
///
/// # Errors
/// [`Error::Unexpected`](crate::Error::Unexpected) from the database.
pub async fn refused_unscoped(db: &mut PgConnection, refusals: &[Refusal]) -> Result<()> {
    let column = |of: fn(&Refusal) -> Option<String>| refusals.iter().map(of).collect::<Vec<_>>();
    let ids: Vec<AuditId> = refusals.iter().map(|_| AuditId::new()).collect();
    let (orgs, users): (Vec<_>, Vec<_>) = refusals.iter().map(|one| one.who.whose()).unzip();
    let kinds: Vec<&str> = refusals.iter().map(|one| one.who.kind()).collect();
    let keys: Vec<Option<ApiKeyId>> = refusals.iter().map(|one| one.who.key()).collect();
    let ips = column(|one| one.ip.map(|ip| ip.to_string()));
    let request_ids = column(|one| one.request_id.clone());
    let actions: Vec<&str> = refusals.iter().map(|one| one.action).collect();
    let targets: Vec<&str> = refusals.iter().map(|one| one.target.as_str()).collect();
    let left_out: Vec<i64> = refusals.iter().map(|one| one.left_out).collect();
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

/// Forgets refusals that are too old, of all organisations: age knows no tenant.
///
/// # Errors
/// [`Error::Unexpected`](crate::Error::Unexpected) from the database.
pub async fn forget_refusals_unscoped(db: &mut PgConnection, now: DateTime<Utc>) -> Result<u64> {
    let mut forgotten = 0;
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
            now - KEPT,
            now - NOBODYS_KEPT,
            ROUND,
        )
        .execute(&mut *db)
        .await?
        .rows_affected();
        forgotten += round;
        if i64::try_from(round).is_ok_and(|rows| rows < ROUND) {
            return Ok(forgotten);
        }
    }
}

/// A row of the log.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "0198c0de-0000-7000-8000-000000000007", "organization_id": "0198c0de-0000-7000-8000-000000000001",
    "actor_user_id": "0198c0de-0000-7000-8000-000000000002", "actor_kind": "session", "api_key_id": null,
    "ip": "203.0.113.7", "request_id": "0198c0de-0000-7000-8000-000000000008", "action": "batch.create",
    "subject_id": "0198c0de-0000-7000-8000-000000000009", "changed": [], "before_digest": null,
    "after_digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "left_out": 0,
    "created_at": "2026-06-09T08:00:00Z"
}))]
pub struct Entry {
    pub id: AuditId,
    /// None when nobody was known by what they showed.
    pub organization_id: Option<OrgId>,
    /// Of one who is `unproven`: whom they tried to sign in as, or whose key or session they
    /// showed when it had ended.
    pub actor_user_id: Option<UserId>,
    /// `session`, `api_key`, `system`, or `unproven` for who is not known.
    pub actor_kind: String,
    pub api_key_id: Option<ApiKeyId>,
    pub ip: Option<String>,
    pub request_id: Option<String>,
    /// The thing and the verb: `batch.create`. Of refusals `auth.refused` (not allowed),
    /// `login.failed` and `credential.refused` (a key or token that is no good).
    pub action: String,
    /// The thing's id; of a refusal the route.
    pub subject_id: String,
    /// Names of the fields that were changed.
    pub changed: Vec<String>,
    /// SHA-256 of the thing as it was, and as it became.
    pub before_digest: Option<String>,
    pub after_digest: Option<String>,
    /// Refusals of the same caller or address that are not listed one by one.
    pub left_out: i64,
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

/// The newest changes and refusals in the caller's sight, at most `limit`.
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
