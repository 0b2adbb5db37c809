//! `/callbacks` and `/api/v1/batch-call/status-callback`: requests of carriers. They have no API
//! key; each is authenticated twice, by the call's token in its path and by the carrier's
//! signature over the public URL and the raw body.
//!
//! A callback only appends an event, and is acknowledged after the commit. The answer route
//! responds with the next instructions for the call. A wrong token, an unknown trunk and an
//! unknown call get the same 404.

pub mod event_writer;

use std::sync::Arc;

use axum::body::{Bytes, to_bytes};
use axum::extract::{OriginalUri, Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method, StatusCode, request};
use axum::response::{IntoResponse, Response};
use peal_shared::calls::events::{EventSource, NewCallEvent, find_by_carrier_id_unscoped};
use peal_shared::calls::urls::{CALL_PATH, STATUS_PATH, requested_url};
use peal_shared::context::Context;
use peal_shared::platform::ids::{CallId, TrunkId};
use peal_shared::telephony::{
    CallEvent, CallReference, CallbackKind, Carrier, CarrierAccount, CarrierCallback, CarrierKind,
};
use peal_shared::{Error, trunks};
use url::Url;
use utoipa::{IntoParams, IntoResponses};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::error::{Problem, Result};
use crate::http::extract::with_body_timeout;
use crate::http::openapi::ProblemDocument;
use crate::state::AppState;

/// Largest body; carriers send far less.
const BODY_LIMIT_BYTES: usize = 64 * 1024;

pub fn router() -> OpenApiRouter<AppState> {
    let call_routes = OpenApiRouter::new()
        .routes(routes!(answer))
        .routes(routes!(machine))
        .routes(routes!(recording));
    OpenApiRouter::new()
        .routes(routes!(unaddressed_status))
        .nest(STATUS_PATH, OpenApiRouter::new().routes(routes!(status)))
        .nest(CALL_PATH, call_routes)
}

/// Receive a call's status
#[utoipa::path(
    method(get, post),
    path = "/{trunk}/{call}/{token}",
    tag = "Carrier callbacks",
    security(()),
    params(CallParams),
    responses((status = 204, description = "Stored"), CallbackErrors)
)]
async fn status(
    State(api): State<AppState>,
    path: Path<CallPath>,
    request: Request,
) -> Result<StatusCode> {
    receive(&api, CallbackKind::Status, &path, request).await
}

/// Receive the result of answering machine detection
#[utoipa::path(
    method(get, post),
    path = "/{trunk}/{call}/{token}/machine",
    tag = "Carrier callbacks",
    security(()),
    params(CallParams),
    responses((status = 204, description = "Stored"), CallbackErrors)
)]
async fn machine(
    State(api): State<AppState>,
    path: Path<CallPath>,
    request: Request,
) -> Result<StatusCode> {
    receive(&api, CallbackKind::MachineDetection, &path, request).await
}

/// Receive a call's recording
#[utoipa::path(
    method(get, post),
    path = "/{trunk}/{call}/{token}/recording",
    tag = "Carrier callbacks",
    security(()),
    params(CallParams),
    responses((status = 204, description = "Stored"), CallbackErrors)
)]
async fn recording(
    State(api): State<AppState>,
    path: Path<CallPath>,
    request: Request,
) -> Result<StatusCode> {
    receive(&api, CallbackKind::Recording, &path, request).await
}

