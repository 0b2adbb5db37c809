//! The Calls resource: create, fetch, list, update.

use std::sync::Arc;

use axum::Json;
use axum::body::to_bytes;
use axum::extract::{ConnectInfo, Path, RawQuery, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::Value;

use super::form::FormParams;
use super::list::{CallListQuery, list_json};
use super::resource::call_json;
use super::{create_form, login};
use crate::call::CallRef;
use crate::call_lifecycle::CallUpdate;
use crate::creates::{CreateDecision, IncomingCreate};
use crate::listener::ConnectionHandle;
use crate::refusal::TwilioError;
use crate::runtime::SimulatorRuntime;
use crate::switchboard::Switchboard;

const MAX_FORM_BYTES: usize = 64 * 1024;

/// Creates a call. The arrival is the time at which the kernel received the request.
pub(super) async fn create(
    State(sim): State<Arc<SimulatorRuntime>>,
    Path(account): Path<String>,
    ConnectInfo(connection): ConnectInfo<ConnectionHandle>,
    request: Request,
) -> Response {
    let arrived = sim.clock.ago(connection.received_ago());
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_FORM_BYTES).await else {
        return TwilioError::bad_request(20001, "The form is too long").into_response();
    };

    let form = FormParams::parse(&body);
    let incoming = IncomingCreate {
        arrived,
        account: &account,
        login: login(&parts.headers),
        to: form.get("To").unwrap_or_default(),
        from: form.get("From").unwrap_or_default(),
        url: form.get("Url").unwrap_or_default(),
        request: content_type(&parts.headers).and_then(|()| create_form::read(&form)),
    };

    // Rendered at creation, because the call may change before the response is sent.
    let ((decision, created), actions) = sim.with_board_deferred(|board, now| {
        let decision = board.create(now, incoming);
        let created = decision
            .outcome
            .as_ref()
            .ok()
            .and_then(|call| render_call(board, *call, now));
        (decision, created)
    });

    let tasks: Vec<_> = actions.into_iter().map(|a| sim.perform(a)).collect();
    if decision.callbacks_first {
        // An aborted task only means that the simulator is stopping.
        futures::future::join_all(tasks).await;
    }
    answer(decision, created, &connection).await
}

async fn answer(
    decision: CreateDecision,
    created: Option<Value>,
    connection: &ConnectionHandle,
) -> Response {
    if !decision.latency.is_zero() {
        tokio::time::sleep(decision.latency).await;
    }
    if decision.cut_connection {
        connection.cut();
    }
    match (decision.outcome, created) {
        (Err(refusal), _) => refusal.into_response(),
        (Ok(_), Some(body)) => (StatusCode::CREATED, Json(body)).into_response(),
        (Ok(_), None) => TwilioError::unavailable().into_response(),
    }
}

pub(super) async fn list(
    State(sim): State<Arc<SimulatorRuntime>>,
    Path(account): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Json<Value>, TwilioError> {
    let query = query.unwrap_or_default();
    let query = CallListQuery::read(&FormParams::parse(query.as_bytes()));
    sim.with_board(|board, now| {
        let owner = authenticate(board, &account, &headers)?;
        Ok(Json(list_json(board, owner, &account, &query?, now)))
    })
}

pub(super) async fn fetch(
    State(sim): State<Arc<SimulatorRuntime>>,
    Path((account, file)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Value>, TwilioError> {
    sim.with_board(|board, now| {
        let call = find_call(board, &account, &file, &headers)?;
        render_call(board, call, now)
            .map(Json)
            .ok_or_else(|| TwilioError::not_found(&file))
    })
}

pub(super) async fn update(
    State(sim): State<Arc<SimulatorRuntime>>,
    Path((account, file)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, TwilioError> {
    let update = content_type(&headers).and_then(|()| read_update(&FormParams::parse(&body)));
    sim.with_board(|board, now| {
        let call = find_call(board, &account, &file, &headers)?;
        board.apply_update(now, call, update?)?;
        render_call(board, call, now)
            .map(Json)
            .ok_or_else(|| TwilioError::not_found(&file))
    })
}

fn read_update(form: &FormParams<'_>) -> Result<CallUpdate, TwilioError> {
    form.check(&["Status", "Url", "Method", "Twiml"], &[])?;
    match form.get("Status") {
        Some("canceled") => Ok(CallUpdate::Cancel),
        Some("completed") => Ok(CallUpdate::Complete),
        Some(other) => Err(TwilioError::bad_request(
            20001,
            format!("Status {other} is neither canceled nor completed"),
        )),
        None => create_form::answer(form)?
            .map(CallUpdate::Redirect)
            .ok_or_else(|| {
                TwilioError::bad_request(20001, "One of Status, Url and Twiml is required")
            }),
    }
}

fn content_type(headers: &HeaderMap) -> Result<(), TwilioError> {
    let form = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("application/x-www-form-urlencoded"));
    if form {
        return Ok(());
    }
    Err(TwilioError {
        status: 415,
        ..TwilioError::bad_request(20415, "Send application/x-www-form-urlencoded")
    })
}

fn authenticate(
    board: &mut Switchboard,
    account: &str,
    headers: &HeaderMap,
) -> Result<usize, TwilioError> {
    board
        .accounts
        .authenticate(account, login(headers).as_ref())
        .ok_or_else(TwilioError::unauthenticated)
}

fn find_call(
    board: &mut Switchboard,
    account: &str,
    file: &str,
    headers: &HeaderMap,
) -> Result<CallRef, TwilioError> {
    let owner = authenticate(board, account, headers)?;
    file.strip_suffix(".json")
        .and_then(|sid| board.find_call(sid, Some(owner)))
        .ok_or_else(|| {
            TwilioError::not_found(&format!("/2010-04-01/Accounts/{account}/Calls/{file}"))
        })
}

fn render_call(board: &Switchboard, call: CallRef, now: u64) -> Option<Value> {
    let call = board.call(call)?;
    let customer = board.accounts.get(call.account)?;
    Some(call_json(
        call,
        &customer.sid,
        &board.behavior,
        board.clock,
        now,
    ))
}
