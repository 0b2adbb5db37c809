//! The part of Twilio's API that a dialer uses: `/2010-04-01/Accounts/{sid}/...`
//!
//! | route | |
//! |---|---|
//! | `POST Calls.json` | create a call: 201 |
//! | `GET Calls.json` | list calls, newest first, with filters and pages |
//! | `GET Calls/{sid}.json` | one call |
//! | `POST Calls/{sid}.json` | cancel, complete or redirect it |
//! | `GET Recordings/{sid}[.json\|.wav]` | a recording: its metadata, or silence |
//!
//! Credentials are HTTP Basic. An undocumented field or parameter is refused with 400, so that
//! a typo cannot pass a test.

mod account;
mod calls;
mod create_form;
mod form;
mod list;
mod recordings;
mod resource;

use std::sync::Arc;

use axum::Router;
use axum::http::Uri;
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::refusal::TwilioError;
use crate::runtime::SimulatorRuntime;

pub(crate) fn router() -> Router<Arc<SimulatorRuntime>> {
    const BASE: &str = "/2010-04-01/Accounts/{account}";
    Router::new()
        .route("/2010-04-01/Accounts/{file}", get(account::fetch))
        .route(
            &format!("{BASE}/Calls.json"),
            post(calls::create).get(calls::list),
        )
        .route(
            &format!("{BASE}/Calls/{{file}}"),
            get(calls::fetch).post(calls::update),
        )
        .route(
            &format!("{BASE}/Recordings/{{file}}"),
            get(recordings::fetch),
        )
        .fallback(async |uri: Uri| TwilioError::not_found(uri.path()))
}

/// User and password of HTTP Basic authentication.
fn login(headers: &axum::http::HeaderMap) -> Option<(String, String)> {
    let value = headers.get(axum::http::header::AUTHORIZATION)?;
    let (scheme, encoded) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}