async fn receive(
    api: &AppState,
    kind: CallbackKind,
    path: &CallPath,
    request: Request,
) -> Result<StatusCode> {
    let call = path.verify_token(&api.context)?;

    let _permit = api.event_writer.acquire().await?;
    let received = ReceivedCallback::read(&api.context, request).await?;

    let (_, event) = received.verified_event(api, kind, call.trunk).await?;
    api.event_writer
        .insert_events(call.event(EventSource::Callback, event))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Return the next instructions for an answered call
///
/// The request itself is an event, and the first one owns the call, so it is stored before the
/// document is rendered.
#[utoipa::path(
    method(get, post),
    path = "/{trunk}/{call}/{token}/answer",
    tag = "Carrier callbacks",
    security(()),
    params(CallParams),
    responses(
        (
            status = 200, body = String, content_type = "application/xml",
            description = "In the carrier's markup",
            example = "<Response><Say>Hello</Say></Response>"
        ),
        CallbackErrors
    )
)]
async fn answer(
    State(api): State<AppState>,
    path: Path<CallPath>,
    request: Request,
) -> Result<Response> {
    let call = path.0.verify_token(&api.context)?;

    let _permit = api.event_writer.acquire().await?;
    let received = ReceivedCallback::read(&api.context, request).await?;

    let (account, event) = received
        .verified_event(&api, CallbackKind::Answer, call.trunk)
        .await?;

    let document = api
        .event_writer
        .answer(call.event(EventSource::Answer, event))
        .await?;

    let rendered = api.context.carriers.adapter(account.kind).render(&document);
    Ok(([(CONTENT_TYPE, rendered.content_type)], rendered.body).into_response())
}

/// Receive a call's status, at the URL of the whole account
///
/// For the URL that is configured for a carrier account, not for a call: the body names the call,
/// and the callback must be signed for that call's trunk. A call that Peal has not placed is
/// acknowledged with 202 when the account's signature is valid. Nothing is stored then, because
/// without a call the owner is unknown.
#[utoipa::path(
    post,
    path = STATUS_PATH,
    tag = "Carrier callbacks",
    security(()),
    responses(
        (status = 202, description = "Signature valid, but the call is not one of Peal's"),
        (status = 204, description = "Stored"),
        CallbackErrors
    )
)]
async fn unaddressed_status(State(api): State<AppState>, request: Request) -> Result<StatusCode> {
    let received = ReceivedCallback::read(&api.context, request).await?;

    let Some((kind, addressed)) = received.addressed(&api.context) else {
        return Err(Error::rejected(
            "callback_not_readable",
            "the callback does not name its account and its call",
        )
        .into());
    };
    let CallReference {
        account_id,
        carrier_call_id,
    } = addressed;

    let _permit = api.event_writer.acquire().await?;

    // Calls and trunks that may have sent it; the connection is not held while they are tried.
    let mut db = api.context.callback_pool.acquire().await?;
    let calls = find_by_carrier_id_unscoped(&mut db, &account_id, &carrier_call_id).await?;
    let trunks = match calls.is_empty() {
        true => trunks::list_by_account_unscoped(&mut db, kind, &account_id).await?,
        false => Vec::new(),
    };
    drop(db);

    // The first signature that matches decides.
    let mut problem = Problem::from(Error::NotFound("Call"));
    for (trunk, id) in calls {
        match received
            .verified_event(&api, CallbackKind::Status, trunk)
            .await
        {
            Ok((_, event)) => {
                let call = VerifiedCall { trunk, id };
                api.event_writer
                    .insert_events(call.event(EventSource::Callback, event))
                    .await?;
                return Ok(StatusCode::NO_CONTENT);
            }
            Err(mismatch) => problem = mismatch,
        }
    }

    for trunk in trunks {
        match received
            .verified_event(&api, CallbackKind::Status, trunk)
            .await
        {
            Ok(_) => return Ok(StatusCode::ACCEPTED),
            Err(mismatch) => problem = mismatch,
        }
    }

    Err(problem)
}

/// Path parameters, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "its fields are read by the macro alone")]
struct CallParams {
    /// The trunk.
    trunk: TrunkId,
    /// The call.
    call: CallId,
    /// Token of the call, issued by Peal.
    token: String,
}

/// Error responses of a callback.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "its variants are read by the macro alone")]
enum CallbackErrors {
    /// The callback cannot be parsed.
    #[response(status = 400, content_type = "application/problem+json")]
    Unreadable(ProblemDocument),
    /// Not signed by the carrier.
    #[response(status = 403, content_type = "application/problem+json")]
    Unsigned(ProblemDocument),
    /// The token is wrong, or there is no such call.
    #[response(status = 404, content_type = "application/problem+json")]
    Missing(ProblemDocument),
    /// The body is too large for a callback.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(ProblemDocument),
    /// The callback could not be stored; retry.
    #[response(status = 503, content_type = "application/problem+json")]
    Busy(ProblemDocument),
}

