//! Form fields and query parameters, with checks for unknown and repeated names.

use std::borrow::Cow;
use std::sync::Arc;

use url::Url;

use crate::call::{HttpMethod, WebhookTarget};
use crate::delivery::{RetryPolicy, split_fragment};
use crate::refusal::TwilioError;

pub(super) struct FormParams<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> FormParams<'a> {
    pub(super) fn parse(text: &'a [u8]) -> Self {
        Self(url::form_urlencoded::parse(text).collect())
    }

    /// Refuses fields that are neither in `single` nor in `repeated`, and repeated fields of
    /// `single`.
    pub(super) fn check(&self, single: &[&str], repeated: &[&str]) -> Result<(), TwilioError> {
        for (place, (name, _)) in self.0.iter().enumerate() {
            let name = &**name;
            if repeated.contains(&name) {
                continue;
            }
            if !single.contains(&name) {
                return Err(TwilioError::bad_request(
                    20001,
                    format!(
                        "Unknown parameter {name}: the simulator refuses what is not documented"
                    ),
                ));
            }
            if self.0.iter().take(place).any(|(other, _)| other == name) {
                return Err(TwilioError::bad_request(
                    20001,
                    format!("Parameter {name} is repeated"),
                ));
            }
        }
        Ok(())
    }

    /// The first value that is not empty: Twilio's API treats an empty value as absent.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.all(name).find(|value| !value.is_empty())
    }

    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| &**value)
    }

    pub(super) fn number(
        &self,
        name: &str,
        default: u32,
        range: std::ops::RangeInclusive<u32>,
        code: u32,
    ) -> Result<u32, TwilioError> {
        match self.get(name).map(str::parse::<u32>) {
            None => Ok(default),
            Some(Ok(number)) if range.contains(&number) => Ok(number),
            _ => Err(TwilioError::bad_request(
                code,
                format!(
                    "{name} must be between {} and {}",
                    range.start(),
                    range.end()
                ),
            )),
        }
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, TwilioError> {
        match self.get(name).map(str::to_ascii_lowercase).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(TwilioError::bad_request(
                20001,
                format!("{name} must be true or false"),
            )),
        }
    }

    fn method(&self, name: &str) -> Result<HttpMethod, TwilioError> {
        match self.get(name).map(str::to_ascii_uppercase).as_deref() {
            None | Some("POST") => Ok(HttpMethod::Post),
            Some("GET") => Ok(HttpMethod::Get),
            Some(other) => Err(TwilioError::bad_request(
                20001,
                format!("{name} must be GET or POST, not {other}"),
            )),
        }
    }

    /// A URL for the carrier to request; an invalid one is refused with `code`.
    pub(super) fn hook(
        &self,
        name: &str,
        method_name: &str,
        code: u32,
    ) -> Result<Option<WebhookTarget>, TwilioError> {
        let method = self.method(method_name)?;
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        check_url(text).map_err(|reason| {
            TwilioError::bad_request(code, format!("{name} is not a valid URL: {reason}"))
        })?;
        Ok(Some(WebhookTarget {
            url: Arc::from(text),
            method,
        }))
    }
}

fn check_url(text: &str) -> Result<(), String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("it is not http or https".to_owned());
    }
    if url.host_str().is_none_or(|host| host.contains('_')) {
        return Err("a host name may not contain an underscore".to_owned());
    }
    RetryPolicy::parse(split_fragment(text).1)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_and_repeated_fields_are_refused() {
        let check = |text: &str| FormParams::parse(text.as_bytes()).check(&["To"], &["Event"]);
        assert!(check("To=1&Event=a&Event=b").is_ok());
        assert!(check("to=1").is_err());
        assert!(check("to=").is_err());
        assert!(check("To=1&To=2").is_err());
    }

    #[test]
    fn urls_are_checked() {
        for good in ["http://127.0.0.1:8080/a#rc=2", "https://peal.example/x?y=z"] {
            assert!(check_url(good).is_ok(), "{good}");
        }
        for bad in [
            "/relative",
            "ftp://x/",
            "http://my_host/",
            "http://x/#rc=9",
            "x",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }
}
