//! Query parameters and responses shared by lists: pages, owners of rows, `X-Truncated`.
//!
//! A list whose response counts all rows (`total`) has pages of 20. Any other list returns up to
//! a thousand rows when no page is requested, and `X-Truncated: true` when more rows follow.

use std::str::FromStr;

use axum::Json;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use peal_shared::access::owner_filter::OwnerFilter;
use peal_shared::access::{Principal, Role, Scope};
use peal_shared::platform::error::FieldError;
use peal_shared::platform::ids::{OrgId, UserId};
use peal_shared::platform::page::{Page, PageSlice};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::http::error::{Problem, Result};

const DEFAULT_PAGE_SIZE: i64 = 20;
const MAX_PAGE_SIZE: i64 = 100;
/// Header of a response after which more rows follow.
pub const X_TRUNCATED: HeaderName = HeaderName::from_static("x-truncated");

/// Parses the requested page.
///
/// # Errors
/// The page is out of bounds.
pub fn parse_page(number: Option<i64>, size: Option<i64>) -> Result<Page> {
    let page = Page {
        number: number.unwrap_or(1),
        size: size.unwrap_or(DEFAULT_PAGE_SIZE),
    };
    if page.number < 1 {
        return Err(query_error("page", "must be 1 or more"));
    }
    if !(1..=MAX_PAGE_SIZE).contains(&page.size) {
        return Err(query_error("page_size", "must be between 1 and 100"));
    }
    Ok(page)
}

/// Parses the requested page; without one, the whole list.
///
/// # Errors
/// The page is out of bounds.
pub fn parse_page_or_whole(number: Option<i64>, size: Option<i64>) -> Result<Page> {
    match (number, size) {
        (None, None) => Ok(Page::WHOLE),
        _ => parse_page(number, size),
    }
}

/// Response of a list that may have more rows than it shows.
pub struct ListResponse<T> {
    body: T,
    has_more: bool,
}

impl<T> ListResponse<T> {
    pub fn new(body: T, has_more: bool) -> Self {
        Self { body, has_more }
    }

    /// Wraps the rows in their body.
    pub fn from_slice<R>(slice: PageSlice<R>, body: impl FnOnce(Vec<R>) -> T) -> Self {
        Self::new(body(slice.rows), slice.has_more)
    }
}

impl<T> From<PageSlice<T>> for ListResponse<Vec<T>> {
    fn from(slice: PageSlice<T>) -> Self {
        Self::new(slice.rows, slice.has_more)
    }
}

impl<T: Serialize> IntoResponse for ListResponse<T> {
    fn into_response(self) -> Response {
        let mut response = Json(self.body).into_response();
        if self.has_more {
            let yes = HeaderValue::from_static("true");
            response.headers_mut().insert(X_TRUNCATED, yes);
        }
        response
    }
}

/// Rows that a list shows: the caller's own, or all visible ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Sight)]
pub enum Visibility {
    Mine,
    All,
}

/// Page of a list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageParams {
    /// From 1, the default.
    #[param(minimum = 1)]
    pub page: Option<i64>,
    /// 20 by default.
    #[param(minimum = 1, maximum = 100)]
    pub page_size: Option<i64>,
}

/// Page of a list that is returned whole unless a page is requested.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// From 1. Without this and `page_size`, the first 1000 rows are listed.
    #[param(minimum = 1)]
    page: Option<i64>,
    /// 20 by default.
    #[param(minimum = 1, maximum = 100)]
    page_size: Option<i64>,
}

impl ListParams {
    /// Parses the requested page.
    ///
    /// # Errors
    /// The page is out of bounds.
    pub fn parse_page(&self) -> Result<Page> {
        parse_page_or_whole(self.page, self.page_size)
    }
}

/// Pages as in [`PageParams`], which cannot be flattened into a query. Lists are separated by
/// commas and narrow what the caller's role allows.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PagedOwnedListParams {
    /// From 1, the default.
    #[param(minimum = 1)]
    pub page: Option<i64>,
    /// 20 by default.
    #[param(minimum = 1, maximum = 100)]
    pub page_size: Option<i64>,
    /// `mine` for the caller's own, `all` for all visible ones; `all` by default.
    pub scope: Option<Visibility>,
    /// Ids, separated by commas.
    organization_ids: Option<String>,
    /// Ids, separated by commas.
    owner_user_ids: Option<String>,
    /// Of `user`, `org_admin` and `super_admin`, separated by commas.
    platform_roles: Option<String>,
}

