//! The URLs a carrier is given for a call. Each holds the call's id and its token, so whatever
//! comes back says which call it is about, even before we know the carrier's own id.

use url::Url;

use crate::ids::{CallId, TrunkId};
use crate::secret::Keys;

/// Where a carrier reaches us about one call.
#[derive(Clone, Debug)]
pub struct CallUrls {
    /// Fetched when the call is answered.
    pub answer: Url,
    pub status: Url,
    pub machine_detection: Url,
    pub recording: Url,
}

impl CallUrls {
    /// The URLs of a call, under the public address of the API.
    #[must_use]
    pub fn new(public_url: &Url, keys: &Keys, trunk: TrunkId, call: CallId) -> Self {
        let token = keys.call_token(trunk, call);
        let at = |path: String| {
            let mut url = public_url.clone();
            let base = url.path().trim_end_matches('/').to_owned();
            url.set_path(&format!("{base}{path}"));
            url
        };
        Self {
            answer: at(format!("/callbacks/{trunk}/{call}/{token}/answer")),
            status: at(format!(
                "/api/v1/batch-call/status-callback/{trunk}/{call}/{token}"
            )),
            machine_detection: at(format!("/callbacks/{trunk}/{call}/{token}/machine")),
            recording: at(format!("/callbacks/{trunk}/{call}/{token}/recording")),
        }
    }
}
