//! Feature flags of users. Every feature is on by default. The routes that a flag closes are in
//! [`Feature`](crate::access::permissions::Feature); they are closed to sessions and API keys alike.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use crate::access::permissions::Feature;
use crate::access::{Principal, Scope};
use crate::platform::error::{Error, Result};
use crate::platform::ids::{OrgId, UserId};
use crate::users;

/// Flags of a user, by name.
pub type FeatureFlags = BTreeMap<&'static str, bool>;

/// Returns a user's organisation and flags.
///
/// # Errors
/// [`Error::NotFound`] for a user outside the scope.
pub async fn for_user(
    db: &mut PgConnection,
    scope: &Scope,
    user: UserId,
) -> Result<(OrgId, FeatureFlags)> {
    let row = sqlx::query!(
        r#"select u.org_id as "org_id: OrgId",
                  array(select flag from feature_flags f where f.user_id = u.id and not f.enabled) as "off!"
           from users u
           where u.id = $1
             and u.removed_at is null
             and ($2::uuid is null or u.org_id = $2)
             and ($3::uuid is null or u.id = $3)"#,
        user as UserId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("User"))?;

    let is_on = |feature: Feature| !row.off.iter().any(|name| name == feature.as_str());
    let flags = Feature::ALL.map(|feature| (feature.as_str(), is_on(feature)));
    Ok((row.org_id, flags.into()))
}

/// Sets some of a user's flags; the others stay. Returns the flags before and after.
///
/// # Errors
/// As [`for_user`]; [`Error::Forbidden`] for a user whose role is above the caller's.
pub async fn set_flags(
    db: &mut PgConnection,
    scope: &Scope,
    caller: &Principal,
    user: UserId,
    wanted: &[(Feature, bool)],
) -> Result<(OrgId, FeatureFlags, FeatureFlags)> {
    let (org, before) = for_user(db, scope, user).await?;
    users::check_rank(db, scope, caller, user).await?;

    let (names, enabled): (Vec<String>, Vec<bool>) = wanted
        .iter()
        .map(|(feature, enabled)| (feature.as_str().to_owned(), *enabled))
        .unzip();
    sqlx::query!(
        "insert into feature_flags (org_id, user_id, flag, enabled)
         select $1, $2, wanted.flag, wanted.enabled
         from unnest($3::text[], $4::bool[]) as wanted (flag, enabled)
         on conflict (user_id, flag) do update set enabled = excluded.enabled, updated_at = now()",
        org as OrgId,
        user as UserId,
        &names,
        &enabled,
    )
    .execute(&mut *db)
    .await?;

    let (_org, after) = for_user(db, scope, user).await?;
    Ok((org, before, after))
}
