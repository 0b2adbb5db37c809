//! Webhooks of an agent's calls.
//!
//! An outgoing webhook authenticates as a tool does, with headers and credentials. They are
//! sealed for the agent's row and stored nowhere else. Reads return masks, and a mask that is
//! sent back keeps the stored value while the webhook stays at its server.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;
use utoipa::ToSchema;

use crate::outbound::credentials::{EndpointAuth, EndpointCredentials};
use crate::platform::error::Result;
use crate::platform::ids::{AgentId, OrgId};
use crate::platform::secret::KeyRing;

/// Table name in the sealing context.
const TABLE: &str = "agents";
/// Path of the outgoing webhook in a body.
pub const OUTGOING_PATH: [&str; 3] = ["agent_specific_config", "webhooks", "outgoing"];

/// Webhooks and their triggers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Webhooks {
    #[schema(default = false)]
    pub trigger_on_web_call: bool,
    #[schema(default = false)]
    pub trigger_on_phone_call: bool,
    pub incoming: Option<IncomingWebhook>,
    pub outgoing: Option<OutgoingWebhook>,
}

/// Variables that a request may set when a call begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IncomingWebhook {
    #[schema(default = false)]
    pub enabled: bool,
    #[schema(max_items = 50)]
    pub attached_variables: Vec<AttachedVariable>,
}

/// A variable that a request may set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachedVariable {
    #[schema(min_length = 1, max_length = 64)]
    pub name: String,
    #[schema(max_length = 2000)]
    pub default_value: Option<String>,
}

/// Webhook that is sent when a call has ended.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OutgoingWebhook {
    #[serde(default)]
    #[schema(default = false)]
    pub enabled: bool,
    /// A change of scheme, host or port requires all secrets again.
    #[schema(max_length = 2000, example = "https://crm.example.com/calls")]
    pub url: String,
    #[serde(default)]
    pub method: WebhookMethod,
    /// At most 30. Values of headers whose names suggest secrets are masked on read, and a mask
    /// that is sent back keeps the stored value. In an update, a null value removes that header,
    /// and a null instead of the object removes all.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Replaced as a whole when its `type` changes. In an update, a null removes it.
    #[serde(default)]
    pub auth: EndpointAuth,
    #[serde(default)]
    #[schema(default = 0, minimum = 0, maximum = 10)]
    pub retry_count: i32,
}

impl fmt::Debug for OutgoingWebhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutgoingWebhook")
            .field("enabled", &self.enabled)
            .field("url", &self.url)
            .field("method", &self.method)
            .field("retry_count", &self.retry_count)
            .finish_non_exhaustive()
    }
}

/// HTTP method of a webhook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum WebhookMethod {
    #[default]
    Post,
    Put,
    Patch,
}

impl OutgoingWebhook {
    /// Credentials of the requests, as sent or as masked.
    #[must_use]
    pub fn credentials(&self) -> EndpointCredentials {
        EndpointCredentials {
            headers: self.headers.clone(),
            auth: self.auth.clone(),
        }
    }

    /// Sets the stored credentials, masked.
    pub(super) fn set_masked(&mut self, stored: &EndpointCredentials) {
        let EndpointCredentials { headers, auth } = stored.masked();
        (self.headers, self.auth) = (headers, auth);
    }
}

/// Stored credentials of an agent's webhook, and its URL.
#[derive(Clone, Debug)]
pub struct StoredWebhook {
    pub url: String,
    pub credentials: EndpointCredentials,
}

/// Seals the credentials of a webhook for its agent; `None` without credentials. Masks stand for
/// the stored values of the same agent, or of the one that is copied.
///
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) for each mask without a stored value, or whose
/// webhook moves to another server.
pub(super) fn seal_credentials(
    keys: &KeyRing,
    (org, id): (OrgId, AgentId),
    outgoing: Option<&OutgoingWebhook>,
    stored: Option<&StoredWebhook>,
) -> Result<Option<Vec<u8>>> {
    let Some(outgoing) = outgoing else {
        return Ok(None);
    };

    let sent = outgoing.credentials();
    let whole = match stored {
        Some(StoredWebhook { url, credentials }) => sent.unmasked(&outgoing.url, credentials, url),
        None => Ok(sent),
    };
    let whole = whole
        .and_then(EndpointCredentials::without_masks)
        .map_err(|error| error.at_path(&OUTGOING_PATH))?;

    if whole == EndpointCredentials::default() {
        return Ok(None);
    }
    whole.sealed(keys, TABLE, org, id.0).map(Some)
}

/// Opens credentials that [`sealed`] returned.
pub(super) fn open_credentials(
    keys: &KeyRing,
    (org, id): (OrgId, AgentId),
    sealed: Option<&[u8]>,
) -> Result<EndpointCredentials> {
    match sealed {
        None => Ok(EndpointCredentials::default()),
        Some(sealed) => EndpointCredentials::opened(keys, TABLE, org, id.0, sealed),
    }
}

/// Removes the fields that a partial update replaces as a whole: an `auth` of another type, and
/// headers whose names differ in case only.
pub(super) fn remove_replaced(whole: &mut Value, part: &Value) {
    let pointer = format!("/{}", OUTGOING_PATH.join("/"));
    let (Some(whole), Some(part)) = (whole.pointer_mut(&pointer), part.pointer(&pointer)) else {
        return;
    };

    let kind = part.pointer("/auth/type");
    if kind.is_some()
        && kind != whole.pointer("/auth/type")
        && let Some(whole) = whole.as_object_mut()
    {
        whole.remove("auth");
    }

    if let (Some(known), Some(sent)) = (
        whole.get_mut("headers").and_then(Value::as_object_mut),
        part.get("headers").and_then(Value::as_object),
    ) {
        let is_replaced = |name: &String| {
            sent.keys()
                .any(|other| other != name && other.eq_ignore_ascii_case(name))
        };
        known.retain(|name, _| !is_replaced(name));
    }
}

/// Removes null headers, and `headers` and `auth` when they are null.
pub(super) fn drop_nulls(whole: &mut Value) {
    let pointer = format!("/{}", OUTGOING_PATH.join("/"));
    let Some(outgoing) = whole.pointer_mut(&pointer).and_then(Value::as_object_mut) else {
        return;
    };

    outgoing.retain(|name, value| !(value.is_null() && (name == "headers" || name == "auth")));
    if let Some(headers) = outgoing.get_mut("headers").and_then(Value::as_object_mut) {
        headers.retain(|_, value| !value.is_null());
    }
}

/// Reseals credentials under the current master key, of all organisations, for the operator's key
/// rotation. Returns their number. Its locks do not block calls of the agents.
///
/// # Errors
/// [`Error::Unexpected`](crate::Error::Unexpected) when no configured key opens one.
pub async fn reseal_unscoped(db: &mut PgConnection, keys: &KeyRing) -> Result<u64> {
    let agents = sqlx::query!(
        r#"select id as "id: AgentId", org_id as "org_id: OrgId", webhook_credentials as "credentials!"
           from agents
           where webhook_credentials is not null
           order by id
           for no key update"#
    )
    .fetch_all(&mut *db)
    .await?;

    let mut resealed = 0;
    for agent in agents {
        let (org, id) = (agent.org_id, agent.id);
        if let Some(sealed) =
            EndpointCredentials::resealed(keys, TABLE, org, id.0, &agent.credentials)?
        {
            sqlx::query!(
                "update agents set webhook_credentials = $2 where id = $1",
                id as AgentId,
                sealed,
            )
            .execute(&mut *db)
            .await?;
            resealed += 1;
        }
    }
    Ok(resealed)
}