/// Unparsed path parameters: trunk, call, token.
type CallPath = (String, String, String);

/// A call whose token was in the path.
#[derive(Clone, Copy)]
struct VerifiedCall {
    trunk: TrunkId,
    id: CallId,
}

impl VerifiedCall {
    fn event(self, source: EventSource, event: CallEvent) -> NewCallEvent {
        NewCallEvent {
            call: self.id,
            trunk: self.trunk,
            source,
            event,
        }
    }
}

trait CallPathExt {
    /// Verifies the token, and returns the call of the path.
    fn verify_token(&self, context: &Context) -> Result<VerifiedCall>;
}

impl CallPathExt for CallPath {
    fn verify_token(&self, context: &Context) -> Result<VerifiedCall> {
        let (trunk, call, token) = self;
        match (trunk.parse(), call.parse()) {
            (Ok(trunk), Ok(id)) if context.config.keys.is_call_token(trunk, id, token) => {
                Ok(VerifiedCall { trunk, id })
            }
            _ => Err(Error::NotFound("Call").into()),
        }
    }
}

/// A received callback, not verified yet.
struct ReceivedCallback {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Bytes,
}

impl ReceivedCallback {
    async fn read(context: &Context, request: Request) -> Result<Self> {
        let (
            request::Parts {
                method,
                uri,
                headers,
                extensions,
                ..
            },
            body,
        ) = request.into_parts();

        // Carriers sign the whole URL; a nested route sees only the end of its path.
        let uri = match extensions.get::<OriginalUri>() {
            Some(OriginalUri(whole)) => whole,
            None => &uri,
        };
        let sent_to = uri.path_and_query().map_or("/", |path| path.as_str());
        let url = requested_url(&context.config.public_url, sent_to)
            .ok_or_else(Problem::route_not_found)?;

        let body = with_body_timeout(to_bytes(body, BODY_LIMIT_BYTES))
            .await?
            .map_err(|_error| {
                Problem::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "too_large",
                    "the body is incomplete, or too large for a callback",
                )
            })?;

        Ok(Self {
            method,
            url,
            headers,
            body,
        })
    }

    fn callback(&self, carrier: &dyn Carrier) -> CarrierCallback<'_> {
        let text = |name: &str| self.headers.get(name).and_then(|value| value.to_str().ok());
        CarrierCallback {
            method: self.method.as_str(),
            url: &self.url,
            content_type: text(CONTENT_TYPE.as_str()),
            signature: text(carrier.signature_header()),
            body: &self.body,
        }
    }

    /// Account and call that the callback names, read by the first carrier that can parse it.
    fn addressed(&self, context: &Context) -> Option<(CarrierKind, CallReference)> {
        CarrierKind::ALL.into_iter().find_map(|kind| {
            let carrier = context.carriers.adapter(kind);
            let addressed = carrier.call_reference(&self.callback(carrier))?;
            Some((kind, addressed))
        })
    }

    /// Verifies the carrier's signature, and parses the event.
    async fn verified_event(
        &self,
        api: &AppState,
        kind: CallbackKind,
        trunk: TrunkId,
    ) -> Result<(Arc<CarrierAccount>, CallEvent)> {
        let Context {
            callback_pool: pool,
            config,
            carriers,
            accounts,
            ..
        } = &*api.context;

        let account = match accounts.get(pool, &config.keys, trunk).await {
            Err(Error::NotFound(_)) => Err(Error::NotFound("Call")),
            account => account,
        }?;

        let carrier = carriers.adapter(account.kind);
        let callback = self.callback(carrier);
        if !carrier.verify(&account, &callback) {
            let refused = api.context.metrics.http.record_invalid_signature();
            tracing::warn!(trunk.id = %trunk, ?kind, refused, "callback with an invalid signature");
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "signature_invalid",
                "the signature does not match this URL and body",
            ));
        }

        let event = carrier.read(kind, &callback)?;
        Ok((account, event))
    }
}
