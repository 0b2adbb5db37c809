//! `/api/call`: single calls, outside any batch.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware::from_fn;
use peal_shared::agents::Agent;
use peal_shared::audit::AuditEntry;
use peal_shared::caller_numbers::CallerNumber;
use peal_shared::calls::log;
use peal_shared::calls::log::Call;
use peal_shared::calls::request::{NewDirectCall, queue_call};
use peal_shared::context::Context;
use peal_shared::platform::e164::E164;
use peal_shared::platform::error::FieldError;
use peal_shared::platform::ids::{AgentId, CallId, PhoneId, UserId};
use peal_shared::platform::privacy::Variables;
use peal_shared::platform::queue::wakeup::WakeupChannel;
use peal_shared::{Error, agents, caller_numbers};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::auth::Caller;
use crate::batches::create::{check_variable_values, require_agent};
use crate::http::cors::require_known_origin;
use crate::http::error::{Problem, Result};
use crate::http::extract::{FieldErrors, OptionalJson, PathIds, ValidQuery};
use crate::http::openapi::{
    BadRequestResponse, CommonErrors, NotFoundResponse, PaymentRequiredResponse,
};
use crate::state::AppState;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_call))
        .route_layer(from_fn(require_known_origin))
        .routes(routes!(show))
}

/// Call one person
///
/// Queues a call and returns at once; it is dialled as soon as the trunk's pace allows. Its
/// maximum cost is held in the wallet of its user from then on; with less credit, or with the
/// monthly cap reached, the response is 402. A page with an unknown `Origin` gets 403.
///
/// The call is made under HIPAA when the agent or its organization has the flag
/// `hipaa_compliance` at this time: it is not recorded, and its variables are never shown.
#[utoipa::path(
    post,
    path = "/create_call",
    tag = "Calls",
    params(CreateCall),
    request_body = Option<CallBody>,
    responses(
        (status = 202, body = CreateCallResponse, example = json!({
            "status": "queued", "queue_job_id": "0197d7a5-3c1e-7a10-8f00-00000000000e",
            "call_session_id": "0197d7a5-3c1e-7a10-8f00-00000000000e",
            "user_id": "0197d7a5-3c1e-7a10-8f00-00000000000a", "target_number": "+12125550123",
            "agent_id": "0197d7a5-3c1e-7a10-8f00-00000000000b", "from_phone_number": "+12125550100",
            "source": "create_call"
        })),
        BadRequestResponse,
        PaymentRequiredResponse,
        NotFoundResponse,
        CommonErrors,
    )
)]
async fn create_call(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<CreateCall>,
    OptionalJson(body): OptionalJson<CallBody>,
) -> Result<(StatusCode, Json<CreateCallResponse>)> {
    let to = query.parse_number()?;
    let mut fields = FieldErrors::default();
    check_variable_values(&mut fields, &body.variable_values, &context.config.uploads);
    fields.finish()?;
    let agent_id = require_agent(query.agent_id, query.workflow_id)?;

    let scope = caller.scope();
    let mut db = caller.begin_write(&context).await?;
    let agent = agents::find(&mut db, &scope, agent_id).await?;

    // A super_admin calls for another organisation on behalf of the agent's owner.
    let user = match agent.org_id == caller.org {
        true => caller.user,
        false => agent.user_id,
    };

    let phone = match query.phone_number_id {
        Some(id) => caller_numbers::find(&mut db, &scope, id).await?,
        None => caller_numbers::default_number(&mut db, &scope, &agent, user).await?,
    };
    check_callable(&agent, &phone)?;

    let new = NewDirectCall {
        user,
        to: to.clone(),
        variable_values: Variables::from_map(body.variable_values),
        basis: context.estimate_basis(),
    };
    let queued = queue_call(&mut db, &scope, &agent, &phone, &new).await?;

    let answer = CreateCallResponse {
        status: "queued",
        queue_job_id: queued.id,
        call_session_id: queued.id,
        user_id: user,
        target_number: to,
        agent_id: agent.id,
        from_phone_number: phone.phone_number,
        source: "create_call",
    };

    let note = AuditEntry::new("call.create", agent.org_id, queued.id.0);
    let answer = db.commit(note, StatusCode::ACCEPTED, Json(answer)).await?;

    context.wakeups.notify(WakeupChannel::Dial);
    Ok(answer)
}

/// Checks that the agent may call from the phone number.
fn check_callable(agent: &Agent, phone: &CallerNumber) -> Result<()> {
    let (code, detail) = if !agent.is_active {
        ("agent_inactive", "the agent is not active")
    } else if !phone.is_active {
        ("line_inactive", "the phone number is not active")
    } else if agent.org_id != phone.org_id {
        (
            "organizations_differ",
            "the agent and the phone number belong to different organizations",
        )
    } else {
        return Ok(());
    };
    Err(Error::rejected(code, detail).into())
}

/// Show a call
#[utoipa::path(
    get,
    path = "/{call_id}",
    tag = "Calls",
    params(("call_id" = CallId, Path)),
    responses(
        (status = 200, body = Call),
        NotFoundResponse,
        CommonErrors,
    )
)]
async fn show(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<CallId>,
) -> Result<Json<Call>> {
    let mut db = caller.begin_read(&context).await?;
    Ok(Json(log::find(&mut db, &caller.scope(), id).await?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct CreateCall {
    /// Number to call, in E.164.
    #[serde(rename = "phoneNumber")]
    #[param(example = "+12125550123")]
    phone_number: String,
    /// Agent of the call.
    agent_id: Option<AgentId>,
    /// Not supported: workflows cannot place calls.
    workflow_id: Option<Uuid>,
    /// Caller number; by default the caller's first active one.
    phone_number_id: Option<PhoneId>,
}

impl CreateCall {
    /// Parses the number. An unescaped `+` arrives as a space, which is never meant before a
    /// digit.
    fn parse_number(&self) -> Result<E164> {
        let restored = match self.phone_number.strip_prefix(' ') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_digit()) => format!("+{rest}"),
            _ => self.phone_number.clone(),
        };
        E164::parse(&restored, None).map_err(|error| {
            let (kind, msg) = (error.code(), error.to_string());
            Problem::invalid(vec![FieldError::new("query", ["phoneNumber"], kind, msg)])
        })
    }
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"variable_values": {"name": "Ada"}}))]
struct CallBody {
    /// Values of the agent's `{{variables}}`: at most 50 strings of 2000 characters, numbers or
    /// booleans, with names as in a batch.
    #[serde(default)]
    #[schema(value_type = Object)]
    variable_values: Map<String, Value>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = QueuedCall)]
struct CreateCallResponse {
    status: &'static str,
    queue_job_id: CallId,
    call_session_id: CallId,
    user_id: UserId,
    target_number: E164,
    agent_id: AgentId,
    from_phone_number: E164,
    source: &'static str,
}
