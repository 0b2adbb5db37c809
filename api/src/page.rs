//! What the queries of lists share: pages, and whose rows a list shows.

use std::str::FromStr;

use peal_shared::access::Role;
use peal_shared::error::FieldError;
use peal_shared::ids::{OrgId, UserId};
use peal_shared::page::{Owners, Page};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::error::{Problem, Result};

const PAGE_SIZE: i64 = 20;
const MAX_PAGE_SIZE: i64 = 100;

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

/// Whether a list shows the caller's own rows alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sight {
    Mine,
    All,
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
