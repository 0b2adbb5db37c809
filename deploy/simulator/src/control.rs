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

use crate::call::Method;
use crate::callback_log::Callback;
use crate::callee::Behavior;
use crate::config::Account;
use crate::delivery::Parcel;
use crate::faults::{FaultState, Faults};
use crate::oracle::{Create, Oracle};
use crate::runtime::World;
use crate::switchboard::finish_oracle;

pub(crate) fn router() -> Router<Arc<World>> {
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

async fn health(State(sim): State<Arc<World>>) -> Json<Value> {
    let uptime = Duration::from_micros(sim.clock.now());
    sim.with(|board, _| {
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
struct Within {
    #[serde(default)]
    within_ms: u64,
}

async fn idle(State(sim): State<Arc<World>>, Query(within): Query<Within>) -> Json<Value> {
    let deadline = Instant::now() + Duration::from_millis(within.within_ms);
    Json(json!({ "idle": sim.wait_idle(deadline).await }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OracleQuery {
    account: Option<String>,
}

async fn oracle(State(sim): State<Arc<World>>, Query(query): Query<OracleQuery>) -> Json<Oracle> {
    Json(report(&sim, query.account.as_deref()))
}

pub(crate) fn report(sim: &Arc<World>, account: Option<&str>) -> Oracle {
    let (oracle, arrivals) = sim.with(|board, _| board.oracle(account));
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
    State(sim): State<Arc<World>>,
    Query(query): Query<CreatesQuery>,
) -> Json<Vec<Create>> {
    Json(sim.with(|board, _| board.creates(query.after, query.limit)))
}

async fn faults(State(sim): State<Arc<World>>) -> Json<Faults> {
    Json(sim.with(|board, _| board.faults.faults().clone()))
}

/// Replaces all faults and resets their counts; a fault that is not named is off.
async fn put_faults(State(sim): State<Arc<World>>, Json(faults): Json<Faults>) -> Json<Faults> {
    sim.with(|board, _| board.faults = FaultState::new(faults.clone()));
    Json(faults)
}

async fn delete_faults(State(sim): State<Arc<World>>) -> StatusCode {
    sim.with(|board, _| board.faults = FaultState::default());
    StatusCode::NO_CONTENT
}

async fn behavior(State(sim): State<Arc<World>>) -> Json<Behavior> {
    Json(sim.with(|board, _| Behavior::clone(&board.behavior)))
}

/// Replaces the behavior for calls created later; a setting that is not named
/// takes its default.
async fn put_behavior(
    State(sim): State<Arc<World>>,
    Json(behavior): Json<Behavior>,
) -> Json<Behavior> {
    sim.with(|board, _| board.behavior = Arc::new(behavior.clone()));
    Json(behavior)
}

async fn accounts(State(sim): State<Arc<World>>) -> Json<BTreeMap<String, Account>> {
    Json(sim.with(|board, _| board.accounts.settings()))
}

async fn put_account(
    State(sim): State<Arc<World>>,
    Path(sid): Path<String>,
    Json(settings): Json<Account>,
) -> Json<Account> {
    sim.with(|board, _| board.accounts.set(&sid, settings.clone()));
    Json(settings)
}

async fn callbacks(
    State(sim): State<Arc<World>>,
    Path(sid): Path<String>,
) -> Result<Json<Vec<Callback>>, StatusCode> {
    sim.with(|board, _| Some(board.kept.of(board.find(&sid, None)?.index).to_vec()))
        .map(Json)
        .ok_or(StatusCode::NOT_FOUND)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplayRequest {
    index: usize,
}

async fn replay_callback(
    State(sim): State<Arc<World>>,
    Path(sid): Path<String>,
    Json(request): Json<ReplayRequest>,
) -> Result<Json<Callback>, StatusCode> {
    replay(&sim, &sid, request.index)
        .await
        .map(Json)
        .ok_or(StatusCode::NOT_FOUND)
}

/// Repeats a logged request with the same body and signature, and logs the result as a further
/// one.
pub(crate) async fn replay(sim: &Arc<World>, sid: &str, index: usize) -> Option<Callback> {
    let (call, original, token) = sim.with(|board, _| {
        let call = board.find(sid, None)?;
        let original = board.kept.of(call.index).get(index)?.clone();
        let account = board.call(call)?.account;
        let token = Arc::clone(&board.accounts.get(account)?.token);
        Some((call, original, token))
    })?;

    let parcel = Parcel {
        url: Arc::from(original.url.as_str()),
        method: if original.method == "GET" {
            Method::Get
        } else {
            Method::Post
        },
        body: original.body.clone(),
        token,
        idempotency: format!("{sid}-r{index}"),
    };
    let receipt = sim.courier.deliver(&parcel).await;

    sim.with(|board, now| {
        let replayed = Callback {
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
        board.kept.push(call.index, replayed);
        board.kept.of(call.index).last().cloned()
    })
}

async fn reset(State(sim): State<Arc<World>>) -> impl IntoResponse {
    sim.with(|board, _| board.reset());
    StatusCode::NO_CONTENT
}
