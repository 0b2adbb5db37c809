//! What lists share: pages, whose rows a list shows, and how an answer says that there are more.
//!
//! A list whose answer counts all rows (`total`) is read by pages of 20. Any other one shows up
//! to a thousand rows when no page is asked for, and says `X-Truncated: true` when there are
//! more behind those that it shows.

use std::str::FromStr;

use axum::Json;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use peal_shared::access::{Principal, Role, Scope};
use peal_shared::error::FieldError;
use peal_shared::ids::{OrgId, UserId};
use peal_shared::page::{Owners, Page, Slice};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::error::{Problem, Result};

const PAGE_SIZE: i64 = 20;
const MAX_PAGE_SIZE: i64 = 100;
/// Says that there are more rows behind those of the answer.
pub const X_TRUNCATED: HeaderName = HeaderName::from_static("x-truncated");

/// The page that a query asks for.
///
/// # Errors
/// When it is out of bounds.
pub fn page(number: Option<i64>, size: Option<i64>) -> Result<Page> {
    let page = Page {
        number: number.unwrap_or(1),
        size: size.unwrap_or(PAGE_SIZE),
    };
    if page.number < 1 {
        return Err(query_field("page", "must be 1 or more"));
    }
    if !(1..=MAX_PAGE_SIZE).contains(&page.size) {
        return Err(query_field("page_size", "must be between 1 and 100"));
    }
    Ok(page)
}

/// The page that a query asks for, or the whole list when it asks for none.
///
/// # Errors
/// When it is out of bounds.
pub fn page_or_whole(number: Option<i64>, size: Option<i64>) -> Result<Page> {
    match (number, size) {
        (None, None) => Ok(Page::WHOLE),
        _ => page(number, size),
    }
}

/// The answer of a list that may have more rows than it shows.
pub struct Listed<T> {
    body: T,
    has_more: bool,
}

impl<T> Listed<T> {
    pub fn new(body: T, has_more: bool) -> Self {
        Self { body, has_more }
    }

    /// The rows, in the body that they are answered in.
    pub fn of<R>(slice: Slice<R>, body: impl FnOnce(Vec<R>) -> T) -> Self {
        Self::new(body(slice.rows), slice.has_more)
    }
}

impl<T> From<Slice<T>> for Listed<Vec<T>> {
    fn from(slice: Slice<T>) -> Self {
        Self::new(slice.rows, slice.has_more)
    }
}

impl<T: Serialize> IntoResponse for Listed<T> {
    fn into_response(self) -> Response {
        let mut response = Json(self.body).into_response();
        if self.has_more {
            let yes = HeaderValue::from_static("true");
            response.headers_mut().insert(X_TRUNCATED, yes);
        }
        response
    }
}

/// Whether a list shows the caller's own rows alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sight {
    Mine,
    All,
}

/// Which page of a list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Paging {
    /// From 1, which is the default.
    #[param(minimum = 1)]
    pub page: Option<i64>,
    /// 20 unless told.
    #[param(minimum = 1, maximum = 100)]
    pub page_size: Option<i64>,
}

/// Which page of a list that is answered as a whole unless a page is asked for.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Part {
    /// From 1. Without this and `page_size`, the first 1000 rows are listed.
    #[param(minimum = 1)]
    page: Option<i64>,
    /// 20 unless told.
    #[param(minimum = 1, maximum = 100)]
    page_size: Option<i64>,
}

impl Part {
    /// The page.
    ///
    /// # Errors
    /// When it is out of bounds.
    pub fn page(&self) -> Result<Page> {
        page_or_whole(self.page, self.page_size)
    }
}

/// Pages as in [`Paging`], which cannot be flattened into a query. Lists are separated by
/// commas. They narrow what the caller's role allows.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Browse {
    /// From 1, which is the default.
    #[param(minimum = 1)]
    pub page: Option<i64>,
    /// 20 unless told.
    #[param(minimum = 1, maximum = 100)]
    pub page_size: Option<i64>,
    /// One's own, or all in sight, which is the default.
    pub scope: Option<Sight>,
    /// Ids, separated by commas.
    organization_ids: Option<String>,
    /// Ids, separated by commas.
    owner_user_ids: Option<String>,
    /// Of `user`, `org_admin` and `super_admin`, separated by commas.
    platform_roles: Option<String>,
}

