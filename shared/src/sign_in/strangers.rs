//! People whom another issuer vouches for: found by issuer and subject, taken in with their
//! first token.
//!
//! A user is never found by e-mail address alone: issuers differ in what they verify, and an
//! address that matches would hand over somebody else's account. An invitation is different:
//! whoever sent it named the address on purpose.
//!
//! A user may have been entered under the id that the issuer knows them by. That is not so of
//! whom we gave a password: their id is ours, and an issuer's subject that equals it is chance
//! or malice.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use sqlx::{Connection as _, PgConnection};

use super::told::Told;
use crate::access::known::Known;
use crate::access::{Credential, Principal, Role};
use crate::audit::{self, Actor, Note};
use crate::config::SignUp;
use crate::error::Result;
use crate::ids::{InviteId, OrgId, UserId};

/// Whom a genuine token of another issuer names.
#[derive(Clone, Debug)]
pub struct Stranger {
    pub issuer: String,
    pub subject: String,
    /// None when there is none, or when the issuer says that nobody verified it.
    pub email: Option<String>,
    /// What the token tells besides; None when it is no such token.
    pub told: Option<Told>,
    /// When the token was issued.
    pub issued_at: DateTime<Utc>,
}

impl Stranger {
    fn key(&self) -> String {
        format!("{}|{}", self.issuer, self.subject)
    }
}

/// The caller behind a token, if they have been here before, or were entered under the token's
/// subject and have no password of ours. What the token tells of them is kept when it is news,
/// and the token no older than the last one that told some.
///
/// # Errors
/// [`crate::Error::Unexpected`] from the database.
pub async fn principal_unscoped(
    db: &mut PgConnection,
    stranger: &Stranger,
) -> Result<Option<Known>> {
    let entered: Option<UserId> = stranger.subject.parse().ok();
    let told = stranger.told.as_ref();
    let row = sqlx::query!(
        r#"select id as "id: UserId", org_id as "org_id: OrgId", email, role as "role: Role",
                  array(select flag from feature_flags f where f.user_id = users.id and not f.enabled) as "off!",
                  coalesce(told_at < $3, $3::timestamptz is not null)
                  and (phone, profile_image_url, user_metadata, full_name)
                      is distinct from ($4::text, $5::text, $6::jsonb, coalesce($7::text, full_name)) as "is_news!"
           from users
           where removed_at is null
             and (external_subject = $1
                  or (external_subject is null
                      and id = $2
                      and not exists (select from passwords p where p.user_id = users.id)))
           order by external_subject is null
           limit 1"#,
        stranger.key(),
        entered as Option<UserId>,
        told.map(|_| stranger.issued_at),
        told.and_then(|told| told.phone.as_deref()),
        told.and_then(|told| told.profile_image_url.as_deref()),
        told.map(|told| &told.user_metadata),
        told.and_then(|told| told.full_name.as_deref()),
    )
    .fetch_optional(&mut *db)
    .await?;
    if let (Some(row), Some(told)) = (&row, told)
        && row.is_news
    {
        keep_unscoped(db, row.id, told, stranger.issued_at).await?;
    }
    Ok(row.map(|row| Known {
        principal: Principal {
            user: row.id,
            org: row.org_id,
            role: row.role,
            email: Some(row.email),
            credential: Credential::Session,
        },
        off: row.off,
        scopes: Vec::new(),
    }))
}

