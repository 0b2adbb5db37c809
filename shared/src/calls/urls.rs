//! Callback URLs of a call: built for create requests, and built again when a callback arrives,
//! so that the signed and the checked URL cannot differ.
//!
//! Each URL holds the trunk, the call and the call's token. The public address comes from
//! configuration alone; a request's `Host` header is ignored. A path in the public address is a
//! prefix that a proxy strips.

use url::Url;

use crate::platform::ids::{CallId, TrunkId};
use crate::platform::secret::KeyRing;

/// Path of status callbacks, with and without a call after it.
pub const STATUS_PATH: &str = "/api/v1/batch-call/status-callback";
/// Path of all other callbacks of a call.
pub const CALL_PATH: &str = "/callbacks";

/// A call's callback URLs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallUrls {
    pub answer: Url,
    pub status: Url,
    pub machine_detection: Url,
    pub recording: Url,
}

impl CallUrls {
    /// Builds the URLs of `call` on `trunk`.
    #[must_use]
    pub fn new(public_url: &Url, keys: &KeyRing, trunk: TrunkId, call: CallId) -> Self {
        let of_call = format!("{trunk}/{call}/{}", keys.call_token(trunk, call));
        let at = |path: String| {
            let mut url = public_url.clone();
            url.set_path(&format!("{}{path}", prefix(public_url)));
            url
        };
        Self {
            answer: at(format!("{CALL_PATH}/{of_call}/answer")),
            status: at(format!("{STATUS_PATH}/{of_call}")),
            machine_detection: at(format!("{CALL_PATH}/{of_call}/machine")),
            recording: at(format!("{CALL_PATH}/{of_call}/recording")),
        }
    }
}

/// Builds the URL that a request for `path_and_query` was sent to, as the carrier saw it. None
/// when the result is not a URL.
#[must_use]
pub fn requested_url(public_url: &Url, path_and_query: &str) -> Option<Url> {
    let origin = public_url.origin().ascii_serialization();
    Url::parse(&format!("{origin}{}{path_and_query}", prefix(public_url))).ok()
}

fn prefix(public_url: &Url) -> &str {
    public_url.path().trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issued_urls_equal_the_rebuilt_ones() {
        let keys = KeyRing::derive(&[5; 32]).unwrap();
        let (trunk, call) = (TrunkId::new(), CallId::new());
        for (public, prefix) in [
            ("https://peal.example.com", ""),
            ("https://peal.example.com/", ""),
            ("http://127.0.0.1:8080", ""),
            ("https://example.com:8443/dialer/", "/dialer"),
        ] {
            let public = Url::parse(public).unwrap();
            let urls = CallUrls::new(&public, &keys, trunk, call);
            let all = [
                &urls.answer,
                &urls.status,
                &urls.machine_detection,
                &urls.recording,
            ];
            for url in all {
                let seen = url.path().strip_prefix(prefix).unwrap();
                assert_eq!(requested_url(&public, seen).as_ref(), Some(url));
                assert!(seen.contains(&keys.call_token(trunk, call)));
            }
            assert!(urls.status.path().ends_with(&format!(
                "{prefix}{STATUS_PATH}/{trunk}/{call}/{}",
                keys.call_token(trunk, call)
            )));
        }
    }

    #[test]
    fn the_query_is_kept_unchanged() {
        let public = Url::parse("https://peal.example.com").unwrap();
        let url = requested_url(&public, "/callbacks/a/b?To=%2B15550100&x=a+b&empty=").unwrap();
        assert_eq!(
            url.as_str(),
            "https://peal.example.com/callbacks/a/b?To=%2B15550100&x=a+b&empty="
        );
    }
}
