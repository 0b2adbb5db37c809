//! Pages of lists, and whose rows a list shows.

use crate::access::Role;
use crate::ids::{OrgId, UserId};

/// One page of a list.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// From 1.
    pub number: i64,
    pub size: i64,
}

impl Page {
    /// How many rows stand on the pages before.
    #[must_use]
    pub fn offset(&self) -> i64 {
        (self.number - 1).saturating_mul(self.size)
    }
}

/// Whose rows to list; each list narrows what the scope allows. Default: everybody's.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    pub orgs: Option<Vec<OrgId>>,
    pub users: Option<Vec<UserId>>,
    pub roles: Option<Vec<Role>>,
}