/// Keeps what a token told of its user, unless a newer one was quicker or somebody holds the row:
/// nobody waits for that to be let in, and the next request tells it again. The user is known by
/// the token, which nobody else has.
async fn keep_unscoped(
    db: &mut PgConnection,
    user: UserId,
    told: &Told,
    issued_at: DateTime<Utc>,
) -> Result<()> {
    sqlx::query!(
        "update users
         set phone = $3, profile_image_url = $4, user_metadata = $5, full_name = coalesce($6, full_name),
             told_at = $2
         where id = (select id
                     from users
                     where id = $1
                       and coalesce(told_at < $2, true)
                     for no key update skip locked)",
        user as UserId,
        issued_at,
        told.phone.as_deref(),
        told.profile_image_url.as_deref(),
        told.user_metadata,
        told.full_name.as_deref(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Makes a user of somebody who was not here before: where they are invited, or in an
/// organisation of their own. Does nothing when neither may be, when the address is in use, or
/// when another request of the same person was quicker.
///
/// # Errors
/// [`crate::Error::Unexpected`] from the database.
pub async fn take_in_unscoped(
    db: &mut PgConnection,
    stranger: &Stranger,
    sign_up: SignUp,
    ip: Option<IpAddr>,
) -> Result<()> {
    let Some(email) = stranger.email.as_deref().filter(|email| is_email(email)) else {
        return Ok(());
    };
    let mut db = db.begin().await?;
    let invite = sqlx::query!(
        r#"select id as "id: InviteId", org_id as "org_id: OrgId", role as "role: Role"
           from invites
           where lower(email) = lower($1)
             and accepted_at is null
             and revoked_at is null
             and expires_at > now()
           order by created_at desc
           limit 1
           for update"#,
        email,
    )
    .fetch_optional(&mut *db)
    .await?;
    let (org, role) = match (&invite, sign_up) {
        (Some(invite), _) => (invite.org_id, invite.role),
        (None, SignUp::Open) => (found_org(&mut db, email).await?, Role::OrgAdmin),
        (None, SignUp::Invited) => return Ok(()),
    };
    let Some(user) = enter(&mut db, stranger, email, org, role).await? else {
        return Ok(());
    };
    if let Some(invite) = &invite {
        sqlx::query!(
            "update invites set accepted_at = now() where id = $1",
            invite.id as InviteId
        )
        .execute(&mut *db)
        .await?;
    }
    let principal = Principal {
        user,
        org,
        role,
        email: Some(email.to_owned()),
        credential: Credential::Session,
    };
    let actor = Actor {
        principal,
        ip,
        request_id: None,
    };
    audit::write_unscoped(&mut db, &actor, &Note::new("user.sign_up", org, user.0)).await?;
    db.commit().await?;
    Ok(())
}

/// Makes the user, unless another request of the same person was quicker or the address is
/// somebody's.
async fn enter(
    db: &mut PgConnection,
    stranger: &Stranger,
    email: &str,
    org: OrgId,
    role: Role,
) -> Result<Option<UserId>> {
    let told = stranger.told.as_ref();
    let user = sqlx::query_scalar!(
        r#"insert into users (id, org_id, email, role, external_subject, full_name, phone, profile_image_url,
                              user_metadata, told_at)
           values ($1, $2, $3, $4, $5, $6, $7, $8, coalesce($9, '{}'::jsonb), $10)
           on conflict do nothing
           returning id as "id: UserId""#,
        UserId::new() as UserId,
        org as OrgId,
        email,
        role as Role,
        stranger.key(),
        told.and_then(|told| told.full_name.as_deref()),
        told.and_then(|told| told.phone.as_deref()),
        told.and_then(|told| told.profile_image_url.as_deref()),
        told.map(|told| &told.user_metadata),
        told.map(|_| stranger.issued_at),
    )
    .fetch_optional(db)
    .await?;
    Ok(user)
}

/// An organisation for one person, to be renamed by them.
async fn found_org(db: &mut PgConnection, email: &str) -> Result<OrgId> {
    let id = OrgId::new();
    let name: String = email.chars().take(200).collect();
    sqlx::query!(
        "insert into organizations (id, name) values ($1, $2)",
        id as OrgId,
        name,
    )
    .execute(db)
    .await?;
    Ok(id)
}

/// Whether mail could be sent there.
#[must_use]
pub fn is_email(text: &str) -> bool {
    text.len() <= 320
        && text.parse::<lettre::Address>().is_ok()
        && !text.chars().any(char::is_whitespace)
}
