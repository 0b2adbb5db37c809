//! Caller numbers: which number a call shows, and which trunk it leaves through.

use serde::Serialize;
use sqlx::PgConnection;

use crate::access::Scope;
use crate::error::{Error, Result};
use crate::ids::{OrgId, PhoneId, TrunkId, UserId};
use crate::phone::E164;

/// A caller number.
#[derive(Clone, Debug, Serialize)]
pub struct Phone {
    pub id: PhoneId,
    pub org_id: OrgId,
    pub trunk_id: TrunkId,
    pub phone_number: E164,
    pub is_active: bool,
}

/// A caller number to set up.
#[derive(Clone, Debug)]
pub struct NewPhone {
    pub org: OrgId,
    pub user: UserId,
    pub trunk: TrunkId,
    pub number: E164,
}

/// Sets up a caller number; the same number on the same trunk again is the same row.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
pub async fn create_unscoped(db: &mut PgConnection, phone: &NewPhone) -> Result<PhoneId> {
    let id = sqlx::query_scalar!(
        r#"insert into phone_numbers (id, org_id, user_id, trunk_id, phone_number)
           values ($1, $2, $3, $4, $5)
           on conflict (trunk_id, phone_number) do update set is_active = true
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

/// A caller number in the caller's sight.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find(db: &mut PgConnection, scope: &Scope, id: PhoneId) -> Result<Phone> {
    sqlx::query_as!(
        Phone,
        r#"select id as "id: PhoneId", org_id as "org_id: OrgId", trunk_id as "trunk_id: TrunkId",
                  phone_number as "phone_number: E164", is_active
           from phone_numbers
           where id = $1
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

/// The line a call without an explicit one leaves through: the user's oldest active number.
///
/// # Errors
/// [`Error::Rejected`] when the user has none.
pub async fn default_line(db: &mut PgConnection, scope: &Scope, user: UserId) -> Result<Phone> {
    sqlx::query_as!(
        Phone,
        r#"select id as "id: PhoneId", org_id as "org_id: OrgId", trunk_id as "trunk_id: TrunkId",
                  phone_number as "phone_number: E164", is_active
           from phone_numbers
           where user_id = $1
             and is_active
             and ($2::uuid is null or org_id = $2)
           order by created_at, id
           limit 1"#,
        user as UserId,
        scope.org() as Option<OrgId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or_else(|| Error::rejected("no_line", "you have no active phone number to call from"))
}
