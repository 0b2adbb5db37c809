//! External identities: users whom another issuer authenticates, found by issuer and subject and
//! provisioned with their first token.
//!
//! A user is never found by e-mail address alone: issuers differ in what they verify, and a
//! matching address would hand over another person's account. An invitation is different: its
//! sender named the address on purpose.
//!
//! A user may have been inserted under the id that the issuer knows them by. That does not hold for
//! users with a local password: their id was generated here, and an issuer's subject that equals
//! it is chance or malice.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use sqlx::{Connection as _, PgConnection};

use super::profile_claims::ProfileClaims;
use crate::access::permissions::Permissions;
use crate::access::{Credential, Principal, Role};
use crate::audit;
use crate::audit::{AuditActor, AuditEntry};
use crate::config::SignUpPolicy;
use crate::platform::error::Result;
use crate::platform::ids::{InviteId, OrgId, UserId};

/// Identity in a verified token of another issuer.
#[derive(Clone, Debug)]
pub struct ExternalIdentity {
    pub issuer: String,
    pub subject: String,
    /// `None` when the token has none, or the issuer marks it as unverified.
    pub email: Option<String>,
    /// Profile claims of the token, if it has any.
    pub claims: Option<ProfileClaims>,
    /// Issue time of the token.
    pub issued_at: DateTime<Utc>,
}

impl ExternalIdentity {
    fn subject_key(&self) -> String {
        format!("{}|{}", self.issuer, self.subject)
    }
}

/// Returns the caller of a token, if the user is linked to its subject, or was inserted under the
/// subject as id and has no local password. Stores the token's profile claims when they differ
/// from the stored ones and the token is newer than the one that set those.
pub async fn principal_unscoped(
    db: &mut PgConnection,
    identity: &ExternalIdentity,
) -> Result<Option<Permissions>> {
    let subject_id: Option<UserId> = identity.subject.parse().ok();
    let claims = identity.claims.as_ref();

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
        identity.subject_key(),
        subject_id as Option<UserId>,
        claims.map(|_| identity.issued_at),
        claims.and_then(|claims| claims.phone.as_deref()),
        claims.and_then(|claims| claims.profile_image_url.as_deref()),
        claims.map(|claims| &claims.user_metadata),
        claims.and_then(|claims| claims.full_name.as_deref()),
    )
    .fetch_optional(&mut *db)
    .await?;

    if let (Some(row), Some(claims)) = (&row, claims)
        && row.is_news
    {
        store_claims_unscoped(db, row.id, claims, identity.issued_at).await?;
    }

    Ok(row.map(|row| Permissions {
        principal: Principal {
            user: row.id,
            org: row.org_id,
            role: row.role,
            email: Some(row.email),
            credential: Credential::Session,
        },
        disabled_features: row.off,
        scopes: Vec::new(),
    }))
}

/// Stores the profile claims of a user's token, unless a newer token has set them or the row is
/// locked: a request does not wait for its profile, and the next one carries the same claims.
/// The user is authenticated by the token, so there is no scope.
async fn store_claims_unscoped(
    db: &mut PgConnection,
    user: UserId,
    claims: &ProfileClaims,
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
        claims.phone.as_deref(),
        claims.profile_image_url.as_deref(),
        claims.user_metadata,
        claims.full_name.as_deref(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Creates the user of an unknown identity: in the organisation that invited them, or in an
/// organisation of their own. Does nothing when neither is allowed, when the address is in use,
/// or when another request of the same person came first.
pub async fn provision_unscoped(
    db: &mut PgConnection,
    identity: &ExternalIdentity,
    sign_up: SignUpPolicy,
    ip: Option<IpAddr>,
) -> Result<()> {
    let Some(email) = identity.email.as_deref().filter(|email| is_email(email)) else {
        return Ok(());
    };

    let mut db = db.begin().await?;

    // 1. Lock the latest open invitation of the address.
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

    // 2. Choose the organisation, or create one.
    let (org, role) = match (&invite, sign_up) {
        (Some(invite), _) => (invite.org_id, invite.role),
        (None, SignUpPolicy::Open) => (create_org(&mut db, email).await?, Role::OrgAdmin),
        (None, SignUpPolicy::Invited) => return Ok(()),
    };

    // 3. Insert the user, and accept the invitation.
    let Some(user) = insert_user(&mut db, identity, email, org, role).await? else {
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

    // 4. Write the audit entry, and commit.
    let principal = Principal {
        user,
        org,
        role,
        email: Some(email.to_owned()),
        credential: Credential::Session,
    };
    let actor = AuditActor {
        principal,
        ip,
        request_id: None,
    };
    audit::write_unscoped(
        &mut db,
        &actor,
        &AuditEntry::new("user.sign_up", org, user.0),
    )
    .await?;
    db.commit().await?;
    Ok(())
}

/// Inserts the user, unless another request of the same person came first or the address is in
/// use.
async fn insert_user(
    db: &mut PgConnection,
    identity: &ExternalIdentity,
    email: &str,
    org: OrgId,
    role: Role,
) -> Result<Option<UserId>> {
    let claims = identity.claims.as_ref();
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
        identity.subject_key(),
        claims.and_then(|claims| claims.full_name.as_deref()),
        claims.and_then(|claims| claims.phone.as_deref()),
        claims.and_then(|claims| claims.profile_image_url.as_deref()),
        claims.map(|claims| &claims.user_metadata),
        claims.map(|_| identity.issued_at),
    )
    .fetch_optional(db)
    .await?;
    Ok(user)
}

/// Creates an organisation for one person, named after their address.
async fn create_org(db: &mut PgConnection, email: &str) -> Result<OrgId> {
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

/// True for a syntactically valid e-mail address.
#[must_use]
pub fn is_email(text: &str) -> bool {
    text.len() <= 320
        && text.parse::<lettre::Address>().is_ok()
        && !text.chars().any(char::is_whitespace)
}
