//! The Calls resource: create, fetch, list, update.

use std::sync::Arc;

use axum::Json;
use axum::body::to_bytes;
use axum::extract::{ConnectInfo, Path, RawQuery, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::Value;

use super::form::Form;
use super::list::{Query, list_json};
use super::resource::call_json;
use super::{create_form, login};
use crate::call::CallRef;
use crate::call_lifecycle::Update;
use crate::creates::{Decision, Incoming};
use crate::listener::Connection;
use crate::refusal::Refusal;
use crate::runtime::World;
use crate::switchboard::Switchboard;

const FORM_BYTES_MAX: usize = 64 * 1024;

/// Creates a call. The arrival is the time at which the kernel received the request.
pub(super) async fn create(
    State(sim): State<Arc<World>>,
    Path(account): Path<String>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    request: Request,
) -> Response {
    let arrived = sim.clock.before(connection.received_ago());
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, FORM_BYTES_MAX).await else {
        return Refusal::bad(20001, "The form is too long").into_response();
    };

    let form = Form::parse(&body);
    let incoming = Incoming {
        arrived,
        account: &account,
        login: login(&parts.headers),
        to: form.get("To").unwrap_or_default(),
        from: form.get("From").unwrap_or_default(),
        url: form.get("Url").unwrap_or_default(),
        request: content_type(&parts.headers).and_then(|()| create_form::read(&form)),
    };

    // Rendered at creation, because the call may change before the response is sent.
    let ((decision, created), actions) = sim.locked(|board, now| {
        let decision = board.create(now, incoming);
        let created = decision
            .outcome
            .as_ref()
            .ok()
            .and_then(|call| render(board, *call, now));
        (decision, created)
    });

    let tasks: Vec<_> = actions.into_iter().map(|a| sim.perform(a)).collect();
    if decision.early {
        // An aborted task only means that the simulator is stopping.
        futures::future::join_all(tasks).await;
    }
    answer(decision, created, &connection).await
}

async fn answer(decision: Decision, created: Option<Value>, connection: &Connection) -> Response {
    if !decision.latency.is_zero() {
        tokio::time::sleep(decision.latency).await;
    }
    if decision.cut_connection {
        connection.cut();
    }
    match (decision.outcome, created) {
        (Err(refusal), _) => refusal.into_response(),
        (Ok(_), Some(body)) => (StatusCode::CREATED, Json(body)).into_response(),
        (Ok(_), None) => Refusal::unavailable().into_response(),
    }
}

pub(super) async fn list(
    State(sim): State<Arc<World>>,
    Path(account): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let query = query.unwrap_or_default();
    let query = Query::read(&Form::parse(query.as_bytes()));
    sim.with(|board, now| {
        let owner = enter(board, &account, &headers)?;
        Ok(Json(list_json(board, owner, &account, &query?, now)))
    })
}

pub(super) async fn fetch(
    State(sim): State<Arc<World>>,
    Path((account, file)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    sim.with(|board, now| {
        let call = find(board, &account, &file, &headers)?;
        render(board, call, now)
            .map(Json)
            .ok_or_else(|| Refusal::not_found(&file))
    })
}

pub(super) async fn update(
    State(sim): State<Arc<World>>,
    Path((account, file)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Refusal> {
    let update = content_type(&headers).and_then(|()| read_update(&Form::parse(&body)));
    sim.with(|board, now| {
        let call = find(board, &account, &file, &headers)?;
        board.update(now, call, update?)?;
        render(board, call, now)
            .map(Json)
            .ok_or_else(|| Refusal::not_found(&file))
    })
}

fn read_update(form: &Form<'_>) -> Result<Update, Refusal> {
    form.check(&["Status", "Url", "Method", "Twiml"], &[])?;
    match form.get("Status") {
        Some("canceled") => Ok(Update::Cancel),
        Some("completed") => Ok(Update::Complete),
        Some(other) => Err(Refusal::bad(
            20001,
            format!("Status {other} is neither canceled nor completed"),
        )),
        None => create_form::answer(form)?
            .map(Update::Redirect)
            .ok_or_else(|| Refusal::bad(20001, "One of Status, Url and Twiml is required")),
    }
}

fn content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let form = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("application/x-www-form-urlencoded"));
    if form {
        return Ok(());
    }
    Err(Refusal {
        status: 415,
        ..Refusal::bad(20415, "Send application/x-www-form-urlencoded")
    })
}

fn enter(board: &mut Switchboard, account: &str, headers: &HeaderMap) -> Result<usize, Refusal> {
    board
        .accounts
        .authenticate(account, login(headers).as_ref())
        .ok_or_else(Refusal::unauthenticated)
}

fn find(
    board: &mut Switchboard,
    account: &str,
    file: &str,
    headers: &HeaderMap,
) -> Result<CallRef, Refusal> {
    let owner = enter(board, account, headers)?;
    file.strip_suffix(".json")
        .and_then(|sid| board.find(sid, Some(owner)))
        .ok_or_else(|| Refusal::not_found(&format!("/2010-04-01/Accounts/{account}/Calls/{file}")))
}

fn render(board: &Switchboard, call: CallRef, now: u64) -> Option<Value> {
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