impl Browse {
    /// Whether only one's own things are asked for.
    pub fn is_mine(&self) -> bool {
        matches!(self.scope, Some(Sight::Mine))
    }

    /// Whose things are asked for.
    pub fn owners(&self) -> Result<Owners> {
        owners(
            self.organization_ids.as_deref(),
            self.owner_user_ids.as_deref(),
            self.platform_roles.as_deref(),
        )
    }
}

/// Pages as in [`Part`], and whose things are listed. Lists are separated by commas. They narrow
/// what the caller's role allows.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Whose {
    /// From 1. Without this and `page_size`, the newest 1000 are listed.
    #[param(minimum = 1)]
    page: Option<i64>,
    /// 20 unless told.
    #[param(minimum = 1, maximum = 100)]
    page_size: Option<i64>,
    /// A member of the organisation, for its administrators; left out, everybody the caller sees.
    user_id: Option<UserId>,
    /// One's own, or all in sight, which is the default.
    scope: Option<Sight>,
    /// Ids, separated by commas.
    organization_ids: Option<String>,
    /// Ids, separated by commas.
    owner_user_ids: Option<String>,
    /// Of `user`, `org_admin` and `super_admin`, separated by commas.
    platform_roles: Option<String>,
}

impl Whose {
    /// The page.
    ///
    /// # Errors
    /// When it is out of bounds.
    pub fn page(&self) -> Result<Page> {
        page_or_whole(self.page, self.page_size)
    }

    /// The rows that the caller asks for.
    ///
    /// # Errors
    /// When the caller may not ask for somebody else's, or an item of a list is none.
    pub fn rows(&self, caller: &Principal) -> Result<(Scope, Owners)> {
        let mut owners = owners(
            self.organization_ids.as_deref(),
            self.owner_user_ids.as_deref(),
            self.platform_roles.as_deref(),
        )?;
        let scope = match self.user_id {
            Some(user) => caller.scope_of(user)?,
            None => caller.scope(),
        };
        if matches!(self.scope, Some(Sight::Mine)) {
            let asked = owners.users.take();
            let is_asked = asked.is_none_or(|asked| asked.contains(&caller.user));
            owners.users = Some(is_asked.then_some(caller.user).into_iter().collect());
        }
        Ok((scope, owners))
    }
}

/// The owners whose rows a query asks for. Each list is separated by commas, and narrows what
/// the caller's role allows.
///
/// # Errors
/// When an item is none.
pub fn owners(orgs: Option<&str>, users: Option<&str>, roles: Option<&str>) -> Result<Owners> {
    let role = |text: &str| match text {
        "user" => Ok(Role::User),
        "org_admin" => Ok(Role::OrgAdmin),
        "super_admin" => Ok(Role::SuperAdmin),
        _ => Err(()),
    };
    Ok(Owners {
        orgs: comma_list(orgs, OrgId::from_str)
            .ok_or_else(|| query_field("organization_ids", "must be ids, separated by commas"))?,
        users: comma_list(users, UserId::from_str)
            .ok_or_else(|| query_field("owner_user_ids", "must be ids, separated by commas"))?,
        roles: comma_list(roles, role).ok_or_else(|| {
            query_field("platform_roles", "must be of user, org_admin, super_admin")
        })?,
    })
}

/// The items of a list, or None in it when there is no list; None when an item is wrong.
pub fn comma_list<T, E>(
    text: Option<&str>,
    read: impl Fn(&str) -> std::result::Result<T, E>,
) -> Option<Option<Vec<T>>> {
    let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
        return Some(None);
    };
    text.split(',')
        .map(|item| read(item.trim()).ok())
        .collect::<Option<Vec<T>>>()
        .map(Some)
}

/// A wrong parameter of the query.
pub fn query_field(name: &str, msg: &str) -> Problem {
    Problem::invalid(vec![FieldError::new("query", [name], "value_error", msg)])
}
