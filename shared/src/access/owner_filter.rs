//! Owners of the rows that a list shows.

use crate::access::Role;
use crate::platform::ids::{OrgId, UserId};

/// Filter by owners; each list narrows the scope. Default: all owners.
#[derive(Clone, Debug, Default)]
pub struct OwnerFilter {
    pub orgs: Option<Vec<OrgId>>,
    pub users: Option<Vec<UserId>>,
    pub roles: Option<Vec<Role>>,
}
