//! Tools: what an agent can do during or after a call besides talking.
//!
//! There are two kinds. An MCP server offers several tools: `servers` keeps it with the list it
//! gave, `mcp` asks it for that list. An HTTP tool is one request to its owner's endpoint: `definitions`
//! keeps it, `schema` says which arguments it takes, `request` makes and sends it. Both the
//! endpoint and the model that chooses the arguments are strangers: requests leave through the
//! gate (`egress`), arguments must fit the schema, and answers are cut to the fields and the
//! size that their owner asked for. `credentials` are sealed in the database, added when a
//! request leaves, and taken out of the answer should the endpoint repeat them: neither a
//! model nor a reader of the API sees them.

pub mod credentials;
pub mod definitions;
pub mod mapping;
pub mod mcp;
pub mod request;
pub mod schema;
pub mod servers;
pub mod sweep;
mod usage;

use sqlx::PgConnection;

pub use self::credentials::{Auth, Credentials};
pub use self::definitions::{NewTool, Tool, ToolMethod};
use crate::access::Scope;
use crate::error::{Error, Result};
use crate::ids::{OrgId, UserId};
use crate::users;

/// The organisation of a member in the caller's sight, who is to own something.
///
/// # Errors
/// [`Error::NotFound`] when there is no such user.
pub(crate) async fn org_of(db: &mut PgConnection, scope: &Scope, user: UserId) -> Result<OrgId> {
    let org = users::org_of(db, scope, user).await?;
    org.ok_or(Error::NotFound("User"))
}
