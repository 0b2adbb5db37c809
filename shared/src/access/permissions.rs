//! Permissions beyond the caller's role: the features of the user, and the routes that the API
//! key's scopes allow. Checked for every request, before its handler.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Credential, Principal};
use crate::platform::error::Error;

/// A part of the API that can be switched off for a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// Batches and single calls.
    Outbound,
    /// Searching and exporting calls.
    CallAnalytics,
    /// Reading calls.
    CallLogs,
}

impl Feature {
    /// Every feature.
    pub const ALL: [Self; 3] = [Self::Outbound, Self::CallAnalytics, Self::CallLogs];

    /// Name on the wire and in tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::CallAnalytics => "call_analytics",
            Self::CallLogs => "call_logs",
        }
    }

    /// The feature of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|feature| feature.as_str() == name)
    }

    /// The features that a route belongs to.
    fn for_path(path: &str) -> &'static [Self] {
        if is_within(path, "/api/v1/batch-call") || is_within(path, "/api/call/create_call") {
            &[Self::Outbound]
        } else if is_within(path, "/api/v1/call-analytics") {
            &[Self::CallAnalytics, Self::CallLogs]
        } else if is_within(path, "/api/call") {
            &[Self::CallLogs]
        } else {
            &[]
        }
    }
}

/// A set of requests that a key may send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyScope {
    /// Paths at and below this one: `/api/v1/batch-call`.
    pub allowed_path_prefix: String,
    /// GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE, or `*` for all of them.
    pub allowed_method: String,
}

impl KeyScope {
    fn allows(&self, method: &str, path: &str) -> bool {
        let prefix = self.allowed_path_prefix.trim_end_matches('/');
        (self.allowed_method == "*" || self.allowed_method == method)
            && (prefix.is_empty() || is_within(path, prefix))
    }
}

/// A caller with their permissions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    pub principal: Principal,
    /// Names of the features that are off.
    pub disabled_features: Vec<String>,
    /// Requests that the key may send; an empty list allows all.
    pub scopes: Vec<KeyScope>,
}

impl Permissions {
    /// Refuses requests that the key's scopes or the user's features do not allow.
    ///
    /// # Errors
    /// [`Error::Forbidden`] with the contract's message.
    pub fn allow(&self, method: &str, path: &str) -> Result<(), Error> {
        if let Credential::ApiKey(_) = self.principal.credential {
            let scoped = self.scopes.is_empty()
                || self.scopes.iter().any(|scope| scope.allows(method, path));
            if !scoped || (is_billing_path(path) && !matches!(method, "GET" | "HEAD" | "OPTIONS")) {
                return Err(Error::Forbidden(
                    "Forbidden: API Key does not have required scopes".into(),
                ));
            }
        }

        for feature in Feature::for_path(path) {
            if self
                .disabled_features
                .iter()
                .any(|name| name == feature.as_str())
            {
                let message = format!(
                    "Forbidden: the feature {} is switched off for this user",
                    feature.as_str()
                );
                return Err(Error::Forbidden(message.into()));
            }
        }
        Ok(())
    }
}

/// Routes that move or price money. API keys have read access only.
fn is_billing_path(path: &str) -> bool {
    let prefixes = [
        "/billing",
        "/wallets",
        "/earnings",
        "/orgs",
        "/service-prices",
    ];
    prefixes.iter().any(|prefix| {
        is_within(path, prefix)
            || path
                .strip_prefix("/api/v1")
                .is_some_and(|rest| is_within(rest, prefix))
    })
}

/// True when a path is `prefix` or below it. Compares the path as it was sent, as routing does.
fn is_within(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Role;
    use crate::platform::ids::{ApiKeyId, OrgId, UserId};

    fn permissions(credential: Credential, off: &[&str], scopes: &[(&str, &str)]) -> Permissions {
        Permissions {
            principal: Principal {
                user: UserId::new(),
                org: OrgId::new(),
                role: Role::SuperAdmin,
                email: None,
                credential,
            },
            disabled_features: off.iter().map(|name| (*name).to_owned()).collect(),
            scopes: scopes
                .iter()
                .map(|(path, method)| KeyScope {
                    allowed_path_prefix: (*path).to_owned(),
                    allowed_method: (*method).to_owned(),
                })
                .collect(),
        }
    }

    #[test]
    fn a_feature_that_is_off_closes_its_routes_for_sessions_and_keys() {
        for credential in [Credential::Session, Credential::ApiKey(ApiKeyId::new())] {
            for (feature, path, open) in [
                ("outbound", "/api/v1/batch-call", false),
                ("outbound", "/api/v1/batch-call/start/1", false),
                ("outbound", "/api/call/create_call", false),
                ("outbound", "/api/call/1", true),
                ("outbound", "/api/v1/batch-caller", true),
                ("outbound", "/api/v1/agents", true),
                ("call_logs", "/api/call/1", false),
                ("call_logs", "/api/v1/call-analytics", false),
                ("call_analytics", "/api/v1/call-analytics/export", false),
                ("call_analytics", "/api/call/1", true),
                ("", "/api/v1/batch-call", true),
            ] {
                let known = permissions(credential, &[feature], &[]);
                let allowed = known.allow("GET", path);
                assert_eq!(allowed.is_ok(), open, "{feature} {path}");
            }
        }
    }

    #[test]
    fn a_key_does_what_one_of_its_scopes_allows() {
        let key = Credential::ApiKey(ApiKeyId::new());
        let scopes = [("/api/v1/batch-call", "GET"), ("/api/call/", "*")];
        for (method, path, open) in [
            ("GET", "/api/v1/batch-call", true),
            ("GET", "/api/v1/batch-call/me", true),
            ("POST", "/api/v1/batch-call/create", false),
            ("GET", "/api/v1/batch-callers", false),
            ("POST", "/api/call/create_call", true),
            ("GET", "/api/v1/agents", false),
        ] {
            let allowed = permissions(key, &[], &scopes).allow(method, path);
            assert_eq!(allowed.is_ok(), open, "{method} {path}");
            if let Err(refusal) = allowed {
                assert_eq!(
                    refusal.to_string(),
                    "Forbidden: API Key does not have required scopes"
                );
            }
            assert!(
                permissions(Credential::Session, &[], &scopes)
                    .allow(method, path)
                    .is_ok()
            );
        }
        let all = permissions(key, &[], &[("/", "*")]);
        assert!(all.allow("DELETE", "/api/v1/agents/1").is_ok());
    }

    #[test]
    fn a_key_only_looks_at_money() {
        let key = permissions(Credential::ApiKey(ApiKeyId::new()), &[], &[("/", "*")]);
        for place in ["billing", "wallets", "earnings", "orgs", "service-prices"] {
            for base in ["/api/v1", ""] {
                let path = format!("{base}/{place}/1/cap");
                assert!(key.allow("GET", &path).is_ok(), "{path}");
                for method in ["POST", "PUT", "PATCH", "DELETE"] {
                    assert!(key.allow(method, &path).is_err(), "{method} {path}");
                }
            }
        }
    }
}
