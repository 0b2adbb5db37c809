//! The addresses a carrier reaches a call at: made here for create requests, and rebuilt here
//! when a callback comes in, so that what is signed and what is checked cannot differ.
//!
//! Each address holds the trunk, the call and the call's token. The public address comes from
//! configuration alone; what a request says of its own host is not believed. A path in the
//! public address is a prefix that a proxy takes off.

use url::Url;

use crate::ids::{CallId, TrunkId};
use crate::secret::Keys;

/// Under this path carriers post status callbacks, with and without a call in the path.
pub const STATUS_PATH: &str = "/api/v1/batch-call/status-callback";
/// Under this path carriers reach everything else of a call.
pub const CALL_PATH: &str = "/callbacks";

/// A call's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallUrls {
    pub answer: Url,
    pub status: Url,
    pub machine_detection: Url,
    pub recording: Url,
}

impl CallUrls {
    /// The addresses of `call` on `trunk`.
    #[must_use]
    pub fn new(public_url: &Url, keys: &Keys, trunk: TrunkId, call: CallId) -> Self {
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

/// The address that a request for `path_and_query` was sent to, as the carrier saw it. None
/// when they do not make a URL.
#[must_use]
pub fn requested(public_url: &Url, path_and_query: &str) -> Option<Url> {
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
    fn what_is_handed_out_is_what_is_rebuilt() {
        let keys = Keys::derive(&[5; 32]).unwrap();
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
                assert_eq!(requested(&public, seen).as_ref(), Some(url));
                assert!(seen.contains(&keys.call_token(trunk, call)));
            }
            assert!(urls.status.path().ends_with(&format!(
                "{prefix}{STATUS_PATH}/{trunk}/{call}/{}",
                keys.call_token(trunk, call)
            )));
        }
    }

    #[test]
    fn the_query_is_kept_as_it_came() {
        let public = Url::parse("https://peal.example.com").unwrap();
        let url = requested(&public, "/callbacks/a/b?To=%2B15550100&x=a+b&empty=").unwrap();
        assert_eq!(
            url.as_str(),
            "https://peal.example.com/callbacks/a/b?To=%2B15550100&x=a+b&empty="
        );
    }
}
