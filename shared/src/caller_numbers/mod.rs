//! Caller numbers: the number that a call shows, and the trunk that it uses.
//!
//! A number belongs to a user and to a trunk. Only the platform assigns numbers on its own
//! trunks: a tenant that could add one there could call in the name of another organisation. A
//! number cannot move or be deleted while a batch that may dial uses it. A deleted number keeps
//! its row, which past batches and calls refer to.

pub mod mapping;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;

use crate::access::owner_filter::OwnerFilter;
use crate::access::{Role, Scope};
use crate::agents::Agent;
use crate::platform::e164::E164;
use crate::platform::error::{Error, OnConstraint as _, Result};
use crate::platform::ids::{AgentId, OrgId, PhoneId, TrunkId, UserId};
use crate::platform::page::Page;
use crate::users;

/// A caller number.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Phone)]
pub struct CallerNumber {
    pub id: PhoneId,
    #[schema(value_type = String, example = "+12125550100")]
    pub phone_number: E164,
    pub friendly_name: Option<String>,
    /// The two letters of a country.
    pub country_code: Option<String>,
    pub region: Option<String>,
    pub is_active: bool,
    pub user_id: UserId,
    pub trunk_id: TrunkId,
    pub created_at: DateTime<Utc>,
    #[serde(skip)]
    pub org_id: OrgId,
}

/// A caller number as the operator sees it.
#[derive(Clone, Debug, Serialize)]
pub struct CallerNumberOverview {
    pub id: PhoneId,
    pub phone_number: E164,
    pub is_active: bool,
    pub org_id: OrgId,
    pub organization: String,
    pub trunk_id: TrunkId,
    /// Name of the trunk.
    pub trunk: String,
}

/// Caller number to create.
#[derive(Clone, Debug)]
pub struct NewCallerNumber {
    pub org: OrgId,
    pub user: UserId,
    pub trunk: TrunkId,
    pub number: E164,
}

/// Editable details of a caller number.
#[derive(Clone, Debug, Default)]
pub struct CallerNumberDetails {
    pub friendly_name: Option<String>,
    pub country_code: Option<String>,
    pub region: Option<String>,
    pub is_active: bool,
}

/// Creates a caller number; the same number on the same trunk again is the same row.
pub async fn create_unscoped(db: &mut PgConnection, phone: &NewCallerNumber) -> Result<PhoneId> {
    let id = sqlx::query_scalar!(
        r#"insert into phone_numbers (id, org_id, user_id, trunk_id, phone_number)
           values ($1, $2, $3, $4, $5)
           on conflict (trunk_id, phone_number) do update set is_active = true, deleted_at = null
           returning id as "id: PhoneId""#,
        PhoneId::new() as PhoneId,
        phone.org as OrgId,
        phone.user as UserId,
        phone.trunk as TrunkId,
        phone.number.as_str(),
    )
    .fetch_one(db)
    .await?;
    Ok(id)
}

/// Adds a caller number of a user in the caller's scope, on a trunk of the user's organisation;
/// on one of the platform's only when the caller acts for the platform. A deleted number is
/// restored.
///
/// # Errors
/// [`Error::NotFound`] for a user or trunk outside the scope, [`Error::Forbidden`] on the
/// platform's trunk, [`Error::Conflict`] for a number that exists.
pub async fn add(
    db: &mut PgConnection,
    scope: &Scope,
    user: UserId,
    trunk: Option<TrunkId>,
    number: &E164,
    details: &CallerNumberDetails,
) -> Result<CallerNumber> {
    let org = users::org_of(db, scope, user)
        .await?
        .ok_or(Error::NotFound("User"))?;
    let trunk = match trunk {
        Some(trunk) => check_trunk(db, scope, org, trunk).await?,
        None => find_only_trunk_unscoped(db, org).await?,
    };

    // Restores a deleted number of the organisation; any other existing one is a conflict.
    let id = sqlx::query_scalar!(
        r#"insert into phone_numbers as p (id, org_id, user_id, trunk_id, phone_number, friendly_name,
                                           country_code, region, is_active)
           values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
           on conflict (trunk_id, phone_number) do update
           set user_id = excluded.user_id, friendly_name = excluded.friendly_name,
               country_code = excluded.country_code, region = excluded.region, is_active = excluded.is_active,
               deleted_at = null
           where p.deleted_at is not null
             and p.org_id = excluded.org_id
           returning id as "id: PhoneId""#,
        PhoneId::new() as PhoneId,
        org as OrgId,
        user as UserId,
        trunk as TrunkId,
        number.as_str(),
        details.friendly_name,
        details.country_code,
        details.region,
        details.is_active,
    )
    .fetch_optional(&mut *db)
    .await?
    .ok_or_else(|| {
        Error::conflict(
            "phone_number_taken",
            "the number is on this trunk already: change that one",
        )
    })?;

    find(db, scope, id).await
}

