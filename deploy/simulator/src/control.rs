//! Control API for tests and operators: `/_sim`.
//!
//! The API is unauthenticated and meant for loopback. The crate's documentation lists its
//! routes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::call::HttpMethod;
use crate::callback_log::CallbackRecord;
use crate::callee::CalleeBehavior;
use crate::config::AccountConfig;
use crate::delivery::CallbackRequest;
use crate::faults::{FaultState, Faults};
use crate::oracle::{CreateRecord, Oracle};
use crate::runtime::SimulatorRuntime;
use crate::switchboard::finish_oracle;

pub(crate) fn router() -> Router<Arc<SimulatorRuntime>> {
    Router::new()
        .route("/_sim/health", get(health))
        .route("/_sim/idle", get(idle))
        .route("/_sim/oracle", get(oracle))
        .route("/_sim/creates", get(creates))
        .route(
            "/_sim/faults",
            get(faults).put(put_faults).delete(delete_faults),
        )
        .route("/_sim/behavior", get(behavior).put(put_behavior))
        .route("/_sim/accounts", get(accounts))
        .route("/_sim/accounts/{sid}", axum::routing::put(put_account))
        .route("/_sim/calls/{sid}/callbacks", get(callbacks))
        .route("/_sim/calls/{sid}/replay", post(replay_callback))
        .route("/_sim/reset", post(reset))
}

async fn health(State(sim): State<Arc<SimulatorRuntime>>) -> Json<Value> {
    let uptime = Duration::from_micros(sim.clock.now());
    sim.with_board(|board, _| {
        Json(json!({
            "status": "ok",
            "live": board.total.live,
            "unsettled": board.unsettled,
            "uptime_secs": uptime.as_secs(),
        }))
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdleQuery {
    #[serde(default)]
    within_ms: u64,
}

async fn idle(
    State(sim): State<Arc<SimulatorRuntime>>,
    Query(within): Query<IdleQuery>,
) -> Json<Value> {
    let deadline = Instant::now() + Duration::from_millis(within.within_ms);
    Json(json!({ "idle": sim.wait_idle(deadline).await }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OracleQuery {
    account: Option<String>,
}

async fn oracle(
    State(sim): State<Arc<SimulatorRuntime>>,
    Query(query): Query<OracleQuery>,
) -> Json<Oracle> {
    Json(report(&sim, query.account.as_deref()))
}

pub(crate) fn report(sim: &Arc<SimulatorRuntime>, account: Option<&str>) -> Oracle {
    let (oracle, arrivals) = sim.with_board(|board, _| board.oracle(account));
    finish_oracle(oracle, arrivals, sim.clock)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreatesQuery {
    #[serde(default)]
    after: usize,
    #[serde(default = "creates_limit")]
    limit: usize,
}

fn creates_limit() -> usize {
    10_000
}

async fn creates(
    State(sim): State<Arc<SimulatorRuntime>>,
    Query(query): Query<CreatesQuery>,
) -> Json<Vec<CreateRecord>> {
    Json(sim.with_board(|board, _| board.creates(query.after, query.limit)))
}

async fn faults(State(sim): State<Arc<SimulatorRuntime>>) -> Json<Faults> {
    Json(sim.with_board(|board, _| board.faults.faults().clone()))
}

/// Replaces all faults and resets their counts; a fault that is not named is off.
async fn put_faults(
    State(sim): State<Arc<SimulatorRuntime>>,
    Json(faults): Json<Faults>,
) -> Json<Faults> {
    sim.with_board(|board, _| board.faults = FaultState::new(faults.clone()));
    Json(faults)
}

async fn delete_faults(State(sim): State<Arc<SimulatorRuntime>>) -> StatusCode {
    sim.with_board(|board, _| board.faults = FaultState::default());
    StatusCode::NO_CONTENT
}

async fn behavior(State(sim): State<Arc<SimulatorRuntime>>) -> Json<CalleeBehavior> {
    Json(sim.with_board(|board, _| CalleeBehavior::clone(&board.behavior)))
}

/// Replaces the behavior for calls created later; a setting that is not named
/// takes its default.
async fn put_behavior(
    State(sim): State<Arc<SimulatorRuntime>>,
    Json(behavior): Json<CalleeBehavior>,
) -> Json<CalleeBehavior> {
    sim.with_board(|board, _| board.behavior = Arc::new(behavior.clone()));
    Json(behavior)
}

async fn accounts(
    State(sim): State<Arc<SimulatorRuntime>>,
) -> Json<BTreeMap<String, AccountConfig>> {
    Json(sim.with_board(|board, _| board.accounts.settings()))
}

async fn put_account(
    State(sim): State<Arc<SimulatorRuntime>>,
    Path(sid): Path<String>,
    Json(settings): Json<AccountConfig>,
) -> Json<AccountConfig> {
    sim.with_board(|board, _| board.accounts.set(&sid, settings.clone()));
    Json(settings)
}

async fn callbacks(
    State(sim): State<Arc<SimulatorRuntime>>,
    Path(sid): Path<String>,
) -> Result<Json<Vec<CallbackRecord>>, StatusCode> {
    sim.with_board(|board, _| {
        Some(
            board
                .callback_log
                .for_call(board.find_call(&sid, None)?.index)
                .to_vec(),
        )
    })
    .map(Json)
    .ok_or(StatusCode::NOT_FOUND)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplayRequest {
    index: usize,
}

async fn replay_callback(
    State(sim): State<Arc<SimulatorRuntime>>,
    Path(sid): Path<String>,
    Json(request): Json<ReplayRequest>,
) -> Result<Json<CallbackRecord>, StatusCode> {
    replay(&sim, &sid, request.index)
        .await
        .map(Json)
        .ok_or(StatusCode::NOT_FOUND)
}

/// Repeats a logged request with the same body and signature, and logs the result as a further
/// one.
pub(crate) async fn replay(
    sim: &Arc<SimulatorRuntime>,
    sid: &str,
    index: usize,
) -> Option<CallbackRecord> {
    let (call, original, token) = sim.with_board(|board, _| {
        let call = board.find_call(sid, None)?;
        let original = board.callback_log.for_call(call.index).get(index)?.clone();
        let account = board.call(call)?.account;
        let token = Arc::clone(&board.accounts.get(account)?.token);
        Some((call, original, token))
    })?;

    let parcel = CallbackRequest {
        url: Arc::from(original.url.as_str()),
        method: if original.method == "GET" {
            HttpMethod::Get
        } else {
            HttpMethod::Post
        },
        body: original.body.clone(),
        token,
        idempotency_token: format!("{sid}-r{index}"),
    };
    let receipt = sim.callback_client.deliver(&parcel).await;

    sim.with_board(|board, now| {
        let replayed = CallbackRecord {
            unix_micros: board.clock.unix_micros(now),
            attempts: receipt.attempts,
            response_status: receipt.status,
            response_body: receipt.body,
            error: receipt.error,
            lost: false,
            replay_of: Some(index),
            ..original
        };
        // A reset may have removed the call.
        board.call(call)?;
        board.callback_log.push(call.index, replayed);
        board.callback_log.for_call(call.index).last().cloned()
    })
}

async fn reset(State(sim): State<Arc<SimulatorRuntime>>) -> impl IntoResponse {
    sim.with_board(|board, _| board.reset());
    StatusCode::NO_CONTENT
}