impl PagedOwnedListParams {
    /// True when only the caller's own rows are requested.
    pub fn is_own_only(&self) -> bool {
        matches!(self.scope, Some(Visibility::Mine))
    }

    /// Parses the requested owners.
    pub fn parse_owners(&self) -> Result<OwnerFilter> {
        parse_owners(
            self.organization_ids.as_deref(),
            self.owner_user_ids.as_deref(),
            self.platform_roles.as_deref(),
        )
    }
}

/// Pages as in [`ListParams`], and the owners of the rows. Lists are separated by commas and
/// narrow what the caller's role allows.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OwnedListParams {
    /// From 1. Without this and `page_size`, the newest 1000 are listed.
    #[param(minimum = 1)]
    page: Option<i64>,
    /// 20 by default.
    #[param(minimum = 1, maximum = 100)]
    page_size: Option<i64>,
    /// A member of the organisation, for its administrators; when left out, all visible users.
    user_id: Option<UserId>,
    /// `mine` for the caller's own, `all` for all visible ones; `all` by default.
    scope: Option<Visibility>,
    /// Ids, separated by commas.
    organization_ids: Option<String>,
    /// Ids, separated by commas.
    owner_user_ids: Option<String>,
    /// Of `user`, `org_admin` and `super_admin`, separated by commas.
    platform_roles: Option<String>,
}

impl OwnedListParams {
    /// Parses the requested page.
    ///
    /// # Errors
    /// The page is out of bounds.
    pub fn parse_page(&self) -> Result<Page> {
        parse_page_or_whole(self.page, self.page_size)
    }

    /// Resolves the requested rows.
    ///
    /// # Errors
    /// The caller may not see another user's rows, or an item of a list is invalid.
    pub fn scope_and_owners(&self, caller: &Principal) -> Result<(Scope, OwnerFilter)> {
        let mut owners = parse_owners(
            self.organization_ids.as_deref(),
            self.owner_user_ids.as_deref(),
            self.platform_roles.as_deref(),
        )?;
        let scope = match self.user_id {
            Some(user) => caller.scope_of(user)?,
            None => caller.scope(),
        };
        if matches!(self.scope, Some(Visibility::Mine)) {
            let requested = owners.users.take();
            let includes_caller = requested.is_none_or(|users| users.contains(&caller.user));
            owners.users = Some(includes_caller.then_some(caller.user).into_iter().collect());
        }
        Ok((scope, owners))
    }
}

/// Parses the requested owners. Each list is separated by commas and narrows what the caller's
/// role allows.
///
/// # Errors
/// An item is invalid.
pub fn parse_owners(
    orgs: Option<&str>,
    users: Option<&str>,
    roles: Option<&str>,
) -> Result<OwnerFilter> {
    let role = |text: &str| match text {
        "user" => Ok(Role::User),
        "org_admin" => Ok(Role::OrgAdmin),
        "super_admin" => Ok(Role::SuperAdmin),
        _ => Err(()),
    };
    Ok(OwnerFilter {
        orgs: comma_list(orgs, OrgId::from_str)
            .ok_or_else(|| query_error("organization_ids", "must be ids, separated by commas"))?,
        users: comma_list(users, UserId::from_str)
            .ok_or_else(|| query_error("owner_user_ids", "must be ids, separated by commas"))?,
        roles: comma_list(roles, role).ok_or_else(|| {
            query_error("platform_roles", "must be of user, org_admin, super_admin")
        })?,
    })
}

/// Parses a comma-separated list: `Some(None)` when absent, `None` when an item is invalid.
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

/// Error of a query parameter.
pub fn query_error(name: &str, msg: &str) -> Problem {
    Problem::invalid(vec![FieldError::new("query", [name], "value_error", msg)])
}
