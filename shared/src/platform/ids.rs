//! Typed identifiers. Every row's key is a version 7 UUID, which begins with the time of
//! creation, so rows written together are close together in the index.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Creates a time-ordered id.
            #[expect(clippy::new_without_default, reason = "an id is never a default")]
            #[expect(clippy::disallowed_methods, reason = "the one place that makes ids")]
            #[must_use]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    )+};
}

ids! {
    /// An organisation: the tenant.
    OrgId;
    /// A person who signs in, or on whose behalf a key calls.
    UserId;
    /// An API key.
    ApiKeyId;
    /// A voice agent.
    AgentId;
    /// A carrier account.
    TrunkId;
    /// A caller number (`phone_numbers`).
    PhoneId;
    /// A mapping of a caller number to an agent.
    MappingId;
    /// A provider of the catalogue.
    ProviderId;
    /// A voice of the catalogue.
    VoiceId;
    /// A batch (`call_batches`), which managers call a campaign.
    BatchId;
    /// A batch row (`batch_data`).
    RowId;
    /// One upload of rows.
    IngestId;
    /// A call: one dial, at most one request to the carrier.
    CallId;
    /// A queued job.
    JobId;
    /// A message to send.
    EmailId;
    /// A session of the built-in login.
    SessionId;
    /// An invitation into an organisation.
    InviteId;
    /// A row of the audit log.
    AuditId;
    /// An HTTP tool (`tools`).
    ToolId;
    /// An MCP server (`mcp_servers`).
    McpServerId;
    /// A rule of post-call analysis (`analysis_rules`).
    RuleId;
    /// A workflow.
    WorkflowId;
    /// A wallet.
    WalletId;
    /// Money given to a wallet for a purpose or a time.
    GrantId;
    /// A transaction of the ledger.
    TransactionId;
    /// A price of the catalogue (`service_prices`).
    PriceId;
    /// The prices of a call, frozen (`price_snapshots`).
    SnapshotId;
    /// The charge of a call.
    ChargeId;
    /// A file of usage (`usage_exports`).
    ExportId;
}
