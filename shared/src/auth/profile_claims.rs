//! Profile claims of another issuer's token: name, phone, image and metadata. They grant nothing,
//! and are shown to their user alone.
//!
//! Supabase has a claim `phone` and puts the rest in `user_metadata`, which users write
//! themselves; so values of an unexpected type or size are left out.

use serde_json::{Map, Value};
use url::Url;

const MAX_NAME_CHARS: usize = 200;
const MAX_PHONE_CHARS: usize = 40;
const MAX_URL_CHARS: usize = 2000;
/// Larger metadata is not stored.
const MAX_METADATA_BYTES: usize = 4096;

/// Profile claims of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProfileClaims {
    pub full_name: Option<String>,
    pub phone: Option<String>,
    pub profile_image_url: Option<String>,
    pub user_metadata: Value,
}

impl ProfileClaims {
    /// Parses the claims; `None` when there are none.
    #[must_use]
    pub fn from_claims(phone: Option<&Value>, metadata: Option<&Value>) -> Option<Self> {
        let metadata = metadata.and_then(Value::as_object);
        let phone = phone.and_then(Value::as_str);
        if metadata.is_none() && phone.is_none_or(str::is_empty) {
            return None;
        }
        let empty = Map::new();
        let metadata = metadata.unwrap_or(&empty);

        let first = |names: [&str; 2], most| {
            let texts = names.into_iter().filter_map(|name| metadata.get(name));
            texts
                .filter_map(Value::as_str)
                .find_map(|text| single_line(text, most))
        };

        Some(Self {
            full_name: first(["full_name", "name"], MAX_NAME_CHARS),
            phone: phone.and_then(|phone| single_line(phone, MAX_PHONE_CHARS)),
            profile_image_url: first(["avatar_url", "picture"], MAX_URL_CHARS)
                .filter(|url| is_web_address(url)),
            user_metadata: Value::Object(match is_storable(metadata) {
                true => metadata.clone(),
                false => Map::new(),
            }),
        })
    }
}

/// Trims a text; `None` unless it is a single line of at most `most` characters.
fn single_line(text: &str, most: usize) -> Option<String> {
    let text = text.trim();
    let fits = (1..=most).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    fits.then(|| text.to_owned())
}

fn is_web_address(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "https" | "http"))
}

/// True for metadata that PostgreSQL can store and that is not too large.
fn is_storable(metadata: &Map<String, Value>) -> bool {
    let text = serde_json::to_string(metadata).unwrap_or_default();
    (2..=MAX_METADATA_BYTES).contains(&text.len()) && !text.contains("\\u0000")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_supabase_tells_is_read() {
        let metadata = json!({
            "full_name": " Ada Lovelace ", "avatar_url": "https://img.test/ada.png", "theme": {"dark": true},
        });
        let claims =
            ProfileClaims::from_claims(Some(&json!("12125550123")), Some(&metadata)).unwrap();
        assert_eq!(claims.full_name.as_deref(), Some("Ada Lovelace"));
        assert_eq!(claims.phone.as_deref(), Some("12125550123"));
        assert_eq!(
            claims.profile_image_url.as_deref(),
            Some("https://img.test/ada.png")
        );
        assert_eq!(claims.user_metadata, metadata);
        let others = json!({"full_name": 1, "name": "Ada", "picture": "http://img.test/a"});
        let claims = ProfileClaims::from_claims(Some(&json!("")), Some(&others)).unwrap();
        assert_eq!(
            (claims.full_name.as_deref(), claims.phone),
            (Some("Ada"), None)
        );
        assert_eq!(
            claims.profile_image_url.as_deref(),
            Some("http://img.test/a")
        );
    }

    #[test]
    fn a_token_without_such_claims_tells_nothing() {
        assert_eq!(ProfileClaims::from_claims(None, None), None);
        assert_eq!(
            ProfileClaims::from_claims(Some(&json!("")), Some(&Value::Null)),
            None
        );
        assert_eq!(
            ProfileClaims::from_claims(Some(&json!(1)), Some(&json!([]))),
            None
        );
    }

    #[test]
    fn what_is_odd_or_large_is_left_out() {
        for metadata in [
            json!({"a": "x".repeat(MAX_METADATA_BYTES)}),
            json!({"a": "\0"}),
            json!({"full_name": "a\nb", "avatar_url": "javascript:alert(1)", "a\0": 1}),
            json!({"full_name": "x".repeat(201), "avatar_url": "https://", "a": "\0"}),
        ] {
            let long = json!("1".repeat(41));
            let claims = ProfileClaims::from_claims(Some(&long), Some(&metadata)).unwrap();
            let empty = ProfileClaims {
                user_metadata: json!({}),
                ..ProfileClaims::default()
            };
            assert_eq!(claims, empty);
        }
    }
}