/// Checks that an organisation may add numbers on a trunk.
async fn check_trunk(
    db: &mut PgConnection,
    scope: &Scope,
    org: OrgId,
    trunk: TrunkId,
) -> Result<TrunkId> {
    let owner = sqlx::query_scalar!(
        r#"select org_id as "org_id: OrgId"
           from trunks
           where id = $1
             and deleted_at is null
             and (org_id is null or org_id = $2)"#,
        trunk as TrunkId,
        org as OrgId,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("Trunk"))?;

    if owner.is_none() && scope.org().is_some() {
        return Err(Error::Forbidden(
            "Forbidden: numbers on the platform's trunks are assigned by a super_admin".into(),
        ));
    }
    Ok(trunk)
}

/// Finds the only trunk of an organisation.
async fn find_only_trunk_unscoped(db: &mut PgConnection, org: OrgId) -> Result<TrunkId> {
    let trunks = sqlx::query_scalar!(
        r#"select id as "id: TrunkId" from trunks where org_id = $1 and deleted_at is null limit 2"#,
        org as OrgId,
    )
    .fetch_all(db)
    .await?;

    match trunks.as_slice() {
        [only] => Ok(*only),
        _ => Err(Error::rejected(
            "trunk_needed",
            "send trunk_id: the organization does not have exactly one trunk",
        )),
    }
}

/// Finds a caller number in the caller's scope.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find(db: &mut PgConnection, scope: &Scope, id: PhoneId) -> Result<CallerNumber> {
    sqlx::query_as!(
        CallerNumber,
        r#"select id as "id: PhoneId", org_id as "org_id: OrgId", user_id as "user_id: UserId",
                  trunk_id as "trunk_id: TrunkId", phone_number as "phone_number: E164", friendly_name,
                  country_code, region, is_active, created_at
           from phone_numbers
           where id = $1
             and deleted_at is null
             and ($2::uuid is null or org_id = $2)
             and ($3::uuid is null or user_id = $3)"#,
        id as PhoneId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("Phone number"))
}

/// Lists the caller numbers in the caller's scope, newest first, with their total.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    owners: &OwnerFilter,
    only_active: bool,
    page: Page,
) -> Result<(Vec<CallerNumber>, i64)> {
    let total = sqlx::query_scalar!(
        r#"select count(*) as "n!"
           from phone_numbers p
           where p.deleted_at is null
             and ($1::uuid is null or p.org_id = $1)
             and ($2::uuid is null or p.user_id = $2)
             and ($3::uuid[] is null or p.org_id = any($3))
             and ($4::uuid[] is null or p.user_id = any($4))
             and ($5::text[] is null or exists (select from users u where u.id = p.user_id and u.role = any($5)))
             and (p.is_active or not $6)"#,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        owners.orgs.as_deref() as Option<&[OrgId]>,
        owners.users.as_deref() as Option<&[UserId]>,
        owners.roles.as_deref() as Option<&[Role]>,
        only_active,
    )
    .fetch_one(&mut *db)
    .await?;

    let phones = sqlx::query_as!(
        CallerNumber,
        r#"select p.id as "id: PhoneId", p.org_id as "org_id: OrgId", p.user_id as "user_id: UserId",
                  p.trunk_id as "trunk_id: TrunkId", p.phone_number as "phone_number: E164", p.friendly_name,
                  p.country_code, p.region, p.is_active, p.created_at
           from phone_numbers p
           where p.deleted_at is null
             and ($1::uuid is null or p.org_id = $1)
             and ($2::uuid is null or p.user_id = $2)
             and ($3::uuid[] is null or p.org_id = any($3))
             and ($4::uuid[] is null or p.user_id = any($4))
             and ($5::text[] is null or exists (select from users u where u.id = p.user_id and u.role = any($5)))
             and (p.is_active or not $6)
           order by p.created_at desc, p.id desc
           limit $7
           offset $8"#,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        owners.orgs.as_deref() as Option<&[OrgId]>,
        owners.users.as_deref() as Option<&[UserId]>,
        owners.roles.as_deref() as Option<&[Role]>,
        only_active,
        page.size,
        page.offset(),
    )
    .fetch_all(db)
    .await?;

    Ok((phones, total))
}

/// Lists all caller numbers of the installation, by organisation, for the operator.
pub async fn list_unscoped(db: &mut PgConnection) -> Result<Vec<CallerNumberOverview>> {
    let phones = sqlx::query_as!(
        CallerNumberOverview,
        r#"select p.id as "id: PhoneId", p.phone_number as "phone_number: E164", p.is_active,
                  p.org_id as "org_id: OrgId", o.name as organization,
                  p.trunk_id as "trunk_id: TrunkId", t.name as trunk
           from phone_numbers p
           join organizations o on o.id = p.org_id
           join trunks t on t.id = p.trunk_id
           where p.deleted_at is null
           order by o.name, o.id, p.phone_number, p.id"#,
    )
    .fetch_all(db)
    .await?;
    Ok(phones)
}

