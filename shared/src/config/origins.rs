//! Origins of web pages that may use the API from a browser (CORS).
//!
//! A browser lets a page of another origin read a response only when the response allows it. API
//! keys and tokens travel in headers, so each origin is listed.

use clap::Args;
use url::{Origin, Url};

use super::ConfigErrors;

/// CORS settings, as typed.
#[derive(Args, Clone, Debug, Default)]
pub struct CorsSettings {
    /// Origins of the web pages that may use the API from a browser, separated by commas, such as
    /// https://app.example.com. Unset: only the API's own.
    #[arg(long, env = "PEAL_CORS_ORIGINS", global = true)]
    pub cors_origins: Option<String>,
}

/// Allowed origins, as browsers write them.
#[derive(Clone, Debug, Default)]
pub struct CorsOrigins(Vec<String>);

impl CorsSettings {
    pub(super) fn validate(&self, errors: &mut ConfigErrors) -> Option<CorsOrigins> {
        let text = self.cors_origins.as_deref().unwrap_or_default();
        let items = text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty());
        let origins: Result<Vec<String>, String> = items.map(parse_origin).collect();
        Some(CorsOrigins(errors.record("PEAL_CORS_ORIGINS", origins)?))
    }
}

/// Parses one origin into the form that browsers send.
fn parse_origin(text: &str) -> Result<String, String> {
    if text.contains('*') {
        return Err(format!(
            "must name each origin, not {text:?}: keys and tokens travel with the requests, so not every page may send them"
        ));
    }
    let url = Url::parse(text).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none()
    });
    match url.map(|url| url.origin()) {
        Some(origin @ Origin::Tuple(..)) => Ok(origin.ascii_serialization()),
        _ => Err(format!(
            "must be origins such as https://app.example.com, without a path, not {text:?}"
        )),
    }
}

impl CorsOrigins {
    /// True when pages of this origin may use the API. The origin is compared as it is.
    #[must_use]
    pub fn contains(&self, origin: &str) -> bool {
        self.0.iter().any(|known| known == origin)
    }

    /// All allowed origins.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<Vec<String>, String> {
        let mut errors = ConfigErrors::default();
        let settings = CorsSettings {
            cors_origins: Some(text.to_owned()),
        };
        match settings.validate(&mut errors) {
            Some(origins) => Ok(origins.0),
            None => Err(errors.0.join("; ")),
        }
    }

    #[test]
    fn origins_are_normalized_to_the_browser_form() {
        let origins = checked(
            " https://App.example.com:443/,http://localhost:5173, ,https://app.example.com:8443",
        );
        assert_eq!(
            origins.unwrap(),
            [
                "https://app.example.com",
                "http://localhost:5173",
                "https://app.example.com:8443"
            ]
        );
        assert_eq!(checked("").unwrap(), [""; 0]);
    }

    #[test]
    fn wildcards_and_odd_origins_are_refused() {
        for odd in ["*", "https://*.example.com", "https://a.example.com,*"] {
            let message = checked(odd).unwrap_err();
            assert!(
                message.contains("PEAL_CORS_ORIGINS must name each origin"),
                "{message}"
            );
        }

        for odd in [
            "null",
            "app.example.com",
            "ftp://app.example.com",
            "https://app.example.com/login",
            "https://app.example.com?a",
            "https://me@app.example.com",
            "file:///tmp",
        ] {
            let message = checked(odd).unwrap_err();
            assert!(
                message.contains("must be origins such as"),
                "{odd}: {message}"
            );
        }
    }
}
