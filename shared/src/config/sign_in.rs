//! Sign-in: accepted token issuers, and accounts for new users.

use std::time::Duration;

use clap::Args;
use secrecy::SecretString;
use url::{Host, Url};

use super::ConfigErrors;

/// Sign-in settings, as typed.
#[derive(Args, Clone, Debug, Default)]
pub struct SignInSettings {
    /// Public keys of the session tokens' issuer (ES256, RS256), such as
    /// https://project.supabase.co/auth/v1/.well-known/jwks.json
    #[arg(long, env = "PEAL_JWT_JWKS_URL", global = true)]
    pub jwt_jwks_url: Option<String>,
    /// Accounts for a first valid token: `invited` people only, or everybody (`open`), each in a
    /// new organisation [default: invited].
    #[arg(long, env = "PEAL_SIGN_UP", global = true)]
    pub sign_up: Option<String>,
    /// Hours until a session of the built-in login ends [default: 12].
    #[arg(long, env = "PEAL_SESSION_HOURS", global = true)]
    pub session_hours: Option<String>,
}

/// Policy for the first valid token of a user of another issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignUpPolicy {
    /// Accepts people invited under the token's e-mail address.
    Invited,
    /// Accepts everybody; a person without an invitation gets a new organisation.
    Open,
}

/// Session tokens of another issuer.
#[derive(Clone, Debug)]
pub struct ExternalIssuer {
    /// Key of HS256 tokens.
    pub secret: Option<SecretString>,
    /// URL of the keys for ES256 and RS256 tokens.
    pub jwks_url: Option<Url>,
    pub issuer: String,
    pub audience: String,
}

/// Validated sign-in settings.
#[derive(Clone, Debug)]
pub struct SignInConfig {
    /// `None`: only Peal's own tokens are accepted.
    pub external_issuer: Option<ExternalIssuer>,
    pub sign_up: SignUpPolicy,
    pub session_ttl: Duration,
}

impl SignInSettings {
    pub(super) fn validate(
        &self,
        secret: Option<&str>,
        issuer: &str,
        audience: &str,
        errors: &mut ConfigErrors,
    ) -> Option<SignInConfig> {
        let secret = match secret.filter(|secret| !secret.is_empty()) {
            Some(secret) if secret.len() < 32 => Err("must have at least 32 bytes".to_owned()),
            secret => Ok(secret.map(SecretString::from)),
        };
        let secret = errors.record("PEAL_JWT_SECRET", secret);

        let jwks_url = self.jwt_jwks_url.as_deref().filter(|url| !url.is_empty());
        let jwks_url = errors.record(
            "PEAL_JWT_JWKS_URL",
            jwks_url.map(parse_jwks_url).transpose(),
        );

        let sign_up = match self.sign_up.as_deref().unwrap_or_default() {
            "" | "invited" => Ok(SignUpPolicy::Invited),
            "open" => Ok(SignUpPolicy::Open),
            _ => Err("must be invited or open".to_owned()),
        };
        let sign_up = errors.record("PEAL_SIGN_UP", sign_up);

        let hours = match self.session_hours.as_deref().unwrap_or_default() {
            "" => Some(12),
            hours => errors.parse_number("PEAL_SESSION_HOURS", hours, 1_u64, 24 * 31),
        };

        let (secret, jwks_url) = (secret?, jwks_url?);
        let foreign = (secret.is_some() || jwks_url.is_some()).then(|| ExternalIssuer {
            secret,
            jwks_url,
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
        });
        Some(SignInConfig {
            external_issuer: foreign,
            sign_up: sign_up?,
            session_ttl: Duration::from_secs(hours? * 3600),
        })
    }
}

/// Parses the URL of the keys. It must use TLS or a loopback host: a changed key would allow
/// signing in as anybody.
fn parse_jwks_url(text: &str) -> Result<Url, String> {
    let message = || "must be an https:// URL (http:// only on this machine)".to_owned();
    let url = Url::parse(text).map_err(|_error| message())?;

    let is_local = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    };
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_local => Ok(url),
        _ => Err(message()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(
        settings: &SignInSettings,
        secret: Option<&str>,
    ) -> Result<SignInConfig, Vec<String>> {
        let mut errors = ConfigErrors::default();
        let checked = settings.validate(secret, "peal", "authenticated", &mut errors);
        checked.filter(|_| errors.0.is_empty()).ok_or(errors.0)
    }

    #[test]
    fn without_secret_and_keys_only_own_tokens_are_accepted() {
        let sign_in = checked(&SignInSettings::default(), None).unwrap();
        assert!(sign_in.external_issuer.is_none());
        assert_eq!(sign_in.sign_up, SignUpPolicy::Invited);
        assert_eq!(sign_in.session_ttl, Duration::from_secs(12 * 3600));
    }

    #[test]
    fn keys_need_tls_or_a_loopback_host() {
        for (url, good) in [
            ("https://a.supabase.co/auth/v1/.well-known/jwks.json", true),
            ("http://127.0.0.1:9000/jwks", true),
            ("http://[::1]:9000/jwks", true),
            ("http://localhost/jwks", true),
            ("http://a.supabase.co/jwks", false),
            ("http://127.0.0.1.example.com/jwks", false),
            ("file:///etc/keys", false),
            ("keys", false),
        ] {
            let settings = SignInSettings {
                jwt_jwks_url: Some(url.into()),
                ..SignInSettings::default()
            };
            assert_eq!(checked(&settings, None).is_ok(), good, "{url}");
        }
    }

    #[test]
    fn invalid_settings_are_named() {
        let settings = SignInSettings {
            sign_up: Some("everyone".into()),
            session_hours: Some("0".into()),
            ..SignInSettings::default()
        };
        let message = checked(&settings, Some("short")).unwrap_err().join("\n");
        for name in ["PEAL_JWT_SECRET", "PEAL_SIGN_UP", "PEAL_SESSION_HOURS"] {
            assert!(message.contains(name), "{message}");
        }
    }
}
