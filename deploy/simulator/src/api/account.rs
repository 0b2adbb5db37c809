//! The account resource.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::refusal::TwilioError;
use crate::runtime::SimulatorRuntime;

pub(super) async fn fetch(
    State(sim): State<Arc<SimulatorRuntime>>,
    Path(file): Path<String>,
    headers: HeaderMap,
) -> Response {
    let path = format!("/2010-04-01/Accounts/{file}");
    let Some(account) = file.strip_suffix(".json") else {
        return TwilioError::not_found(&path).into_response();
    };
    let known = sim.with_board(|board, _| {
        board
            .accounts
            .authenticate(account, super::login(&headers).as_ref())
            .is_some()
    });
    if !known {
        return TwilioError::unauthenticated().into_response();
    }
    let facts = json!({
        "sid": account,
        "owner_account_sid": account,
        "friendly_name": "Simulated account",
        "status": "active",
        "type": "Full",
        "uri": path,
    });
    Json(facts).into_response()
}