/// Locks a caller number in the caller's scope and reads it.
///
/// # Errors
/// [`Error::NotFound`] for a number outside the scope, which is not locked.
pub async fn lock(db: &mut PgConnection, scope: &Scope, id: PhoneId) -> Result<CallerNumber> {
    sqlx::query!(
        "select
         from phone_numbers
         where id = $1
           and ($2::uuid is null or org_id = $2)
           and ($3::uuid is null or user_id = $3)
         for no key update",
        id as PhoneId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(&mut *db)
    .await?
    .ok_or(Error::NotFound("Phone number"))?;

    // Read with a snapshot taken after the lock.
    find(db, scope, id).await
}

/// Changes a locked caller number.
///
/// # Errors
/// As [`add`], and [`Error::Conflict`] when a running batch or a live call needs it as it is.
pub async fn update(
    db: &mut PgConnection,
    scope: &Scope,
    before: &CallerNumber,
    trunk: TrunkId,
    details: &CallerNumberDetails,
) -> Result<CallerNumber> {
    let moves = trunk != before.trunk_id;
    if moves {
        check_trunk(db, scope, before.org_id, trunk).await?;
    }
    // A number in use can neither move nor be switched off.
    if moves || (before.is_active && !details.is_active) {
        check_unused(db, scope, before).await?;
    }

    sqlx::query!(
        "update phone_numbers
         set trunk_id = $2, friendly_name = $3, country_code = $4, region = $5, is_active = $6
         where id = $1",
        before.id as PhoneId,
        trunk as TrunkId,
        details.friendly_name,
        details.country_code,
        details.region,
        details.is_active,
    )
    .execute(&mut *db)
    .await
    .on_constraint("phone_number_is_taken", || {
        Error::conflict(
            "phone_number_taken",
            "the number is on that trunk already: change that one",
        )
    })?;

    find(db, scope, before.id).await
}

/// Deletes a caller number with its mapping. Past batches and calls keep referring to it.
///
/// # Errors
/// [`Error::NotFound`], or [`Error::Conflict`] while a batch or a call uses it.
pub async fn delete(db: &mut PgConnection, scope: &Scope, id: PhoneId) -> Result<CallerNumber> {
    let phone = lock(db, scope, id).await?;
    check_unused(db, scope, &phone).await?;

    sqlx::query!(
        "delete from phone_mappings where phone_id = $1",
        id as PhoneId
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!(
        "update phone_numbers set is_active = false, deleted_at = now() where id = $1",
        id as PhoneId,
    )
    .execute(db)
    .await?;
    Ok(phone)
}

/// Refuses when a batch that may dial, or a call, uses a number that was found in the scope.
async fn check_unused(db: &mut PgConnection, _scope: &Scope, phone: &CallerNumber) -> Result<()> {
    let used = sqlx::query!(
        r#"select (select b.batch_name
                   from call_batches b
                   where b.caller_phone_id = $1
                     and b.status in ('scheduled', 'in_progress', 'paused')
                   order by b.id
                   limit 1) as batch,
                  exists (select from calls c where c.org_id = $2 and c.phone_id = $1 and c.live)
                  or exists (select from calls c where c.org_id = $2 and c.phone_id = $1 and c.queued)
                      as "on_call!""#,
        phone.id as PhoneId,
        phone.org_id as OrgId,
    )
    .fetch_one(db)
    .await?;

    let reason = match (used.batch, used.on_call) {
        (Some(batch), _) => {
            format!("the batch \"{batch}\" uses it: stop the batch first")
        }
        (None, true) => "calls from it are in progress: let them end first".to_owned(),
        (None, false) => return Ok(()),
    };
    Err(Error::conflict(
        "phone_in_use",
        format!("the phone number is in use: {reason}"),
    ))
}

/// Finds the caller number of a call without an explicit one: the agent's oldest active mapped
/// number, else the user's oldest active one.
///
/// # Errors
/// [`Error::Rejected`] when there is none.
pub async fn default_number(
    db: &mut PgConnection,
    scope: &Scope,
    agent: &Agent,
    user: UserId,
) -> Result<CallerNumber> {
    // Mapped numbers come first.
    let phone = sqlx::query_as!(
        CallerNumber,
        r#"select p.id as "id!: PhoneId", p.org_id as "org_id!: OrgId", p.user_id as "user_id!: UserId",
                  p.trunk_id as "trunk_id!: TrunkId", p.phone_number as "phone_number!: E164", p.friendly_name,
                  p.country_code, p.region, p.is_active as "is_active!", p.created_at as "created_at!"
           from phone_numbers p
           left join phone_mappings m on m.phone_id = p.id and m.agent_id = $1
           where p.org_id = $2
             and ($3::uuid is null or p.org_id = $3)
             and (m.id is not null or p.user_id = $4)
             and p.is_active
           order by m.id is null, p.created_at, p.id
           limit 1"#,
        agent.id as AgentId,
        agent.org_id as OrgId,
        scope.org() as Option<OrgId>,
        user as UserId,
    )
    .fetch_optional(db)
    .await?;

    phone.ok_or_else(|| {
        Error::rejected(
            "no_line",
            "there is no active phone number to call from: map one to the agent, add one, or send phone_number_id",
        )
    })
}
