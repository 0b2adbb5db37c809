//! Request and response bodies of `/api/v1/trunks`.

use peal_shared::platform::ids::OrgId;
use peal_shared::telephony::{CarrierCredentials, CarrierKind};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::{IntoResponses, ToSchema};

use crate::http::extract::FieldErrors;
use crate::http::openapi::ProblemDocument;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddTrunk {
    #[schema(min_length = 1, max_length = 200)]
    pub name: String,
    #[serde(default = "twilio")]
    #[schema(default = "twilio")]
    pub kind: CarrierKind,
    /// The carrier's id of the account, such as `AC...`.
    #[schema(min_length = 1, max_length = 100, pattern = "^[A-Za-z0-9]+$")]
    pub account_id: String,
    /// User name of API requests, such as the id of an API key; the account when absent.
    #[schema(max_length = 200)]
    pub username: Option<String>,
    /// The secret of the user name. It is never shown again.
    #[schema(value_type = String, min_length = 1, max_length = 500, write_only)]
    pub password: SecretString,
    /// Signing secret of callbacks, if it is not the password.
    #[schema(value_type = Option<String>, max_length = 500, write_only)]
    pub signing_secret: Option<SecretString>,
    /// Calls per second that the carrier allows.
    #[schema(minimum = 0.001, maximum = 10_000.0)]
    pub cps: f64,
    /// Concurrent calls that the carrier allows.
    #[schema(minimum = 1, maximum = 100_000)]
    pub max_concurrent: i32,
    /// Ring timeout of a call.
    #[serde(default = "half_a_minute")]
    #[schema(default = 30, minimum = 15, maximum = 600)]
    pub ring_timeout_secs: i32,
    /// For a `super_admin`: base URL of the carrier's API; its public address when absent.
    #[schema(max_length = 2000)]
    pub api_base_url: Option<String>,
    /// For a `super_admin`: the owner; the caller's organisation when absent.
    pub organization_id: Option<OrgId>,
    /// For a `super_admin`: makes it the platform's own trunk.
    #[serde(default)]
    #[schema(default = false)]
    pub platform: bool,
}

fn twilio() -> CarrierKind {
    CarrierKind::Twilio
}

fn half_a_minute() -> i32 {
    30
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateTrunk {
    #[schema(min_length = 1, max_length = 200)]
    pub name: Option<String>,
    #[schema(minimum = 0.001, maximum = 10_000.0)]
    pub cps: Option<f64>,
    #[schema(minimum = 1, maximum = 100_000)]
    pub max_concurrent: Option<i32>,
    #[schema(minimum = 15, maximum = 600)]
    pub ring_timeout_secs: Option<i32>,
}

/// Credentials of a trunk.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Secret)]
pub struct TrunkSecret {
    /// User name of API requests, such as the id of an API key; the account when absent.
    #[schema(max_length = 200)]
    pub username: Option<String>,
    /// The secret of the user name. It is never shown again.
    #[schema(value_type = String, min_length = 1, max_length = 500, write_only)]
    pub password: SecretString,
    /// Signing secret of callbacks, if it is not the password.
    #[schema(value_type = Option<String>, max_length = 500, write_only)]
    pub signing_secret: Option<SecretString>,
}

impl TrunkSecret {
    /// Checks the fields and returns the credentials.
    pub fn validated(self, fields: &mut FieldErrors) -> CarrierCredentials {
        if let Some(username) = &self.username {
            fields.check_text(username, "username", 1, 200);
        }
        fields.check_text(self.password.expose_secret(), "password", 1, 500);
        if let Some(secret) = &self.signing_secret {
            fields.check_text(secret.expose_secret(), "signing_secret", 1, 500);
        }
        CarrierCredentials {
            username: self.username,
            password: self.password,
            signing_secrets: self.signing_secret.into_iter().collect(),
        }
    }
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Pause)]
pub struct PauseTrunk {
    /// Reason of the pause, shown with the trunk.
    #[schema(min_length = 1, max_length = 500)]
    pub reason: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Checked, example = json!({"accepted": true, "reason": null}))]
pub struct TrunkCheck {
    /// True when the carrier accepts the account with its secret.
    pub accepted: bool,
    /// The carrier's reason for the rejection.
    pub reason: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(example = json!({"message": "the trunk is deleted"}))]
pub struct TrunkDeleted {
    pub message: &'static str,
}

/// Errors of an operation on a trunk, besides the common ones.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "its variants are read by the macro alone")]
pub enum TrunkErrors {
    /// The carrier rejects the account.
    #[response(status = 400, content_type = "application/problem+json")]
    AccountRejected(ProblemDocument),
    /// No such trunk.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(ProblemDocument),
    /// Calls use the trunk, or numbers belong to it.
    #[response(status = 409, content_type = "application/problem+json")]
    InUse(ProblemDocument),
    /// The carrier does not respond correctly.
    #[response(status = 502, content_type = "application/problem+json")]
    BadGateway(ProblemDocument),
}
