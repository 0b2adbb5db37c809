//! Tools: requests that an agent makes during or after a call.
//!
//! There are two kinds. An MCP server offers several tools: `servers` stores it with its list of
//! tools, `mcp` fetches that list. An HTTP tool is one request to its owner's endpoint:
//! `definitions` stores it, `schema` checks its arguments, `request` builds and sends it. Neither
//! the endpoint nor the model that chooses the arguments is trusted: requests leave through the
//! outbound client (`egress`), arguments must match the schema, and answers are cut to the fields
//! and the size that the owner chose. `credentials` are sealed in the database, added when a
//! request is sent, and redacted from the answer if the endpoint repeats them: neither a model
//! nor a reader of the API sees them.

pub mod definitions;
pub mod mapping;
pub mod mcp;
pub mod request;
pub mod schema;
pub mod servers;
pub mod sweep;
mod usage;

use sqlx::PgConnection;

pub use self::definitions::{NewTool, Tool, ToolMethod};
use crate::access::Scope;
pub use crate::outbound::credentials::{EndpointAuth, EndpointCredentials};
use crate::platform::error::{Error, Result};
use crate::platform::ids::{OrgId, UserId};
use crate::users;

/// Returns the organisation of the future owner of a row, a member visible to the caller.
///
/// # Errors
/// [`Error::NotFound`] when there is no such user.
pub(crate) async fn org_of(db: &mut PgConnection, scope: &Scope, user: UserId) -> Result<OrgId> {
    let org = users::org_of(db, scope, user).await?;
    org.ok_or(Error::NotFound("User"))
}
